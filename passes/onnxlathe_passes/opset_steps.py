"""What changed in the operators from one version of the standard operator set to the next.

A version of an operator is compared with the one before it by its schemas: where nothing was taken away
and no default changed, a node means the same in both. What the schemas do not tell is written down here:
steps that need the node to be adapted, and steps that keep their signature and change their meaning.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
import onnx
import onnx_ir as ir

from onnxlathe.infer import constant, dims_of

OLDEST = 7
"""Before it, binary operators broadcast by an attribute, and much else was different."""


class Refused(Exception):
    """A node would mean something else in the newer version; the message says what."""


@dataclass
class Draft:
    """A node as it will be: changed step by step, and written to the graph only when all steps are possible.

    Attributes:
        node: the node as it is.
        op_type: operator type.
        inputs: values, `None`, or arrays that become constants.
        attributes: by name.
        changed: whether it differs from the node.
    """

    node: ir.Node
    op_type: str
    inputs: list[Any]
    attributes: dict[str, ir.Attr]
    changed: bool = False

    @classmethod
    def of(cls, node: ir.Node) -> Draft:
        return cls(node, node.op_type, list(node.inputs), dict(node.attributes))

    def get(self, name: str, default: Any = None) -> Any:
        """An attribute's value; refused where it is given only by the caller of a function."""
        found = self.attributes.get(name)
        if found is not None and found.is_ref():
            raise Refused(f"its attribute {name} is a parameter of a function")
        return default if found is None else found.value

    def set(self, name: str, value: Any) -> None:
        made = ir.node("", [], {name: value}).attributes[name]
        self.attributes[name] = made
        self.changed = True

    def drop(self, name: str) -> None:
        self.changed |= self.attributes.pop(name, None) is not None

    def to_input(self, name: str, index: int, dtype: Any = np.int64) -> None:
        """Turn an attribute, where it is given, into a constant input."""
        value = self.get(name)
        if value is None:
            return
        self.put(index, np.array(value, dtype))
        self.drop(name)

    def put(self, index: int, value: Any) -> None:
        self.inputs.extend([None] * (index + 1 - len(self.inputs)))
        self.inputs[index] = value
        self.changed = True

    def type_of_x(self) -> Any:
        """numpy's type for the elements of the first input."""
        dtype = self.inputs[0].dtype
        if dtype is None:
            raise Refused("the element type of its input is not known")
        return dtype.numpy()

    def uses_output(self, index: int) -> bool:
        return any(v.name or v.uses() or v.is_graph_output() for v in self.node.outputs[index:])


def advance(draft: Draft, old: int, new: int) -> None:
    """Take a node of the default domain from one version of the operator set to a later one.

    Raises:
        Refused: it would not mean the same.
    """
    known = versions(draft.op_type)
    # An operator that is newer than its model's operator set (ONNX Runtime writes such) means what it began as.
    version = max(old, known[0]) if known else old
    while True:
        following = [
            v for v in versions(draft.op_type) if version < v <= new
        ]  # a step may change the operator
        if not following:
            return
        step = following[0]
        change = STEPS.get((draft.op_type, step))
        if change is None:
            _same_signature(draft, version, step)
        else:
            change(draft)
        version = step


@functools.cache
def versions(op_type: str) -> tuple[int, ...]:
    """The versions of the operator set in which an operator was changed (or deprecated)."""
    found: list[int] = []
    version = onnx.defs.onnx_opset_version()
    while version > 0:
        try:
            version = onnx.defs.get_schema(op_type, version).since_version
        except onnx.defs.SchemaError:
            break
        found.append(version)
        version -= 1
    return tuple(reversed(found))


@functools.cache
def changes(op_type: str, old: int, new: int) -> bool:
    """Whether an operator was changed after version `old`, up to `new`."""
    return any(old < version <= new for version in versions(op_type))


@dataclass(frozen=True)
class _Signature:
    """What a version of an operator takes, and in which of its attributes it differs from the one before."""

    deprecated: bool
    attributes: frozenset[str]
    required: frozenset[str]
    new_defaults: frozenset[str]
    inputs: int
    outputs: int


@functools.cache
def _signature(op_type: str, version: int, step: int) -> _Signature:
    old, new = onnx.defs.get_schema(op_type, version), onnx.defs.get_schema(op_type, step)
    before, after = old.attributes, new.attributes
    return _Signature(
        new.deprecated,
        frozenset(after),
        frozenset(name for name, a in after.items() if a.required),
        frozenset(n for n, a in after.items() if n in before and before[n].default_value != a.default_value),
        new.max_input,
        new.max_output,
    )


def _same_signature(draft: Draft, version: int, step: int) -> None:
    new = _signature(draft.op_type, version, step)
    given = draft.attributes.keys()
    if new.deprecated:
        raise Refused(f"it is deprecated in opset {step}")
    if gone := given - new.attributes:
        raise Refused(f"opset {step} has no attribute {min(gone)} for it")
    if missing := new.required - given:
        raise Refused(f"opset {step} requires the attribute {min(missing)}")
    if other := new.new_defaults - given:
        raise Refused(f"the default of its attribute {min(other)} changes in opset {step}")
    if len(draft.inputs) > new.inputs or len(draft.node.outputs) > new.outputs:
        raise Refused(f"opset {step} has fewer inputs or outputs for it")


# Steps.


def _nothing(draft: Draft) -> None:
    """The schemas differ in form, and not in what they mean."""


def _refuse(reason: str) -> Callable[[Draft], NoReturn]:
    def refuse(draft: Draft) -> NoReturn:
        raise Refused(reason)

    return refuse


def _axes_input(draft: Draft) -> None:
    draft.to_input("axes", 1)


def _softmax(draft: Draft) -> None:
    # Until 12 all dimensions from the axis on were one; since 13 the axis alone is meant.
    axis, dims = draft.get("axis", 1), dims_of(draft.inputs[0])
    if dims is None:
        raise Refused("the rank of its input is not known")
    axis %= len(dims) or 1
    if any(d != 1 for d in dims[axis + 1 :]):
        raise Refused("it normalizes over several dimensions at once")
    draft.set("axis", axis)


def _clip(draft: Draft) -> None:
    draft.to_input("min", 1, draft.type_of_x())
    draft.to_input("max", 2, draft.type_of_x())


def _pad(draft: Draft) -> None:
    draft.to_input("pads", 1)
    if draft.get("value"):
        draft.to_input("value", 2, draft.type_of_x())
    draft.drop("value")


def _slice(draft: Draft) -> None:
    draft.to_input("starts", 1)
    draft.to_input("ends", 2)
    draft.to_input("axes", 3)


def _top_k(draft: Draft) -> None:
    draft.set("k", [draft.get("k")])
    draft.to_input("k", 1)


def _split_18(draft: Draft) -> None:
    if len(draft.inputs) < 2 or draft.inputs[1] is None:
        draft.set("num_outputs", len(draft.node.outputs))


def _mask(draft: Draft) -> None:
    if draft.uses_output(1):
        raise Refused("the element type of its mask changes")


def _batch_norm_9(draft: Draft) -> None:
    if draft.get("spatial", 1) != 1:
        raise Refused("it has statistics for each place")
    draft.drop("spatial")


def _batch_norm_14(draft: Draft) -> None:
    if draft.uses_output(1) or len(draft.node.outputs) > 1:
        raise Refused("it is in training mode")


def _conv_transpose(draft: Draft) -> None:
    if draft.get("auto_pad", "NOTSET").startswith("SAME") or draft.get("output_shape"):
        raise Refused("its automatic padding goes to the other side")


def _average_pool(draft: Draft) -> None:
    if draft.get("ceil_mode", 0):
        raise Refused("its average counts differently where its size is rounded up")


def _upsample(draft: Draft) -> None:
    draft.op_type, draft.changed = "Resize", True


def _resize_11(draft: Draft) -> None:
    draft.inputs = [draft.inputs[0], np.zeros(0, np.float32), draft.inputs[1]]
    draft.set("coordinate_transformation_mode", "asymmetric")
    draft.set("nearest_mode", "floor")


def _resize_13(draft: Draft) -> None:
    if draft.get("coordinate_transformation_mode") == "tf_half_pixel_for_nn":
        raise Refused("its coordinate transformation is gone")
    if len(draft.inputs) > 1 and isinstance(draft.inputs[1], np.ndarray):
        draft.put(1, None)


def _scatter(draft: Draft) -> None:
    draft.op_type, draft.changed = "ScatterElements", True


def _grid_sample(draft: Draft) -> None:
    mode = draft.get("mode", "bilinear")
    draft.set("mode", {"bilinear": "linear", "bicubic": "cubic"}.get(mode, mode))


def _roi_align(draft: Draft) -> None:
    draft.set("coordinate_transformation_mode", "output_half_pixel")


def _group_norm(draft: Draft) -> None:
    # Scale and bias were for groups, and are for channels.
    dims, groups = dims_of(draft.inputs[0]), draft.get("num_groups")
    for index in (1, 2):
        array = constant(draft.inputs[index])
        if array is None or dims is None or not isinstance(dims[1], int):
            raise Refused("its scale and bias are for groups, and not constant")
        draft.put(index, np.repeat(array, dims[1] // groups))


# ONNX Runtime 1.31 runs these only as they were before.
_NO_KERNEL = (
    "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "RoiAlign",
    "GlobalLpPool", "MaxRoiPool",
)  # fmt: skip
_REDUCTIONS = ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "SumSquare")

STEPS: dict[tuple[str, int], Callable[[Draft], None]] = {
    **{(f"Reduce{kind}", 18): _axes_input for kind in _REDUCTIONS},
    ("ReduceSum", 13): _axes_input,
    ("Squeeze", 13): _axes_input,
    ("Unsqueeze", 13): _axes_input,
    ("Split", 13): lambda draft: draft.to_input("split", 1),
    ("Split", 18): _split_18,
    **{(kind, 13): _softmax for kind in ("Softmax", "LogSoftmax", "Hardmax")},
    ("Clip", 11): _clip,
    ("Pad", 11): _pad,
    ("Slice", 10): _slice,
    ("TopK", 10): _top_k,
    ("Dropout", 10): _mask,
    ("Dropout", 12): lambda draft: draft.drop("ratio"),
    ("BatchNormalization", 9): _batch_norm_9,
    ("BatchNormalization", 14): _batch_norm_14,
    ("ConvTranspose", 11): _conv_transpose,
    ("AveragePool", 19): _average_pool,
    ("Upsample", 9): lambda draft: draft.to_input("scales", 1, np.float32),
    ("Upsample", 10): _upsample,
    ("Resize", 11): _resize_11,
    ("Resize", 13): _resize_13,
    ("Scatter", 11): _scatter,
    ("GridSample", 20): _grid_sample,
    ("RoiAlign", 16): _roi_align,
    ("Constant", 11): _nothing,
    ("Gemm", 11): _nothing,
    ("MaxPool", 8): _nothing,
    ("OptionalHasElement", 18): _nothing,
    **{(kind, 22): _refuse("ONNX Runtime has no kernel for it from opset 22 on") for kind in _NO_KERNEL},
    ("Scan", 9): _refuse("its scan axes were laid out in another way"),
    ("DFT", 20): _refuse("its axis became an input"),
    ("GroupNormalization", 21): _group_norm,
    ("Attention", 24): _refuse("its masking changed"),
    ("Attention", 25): _refuse("its masking changed"),
}
"""The step of an operator to this version, where the schemas do not say all."""
