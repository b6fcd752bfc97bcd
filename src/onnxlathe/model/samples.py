"""Sample inputs that respect meaning.

Random numbers in an embedding index crash the model; in a mask, a length or a shape they make it compute
nonsense. `sample_inputs` looks where each input goes (see `meaning`), then at its name, and draws token
ids within the table, masks with a valid prefix, increasing positions, lengths that fit, and so on. What is
drawn depends on the seed and the input's name alone, so one input's values do not move when another is
added.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from onnxlathe.errors import ModelError

from .meaning import Use, limits, small_constant, spatial_rank, uses_of
from .recipes import RECIPES, Request, interval
from .shapes import InputSpec, concrete_shape, evaluate, input_specs, symbols_in

if TYPE_CHECKING:
    from .model import Model

VARIANTS = 5
"""Number of different size variants that `default_bindings` offers."""

_MAX_BYTES = 1 << 31

# Sizes of open dimensions by what they are, one per variant. The first two are the ones to test with; the
# others are tried when a model refuses those (a hidden size limit, a window, a sample rate).
_SIZES: dict[str, tuple[int, ...]] = {
    "batch": (2, 3, 1, 1, 1),
    "sequence": (8, 12, 16, 64, 1),
    "encoder": (10, 14, 16, 64, 1),
    "past": (4, 6, 16, 64, 1),
    "image": (64, 96, 224, 256, 32),  # multiples of 32: skip connections meet again after downsampling
    "volume": (32, 64, 32, 64, 32),
    "frames": (64, 96, 3000, 128, 100),
    "audio": (4000, 6400, 16000, 3200, 480000),
    "other": (4, 6, 8, 16, 1),
}

_NAMES: tuple[tuple[str, str], ...] = (
    ("past", r"past|cache|kv_?len"),
    ("batch", r"batch|^(bs|b|n)\d*$"),
    ("image", r"height|width|^(h|w)\d*$"),
    ("encoder", r"enc(oder)?_|source|src|memory"),
    ("sequence", r"seq|len|token|time|text|target|^(s|t|l)$"),
)


def sample_inputs(
    model: Model,
    *,
    seed: int,
    bindings: Mapping[str, int] | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
) -> dict[str, np.ndarray]:
    """One set of inputs for `model`.

    Args:
        model: whose inputs are wanted.
        seed: the same seed gives the same inputs. Masks are full for even seeds and padded for odd ones.
        bindings: sizes of open dimensions; those that are missing come from `default_bindings`.
        shapes: whole shapes by input name, over everything else.

    Returns:
        input name → array (bfloat16 and smaller floats as `ml_dtypes`, strings as object arrays).

    Raises:
        ModelError: an input is no tensor, or would take more than 2 GiB.
        UsageError: the bindings give a dimension no size, or a negative one.
    """
    specs = input_specs(model)
    sizes = complete_bindings(model, bindings or {}, variant=0)
    values = {v.name: v for v in model.graph.inputs}
    functions = model.ir.functions
    inputs = {}
    for spec in specs:
        given = (shapes or {}).get(spec.name)
        shape = tuple(given) if given is not None else concrete_shape(spec, sizes)
        width = 8 if spec.dtype == ir.DataType.STRING else max(1, int(spec.dtype.itemsize))
        if math.prod(shape) * width > _MAX_BYTES:
            raise ModelError(
                f"input {spec.name!r} of shape {shape} takes more than 2 GiB",
                hint="give a smaller one with --shape or --dim (in an engine's profile: --max-shapes, --range)",
            )
        uses = uses_of(values[spec.name], functions)
        inputs[spec.name] = _draw(spec, shape, uses, sizes, seed)
    return inputs


def complete_bindings(model: Model, bindings: Mapping[str, int], *, variant: int) -> dict[str, int]:
    """`bindings`, with sizes for the open dimensions that they leave out."""
    return default_bindings(model, variant, given=bindings)


def default_bindings(model: Model, variant: int, *, given: Mapping[str, int] | None = None) -> dict[str, int]:
    """Sizes for the open dimensions of a model's inputs.

    Variants 0 and 1 differ in every dimension; 2 and on are sizes to fall back on when a model cannot be
    run at the first two. What a dimension is follows from its name, then from its use (a spatial dimension of
    a convolution), then from its place. Expressions over other symbols (``past + seq``) follow from those.

    Args:
        model: whose inputs are meant.
        variant: 0 … `VARIANTS` - 1.
        given: sizes that are settled already; they are part of the answer.
    """
    specs = input_specs(model)
    values = {v.name: v for v in model.graph.inputs}
    plain = {s for spec in specs for a in range(len(spec.dims or ())) if (s := spec.symbol(a))}
    sizes = dict(given or {})
    later: list[tuple[InputSpec, int, str]] = []
    for spec in specs:
        spatial = (
            spatial_rank(values[spec.name]) if spec.dtype.is_floating_point() or _is_image(spec) else None
        )
        for axis in range(len(spec.dims or ())):
            symbol = spec.symbol(axis)
            if symbol is None or symbol in sizes:
                continue
            parts = symbols_in(symbol)
            if parts != {symbol} and parts and parts <= plain | sizes.keys():
                continue  # an expression over symbols that get their sizes here
            if _is_total(spec, axis, symbol):
                later.append((spec, axis, symbol))
                continue
            sizes[symbol] = _SIZES[_kind(spec, axis, symbol, spatial)][variant % VARIANTS]
    for spec, _, symbol in later:
        sizes.setdefault(symbol, _total_length(specs, sizes, variant, spec))
    for symbol in sorted(plain - sizes.keys()):
        if evaluate(symbol, sizes) is None:  # what looked like an expression is none after all
            sizes[symbol] = _SIZES["other"][variant % VARIANTS]
    return sizes


def dimension_kinds(model: Model) -> dict[str, str]:
    """What the open dimensions of a model's inputs seem to be, by symbol.

    Returns:
        symbol → `batch`, `sequence`, `encoder`, `past`, `image`, `volume`, `frames`, `audio`, `other`, or
        `total` for one that follows from others. Expressions over other symbols are not listed.
    """
    specs = input_specs(model)
    values = {v.name: v for v in model.graph.inputs}
    plain = {s for spec in specs for a in range(len(spec.dims or ())) if (s := spec.symbol(a))}
    kinds: dict[str, str] = {}
    for spec in specs:
        floating = spec.dtype.is_floating_point() or _is_image(spec)
        spatial = spatial_rank(values[spec.name]) if floating else None
        for axis in range(len(spec.dims or ())):
            symbol = spec.symbol(axis)
            if symbol is None or symbol in kinds:
                continue
            parts = symbols_in(symbol)
            if parts != {symbol} and parts and parts <= plain:
                continue
            total = _is_total(spec, axis, symbol)
            kinds[symbol] = "total" if total else _kind(spec, axis, symbol, spatial)
    return kinds


def _kind(spec: InputSpec, axis: int, symbol: str, spatial: int | None) -> str:
    """Which row of the table of sizes a dimension takes."""
    rank = len(spec.dims or ())
    named = symbol != f"{spec.name}_dim_{axis}"
    if named:
        for kind, pattern in _NAMES:
            if re.search(pattern, symbol.lower()) and not (kind == "sequence" and spatial and axis > 0):
                return "volume" if kind == "image" and rank == 5 else kind
    if spatial is not None and axis >= rank - spatial and axis > 0:
        if spatial == 1:
            channels = (spec.dims or ())[1] if rank == 3 else 1
            return "audio" if channels == 1 else "frames"
        return "volume" if spatial == 3 else "image"
    if axis == 0 and rank > 1:
        return "batch"
    if re.search("past|cache", spec.name.lower()) and axis > 0:
        return "past"
    if re.search(r"encoder|memory", spec.name.lower()) and axis > 0:
        return "encoder"
    if rank == 1 and not re.search("pos|cache|ids", spec.name.lower()):
        return "batch"
    return "sequence"


def _is_total(spec: InputSpec, axis: int, symbol: str) -> bool:
    """Whether a dimension counts past and new positions together."""
    unnamed = symbol == f"{spec.name}_dim_{axis}"
    mask = "mask" in spec.name.lower() and axis > 0 and "encoder" not in spec.name.lower()
    return "total" in symbol.lower() or (mask and (unnamed or not re.search("batch|seq", symbol.lower())))


def _total_length(specs: Sequence[InputSpec], sizes: Mapping[str, int], variant: int, spec: InputSpec) -> int:
    """Past length plus the number of new tokens, as the other inputs have them."""
    past = new = 0
    for other in specs:
        for axis in range(1, len(other.dims or ())):
            size = evaluate(other.symbol(axis) or "", sizes)
            if size is None:
                continue
            symbol = other.symbol(axis) or ""
            if re.search("past|cache", symbol.lower()) and symbols_in(symbol) == {symbol}:
                past = size
            elif other.dtype.is_integer() and other is not spec and len(other.dims or ()) == 2:
                new = new or size
    return past + (new or _SIZES["sequence"][variant % VARIANTS])


def _is_image(spec: InputSpec) -> bool:
    return spec.dtype in (ir.DataType.UINT8, ir.DataType.INT8) and len(spec.dims or ()) >= 3


# --- Values --------------------------------------------------------------------------------------------


def _draw(
    spec: InputSpec, shape: tuple[int, ...], uses: list[Use], sizes: Mapping[str, int], seed: int
) -> np.ndarray:
    """Values for one input."""
    name_bits = np.frombuffer(hashlib.sha256(spec.name.encode()).digest()[:16], dtype=np.uint32)
    rng = np.random.default_rng([seed, *name_bits.tolist()])
    kind = spec.dtype
    if kind == ir.DataType.STRING:
        return np.array([f"word{i}" for i in rng.integers(0, 50, shape).reshape(-1)], object).reshape(shape)
    dtype: np.dtype = kind.numpy()
    whole = kind.is_integer() or kind == ir.DataType.BOOL

    for use in uses:
        recipe = RECIPES.get(use.place) if use.direct else None
        if recipe is not None:
            value = recipe(Request(use.node, use.index, shape, sizes, rng))
            if value is not None and np.size(value) == math.prod(shape):
                return np.asarray(value).reshape(shape).astype(dtype)
    if kind == ir.DataType.BOOL:
        return _mask(shape, rng, full=seed % 2 == 0)
    bounds = limits(uses, sizes)
    lowered = spec.name.lower()
    if bounds is not None:
        low, high = bounds
        if re.search("position|pos_id|cache_pos", lowered):
            span = np.arange(shape[-1] if shape else 1) % (high - low + 1) + low
            return np.broadcast_to(span if shape else span[0], shape).astype(dtype)
        if not ("mask" in lowered and high >= 1 and low <= 0):
            return rng.integers(low, high + 1, shape).astype(dtype)
    if "mask" in lowered or (whole and _acts_as_mask(uses)):
        kept = _mask(shape, rng, full=seed % 2 == 0)
        if not whole and _is_added(uses):
            return np.where(kept, 0.0, -10000.0).astype(dtype)
        return kept.astype(dtype)
    domains = [d for use in uses if use.direct and (d := interval(use.node, use.index)) is not None]
    if domains:
        low_end, high_end = max(d[0] for d in domains), min(d[1] for d in domains)
        if whole:
            low_int = math.ceil(low_end) if low_end >= 0 else 0
            return rng.integers(low_int, max(low_int, math.floor(high_end)) + 1, shape).astype(dtype)
        return rng.uniform(low_end, max(low_end, high_end), shape).astype(dtype)
    if whole:
        return _integers(spec, shape, rng).astype(dtype)
    if kind in (ir.DataType.COMPLEX64, ir.DataType.COMPLEX128):
        return (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)).astype(dtype)
    return np.asarray(rng.standard_normal(shape)).astype(dtype)


def _integers(spec: InputSpec, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Integers nothing is known about."""
    if spec.dtype == ir.DataType.UINT8:
        return rng.integers(0, 256, shape)
    if spec.dtype == ir.DataType.INT8:
        return rng.integers(-128, 128, shape)
    if re.search("timestep", spec.name.lower()):
        return rng.integers(0, 1000, shape)
    if "position" in spec.name.lower() and shape:
        return np.broadcast_to(np.arange(shape[-1]), shape)
    if not shape or spec.dtype.bitwidth < 8:
        return rng.integers(1, 4, shape)
    return rng.integers(0, 10, shape)


def _mask(shape: tuple[int, ...], rng: np.random.Generator, *, full: bool) -> np.ndarray:
    """True for the valid positions along the last axis: all of them, or a prefix of at least one."""
    if not shape:
        return np.asarray(full)
    if full:
        return np.ones(shape, bool)
    lengths = rng.integers(1, max(1, shape[-1]) + 1, shape[:-1])
    kept: np.ndarray = np.arange(shape[-1]) < lengths[..., None]
    return kept


def _acts_as_mask(uses: list[Use]) -> bool:
    """Integers that are subtracted from one, cast to bool, or choose in Where."""
    for use in uses:
        node = use.node
        if node.domain != "" or use.scale != 1.0:
            continue
        if node.op_type == "Cast" and node.attributes["to"].as_int() == ir.DataType.BOOL:
            return True
        if node.op_type == "Sub" and use.index == 1 and use.low == use.high == 0:
            first = small_constant(node.inputs[0])
            if first is not None and first.size == 1 and float(first.reshape(-1)[0]) == 1.0:
                return True
    return False


def _is_added(uses: list[Use]) -> bool:
    """Whether a mask is added to scores (0 keeps, very negative drops) rather than multiplied."""
    first = next((u for u in uses if u.node.op_type in ("Add", "Mul", "Sub", "Where", "Attention")), None)
    return first is not None and first.node.op_type in ("Add", "Attention")
