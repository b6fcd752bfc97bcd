"""Recipes: a TOML file that holds a pipeline and the options that go with it.

passes = "shapes,fold,tidy,mine"
plugins = ["my_passes.py"]
shapes = ["input:2x3x224x224"]

[pipelines]
mine = "fuse(layernorm,gelu),tidy"

[precision]
type = "fp16"
keep = ["fp32:Softmax"]

[engine]
range = ["batch=1:8:32"]
workspace = "4GiB"
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from onnxlathe.errors import UsageError


class Recipe(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """What a recipe may say; every field is also an option of the command line, which wins.

    Attributes:
        passes: the pipeline to run.
        pipelines: further pipelines by name, usable in `passes` and in each other.
        plugins: files or modules of passes, relative to the recipe's folder.
        shapes: fixed shapes of inputs, as `--shape` takes them.
        dims: fixed symbolic dimensions, as `--dim` takes them.
        freeze: whether `shapes` and `dims` are written into the model.
        atol: absolute tolerances, as `--atol` takes them.
        rtol: relative tolerances, as `--rtol` takes them.
        on_mismatch: `fail` or `skip`.
        precision: options of mixed precision by their names on the command line, without the dashes;
            `type` stands for `precision`. Its file of constraints is relative to the recipe's folder.
        engine: options of the engine's build in the same way. Its timing cache, its log and libraries of
            plugins are relative to the recipe's folder.
    """

    passes: str = "default"
    pipelines: dict[str, str] = {}
    plugins: tuple[str, ...] = ()
    shapes: tuple[str, ...] = ()
    dims: tuple[str, ...] = ()
    freeze: bool = False
    atol: tuple[str, ...] = ()
    rtol: tuple[str, ...] = ()
    on_mismatch: str = "fail"
    precision: dict[str, Any] = {}
    engine: dict[str, Any] = {}


def load_recipe(path: Path) -> Recipe:
    """Read a recipe.

    Raises:
        UsageError: the file is missing, not TOML, or says something that recipes do not have.
    """
    try:
        recipe = msgspec.toml.decode(path.read_bytes(), type=Recipe)
    except OSError as error:
        raise UsageError(f"cannot read the recipe '{path}': {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"recipe '{path}' is no text in UTF-8") from error
    except msgspec.DecodeError as error:  # covers ValidationError
        raise UsageError(f"recipe '{path}': {error}", hint="see docs/pipelines.md for its fields") from error
    plugins = tuple(
        str(path.parent / spec) if spec.partition(":")[0].endswith(".py") else spec for spec in recipe.plugins
    )
    return msgspec.structs.replace(
        recipe,
        plugins=plugins,
        precision=_beside(path, recipe.precision, "constraints"),
        engine=_beside(path, recipe.engine, "timing-cache", "build-log", "plugins"),
    )


def _beside(recipe: Path, table: dict[str, Any], *files: str) -> dict[str, Any]:
    """The table with its files looked for from the recipe's folder on."""

    def found(value: Any) -> Any:
        if isinstance(value, list):
            return [found(each) for each in value]
        return str(recipe.parent / value) if isinstance(value, str) else value

    return {k: found(v) if k.replace("_", "-") in files else v for k, v in table.items()}
