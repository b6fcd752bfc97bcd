"""The user's own inputs: `.npz`, folders, Polygraphy's JSON, or a data-loader script.

=====================  ==================================================================================
``feed.npz``           one feed; the arrays' names are the inputs'
``folder/``            of ``.npz`` files: one feed each, in order of their names; of ``.npy`` files: one feed,
                       the file names are the inputs' (``/`` in a name may be written ``_``)
``inputs.json``        what Polygraphy's ``--save-inputs`` writes: a list of feeds
``loader.py[:name]``   a function (``load_data`` unless named) or list that yields feeds
=====================  ==================================================================================

Nothing is ever unpickled. A script is code and is run as such.
"""

from __future__ import annotations

import runpy
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from onnxlathe.errors import LatheError, UsageError

from .shapes import InputSpec, nearest

_KINDS = "an .npz file, a folder of .npy or .npz files, a Polygraphy .json file, or a script.py[:function]"


def load_feeds(
    source: str | Path, specs: Sequence[InputSpec], *, notes: list[str] | None = None
) -> Iterator[dict[str, np.ndarray]]:
    """Read feeds one by one, each checked against the model's inputs.

    Args:
        source: path of the data, for a script with an optional ``:function``.
        specs: the model's inputs (`onnxlathe.model.shapes.input_specs`).
        notes: gets a sentence for every input whose type had to be converted.

    Yields:
        input name → array of the input's type.

    Raises:
        UsageError: no such file, a file that is damaged or holds Python objects, or a feed that does not fit
            the inputs (missing or unknown names, type, rank, fixed dimensions, unequal symbols).
    """
    found = False
    seen: list[str] = notes if notes is not None else []
    for where, feed in _read(str(source)):
        found = True
        yield _fit(where, feed, specs, seen)
    if not found:
        raise UsageError(f"{source}: there is no feed in it", hint=f"data is {_KINDS}")


def _read(source: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(where from, feed) for every feed."""
    script, colon, function = source.rpartition(":")
    if colon and script.endswith(".py"):
        yield from _read_script(Path(script), function)
        return
    path = Path(source)
    if not path.exists():
        raise UsageError(f"{source}: no such file or folder", hint=f"data is {_KINDS}")
    if path.is_dir():
        yield from _read_folder(path)
    elif path.suffix == ".npz":
        yield source, _read_npz(path)
    elif path.suffix == ".json":
        yield from _read_json(path)
    elif path.suffix == ".py":
        yield from _read_script(path, "load_data")
    else:
        raise UsageError(f"{source}: not a kind of data that is known", hint=f"data is {_KINDS}")


def _read_folder(folder: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    archives = sorted(folder.glob("*.npz"))
    arrays = sorted(folder.glob("*.npy"))
    if archives and arrays:
        raise UsageError(f"{folder}: holds .npz and .npy files", hint="keep one kind in a folder")
    for archive in archives:
        yield str(archive), _read_npz(archive)
    if arrays:
        yield str(folder), {a.stem: _load(a) for a in arrays}


def _load(path: Path) -> np.ndarray:
    try:
        array: np.ndarray = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError, SyntaxError) as error:
        raise UsageError(f"{path}: cannot be read as an array: {_pickled(error)}") from None
    return array


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    try:
        archive = np.load(path, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise UsageError(f"{path}: not an archive of arrays", hint="write it with numpy.savez")
        with archive:
            return {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, SyntaxError, zipfile.BadZipFile) as error:
        raise UsageError(f"{path}: cannot be read as arrays: {_pickled(error)}") from None


def _pickled(error: Exception) -> str:
    if "pickle" in str(error).lower():
        return "it holds pickled Python objects, which are never loaded"
    return str(error)


def _read_json(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    from polygraphy.exception import PolygraphyException
    from polygraphy.json import load_json

    try:
        feeds = load_json(str(path))
    except (PolygraphyException, OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path}: cannot be read as Polygraphy's JSON: {error}") from None
    if isinstance(feeds, Mapping):
        feeds = [feeds]
    if not isinstance(feeds, list):
        raise UsageError(f"{path}: holds {type(feeds).__name__}, not a list of feeds", hint=_HOW_JSON)
    for number, feed in enumerate(feeds):
        yield f"{path}, feed {number}", _as_mapping(feed, f"{path}, feed {number}", _HOW_JSON)


_HOW_JSON = "polygraphy run … --save-inputs inputs.json writes such a file"


def _read_script(path: Path, name: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if not path.exists():
        raise UsageError(f"{path}: no such script")
    try:
        found = runpy.run_path(str(path))
    except Exception as error:
        raise UsageError(f"{path}: raised {type(error).__name__}: {error}") from None
    if name not in found:
        functions = [n for n, v in found.items() if callable(v) and not n.startswith("_")]
        raise UsageError(f"{path}: there is no {name!r} in it", hint=nearest(name, functions))
    loader = found[name]
    try:
        feeds = loader() if callable(loader) else loader
        if not isinstance(feeds, Iterable):
            raise UsageError(f"{path}: {name} gives {type(feeds).__name__}, not feeds", hint=_HOW_SCRIPT)
        for number, feed in enumerate(feeds):
            where = f"{path}:{name}, feed {number}"
            yield where, _as_mapping(feed, where, _HOW_SCRIPT)
    except LatheError:
        raise
    except Exception as error:
        raise UsageError(f"{path}: {name} raised {type(error).__name__}: {error}") from None


_HOW_SCRIPT = "def load_data(): … yield {input name: numpy array}"


def _as_mapping(feed: Any, where: str, how: str) -> Mapping[str, Any]:
    if not isinstance(feed, Mapping):
        raise UsageError(f"{where}: is {type(feed).__name__}, not a mapping of names to arrays", hint=how)
    return feed


def _fit(
    where: str, feed: Mapping[str, Any], specs: Sequence[InputSpec], notes: list[str]
) -> dict[str, np.ndarray]:
    """The feed as the model takes it."""
    from_files = {s.name.replace("/", "_"): s.name for s in specs}
    renamed = {n if n in {s.name for s in specs} else from_files.get(n, n): a for n, a in feed.items()}
    names = [s.name for s in specs]
    unknown = [n for n in renamed if n not in names]
    if unknown:
        raise UsageError(f"{where}: no input is called {unknown[0]!r}", hint=nearest(str(unknown[0]), names))
    fitted: dict[str, np.ndarray] = {}
    symbols: dict[str, tuple[int, str]] = {}
    for spec in specs:
        if spec.name not in renamed:
            raise UsageError(
                f"{where}: input {spec.name!r} is missing", hint=f"the model needs {', '.join(names)}"
            )
        array = np.asarray(renamed[spec.name])
        array = _as_type(where, array, spec, notes)
        if spec.dims is not None:
            _check_shape(where, array, spec, symbols)
        fitted[spec.name] = array
    return fitted


def _as_type(where: str, array: np.ndarray, spec: InputSpec, notes: list[str]) -> np.ndarray:
    """The array in the input's type, if no value is changed by that (floats may lose digits)."""
    if spec.dtype.name == "STRING":
        if array.dtype.kind not in "OUST":
            raise UsageError(f"{where}: input {spec.name!r} takes strings, not {array.dtype}")
        return array.astype(object)
    wanted: np.dtype = spec.dtype.numpy()
    if array.dtype == wanted:
        return array
    if array.dtype.kind == "V" and array.dtype.itemsize == wanted.itemsize:
        return array.view(wanted)  # bfloat16 and its kin, as numpy.save leaves them
    number = array.dtype.kind in "biufc"
    floating = spec.dtype.is_floating_point()
    if number and (array.dtype.kind in "fiub" if floating else array.dtype.kind in "iub"):
        with np.errstate(all="ignore"):
            cast = array.astype(wanted)
            same = floating or bool(np.array_equal(cast.astype(array.dtype), array))
            same = same and bool(np.array_equal(cast < 0, array < 0))
            overflow = floating and bool((np.isinf(cast.astype(np.float64)) & np.isfinite(array)).any())
        if same and not overflow:
            note = f"{where}: input {spec.name!r} was converted from {array.dtype} to {wanted}"
            if note not in notes:
                notes.append(note)
            return cast
    raise UsageError(
        f"{where}: input {spec.name!r} has type {array.dtype}, and the model takes {wanted}",
        hint="its values do not survive the conversion" if number else "",
    )


def _check_shape(where: str, array: np.ndarray, spec: InputSpec, symbols: dict[str, tuple[int, str]]) -> None:
    dims = spec.dims or ()
    if array.ndim != len(dims):
        raise UsageError(
            f"{where}: input {spec.name!r} has shape {list(array.shape)}, of rank {array.ndim}",
            hint=f"the model says {spec}",
        )
    for axis, (size, dim) in enumerate(zip(array.shape, dims, strict=True)):
        if isinstance(dim, int) and size != dim:
            raise UsageError(
                f"{where}: dimension {axis} of input {spec.name!r} is {size}, not {dim}",
                hint=f"the model says {spec}",
            )
        if isinstance(dim, str):
            before, other = symbols.setdefault(dim, (size, spec.name))
            if before != size:
                raise UsageError(
                    f"{where}: dimension {dim!r} is {before} in input {other!r} and {size} in {spec.name!r}"
                )
