"""The reduced model as a folder that anybody can run: attached to a bug report, it explains itself."""

from __future__ import annotations

import json
import platform
import shutil
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np

from onnxlathe.debug.ask import Hearing
from onnxlathe.debug.reduce import Reduction
from onnxlathe.errors import LatheError
from onnxlathe.model import save

_SCRIPT = '''\
"""{title}

Needs nothing but onnx and {module} {version}:  python reproduce.py
"""

import sys
from pathlib import Path

import onnx
import {module} as trt

PROFILE = {profile}

path = Path(__file__).parent / "model.onnx"
print(onnx.printer.to_text(onnx.load(path, load_external_data=False)))
print("{module}", trt.__version__)

logger = trt.Logger(trt.Logger.WARNING)
if hasattr(trt, "init_libnvinfer_plugins"):
    trt.init_libnvinfer_plugins(logger, "")
builder = trt.Builder(logger)
flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
network = builder.create_network(0 if flag is None else 1 << int(flag))
parser = trt.OnnxParser(network, logger)
if not parser.parse_from_file(str(path)):
    for i in range(parser.num_errors):
        error = parser.get_error(i)
        print(f"REFUSED by the parser: node {{error.node_name()!r}} ({{error.node_operator()}}): {{error.desc()}}")
    sys.exit(1)
config = builder.create_builder_config()
if PROFILE["shapes"] or PROFILE["values"]:
    profile = builder.create_optimization_profile()
    for name, sizes in PROFILE["shapes"].items():
        profile.set_shape(name, *sizes)
    for name, values in PROFILE["values"].items():
        profile.set_shape_input(name, *values)
    config.add_optimization_profile(profile)
if builder.build_serialized_network(network, config) is None:
    print("REFUSED by the builder")
    sys.exit(1)
print("accepted")
'''

_NUMBERS = '''\
"""{title}

Needs onnxlathe:  python reproduce.py
"""

import subprocess
import sys
from pathlib import Path

here = Path(__file__).parent
sys.exit(subprocess.run(["optimize", *{words}], cwd=here).returncode)
'''


def write_refusal(
    folder: Path, reduction: Reduction, hearing: Hearing, *, title: str, module: str, version: str
) -> Path:
    """Write the model and a script that shows the refusal.

    Args:
        folder: where to; replaced if it is there.
        reduction: what is left.
        hearing: what the target says about it.
        title: the fault in a sentence.
        module, version: of the target.

    Raises:
        LatheError: the folder cannot be written.
    """
    profile = hearing.profile or {"shapes": {}, "values": {}}
    script = _SCRIPT.format(
        title=_plain(title), module=module, version=version, profile=json.dumps(profile, indent=4)
    )
    said = "\n".join(f"    {line}" for c in hearing.complaints for line in c.message.splitlines())
    return _write(folder, reduction, title, script, f"{module} says:\n\n{said}\n\n")


def write_numbers(folder: Path, reduction: Reduction, *, title: str, words: list[str]) -> Path:
    """Write the model, its inputs, and a script that compares.

    Args:
        folder: where to; replaced if it is there.
        reduction: what is left.
        title: the fault in a sentence.
        words: of the `optimize` command that shows it in this folder.

    Raises:
        LatheError: the folder cannot be written.
    """
    return _write(folder, reduction, title, _NUMBERS.format(title=_plain(title), words=words), "")


def write_model(folder: Path, reduction: Reduction, *, title: str, command: str) -> Path:
    """Write the model on which a user's command fails.

    Raises:
        LatheError: the folder cannot be written.
    """
    return _write(folder, reduction, title, "", f"    {command}\n\n")


def _write(folder: Path, reduction: Reduction, title: str, script: str, said: str) -> Path:
    try:
        with tempfile.TemporaryDirectory(prefix=".onnxlathe-", dir=folder.resolve().parent) as temporary:
            work = Path(temporary) / "reduced"
            work.mkdir()
            save(reduction.model, work / "model.onnx")
            if reduction.feeds:
                np.savez(work / "inputs.npz", **reduction.feeds)  # type: ignore[arg-type,unused-ignore]
            if script:
                (work / "reproduce.py").write_text(script, encoding="utf-8")
            (work / "README.txt").write_text(
                f"{title}\n\n{said}Reduced: {reduction.sentence()}.\n"
                "model.onnx    the smallest model that shows it\n"
                + ("inputs.npz    inputs as recorded in the whole model\n" if reduction.feeds else "")
                + ("reproduce.py  shows it\n" if script else "")
                + f"\n{_versions()}\n",
                encoding="utf-8",
            )
            if folder.exists():
                if not (folder / "README.txt").exists():
                    raise LatheError(
                        f"'{folder}' is there already, and was not written by this program",
                        hint="name another folder with -o",
                    )
                shutil.rmtree(folder)
            work.rename(folder)
    except OSError as error:
        raise LatheError(f"cannot write '{folder}': {error.strerror or error}") from None
    return folder


def _plain(title: str) -> str:
    return title.replace("\\", "/").replace('"""', "'''")


def _versions() -> str:
    names = ("onnxlathe", "onnx", "tensorrt-rtx", "tensorrt", "onnxruntime")
    found = []
    for name in names:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return f"Python {platform.python_version()}, {platform.system()} {platform.machine()}, " + ", ".join(
        found
    )
