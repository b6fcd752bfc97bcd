"""Which operators may compute in a low type, which should not, and why.

Operators that accumulate in float32 inside of themselves (Softmax, LayerNormalization with its stash type,
MatMul and Conv on any GPU) need no protection: their operands and results fit, and nothing in between is
rounded. What is protected are the same formulas spelled out, where every intermediate result is rounded, and
operators whose results leave float16's range of ±65504.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator

import onnx
import onnx_ir as ir

from onnxlathe.infer import dims_of, schema_of
from onnxlathe.precision import BFLOAT16, FLOAT16, FLOAT32, LOW_TYPES, type_name
from onnxlathe.rewrite import attribute, is_constant, scalar_value

TRACKED = frozenset({FLOAT32, *LOW_TYPES})
"""The types among which precision chooses."""

HEAVY = frozenset(
    {
        "MatMul", "Gemm", "Conv", "ConvTranspose", "Einsum", "Attention", "LSTM", "GRU", "RNN",
        "DeformConv", "LinearAttention",
    }
)  # fmt: skip
"""What makes a low type worth while; these take it wherever nothing speaks against it."""

LEAN_WIDE = frozenset(
    {
        "Softmax", "LogSoftmax", "LayerNormalization", "RMSNormalization", "InstanceNormalization",
        "GroupNormalization", "BatchNormalization", "ReduceMean", "GlobalAveragePool", "LpNormalization",
        "MeanVarianceNormalization", "Sigmoid", "Tanh", "Erf", "Gelu", "Sqrt", "Div", "Reciprocal", "Log",
        "Softplus",
    }
)  # fmt: skip
"""What gains from float32 and takes it where that costs no Cast."""

AGNOSTIC = frozenset({"Shape", "Size"})
"""Operators that do not look at the numbers."""

NO_KERNEL = {
    (operator, dtype): f"TensorRT-RTX cannot build it in {type_name(dtype)}"
    for dtype, operators in {
        BFLOAT16: ("Celu", "ConvTranspose", "GRU", "HardSwish", "LpNormalization", "Mish", "Shrink"),
        FLOAT16: ("Celu",),
    }.items()
    for operator in operators
}
"""What a schema allows, but the target has nothing to run it with (tensorrt-rtx 1.7: what its table of support says
no to, and yes in float32)."""

KEPT_INPUTS = {"Resize": (1, 2), "Upsample": (1,), "Dropout": (1,), "OneHot": (0, 1)}
"""Operands that stay float32 whatever the node computes in: sizes, ratios and positions."""

KEPT_OUTPUTS = {"LayerNormalization": (1, 2)}
"""Results that stay float32: the statistics, as stash_type says."""

_BIAS = {
    "Conv": 2, "ConvTranspose": 2, "Gemm": 2, "LayerNormalization": 2, "InstanceNormalization": 2,
    "GroupNormalization": 2, "BatchNormalization": 2, "LSTM": 3, "GRU": 3, "RNN": 3,
}  # fmt: skip
"""The operand that is added at the end."""

_DTYPE_ATTRIBUTE = frozenset(
    {
        "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "EyeLike", "Bernoulli",
        "Multinomial", "HannWindow", "HammingWindow", "BlackmanWindow", "MelWeightMatrix",
    }
)  # fmt: skip

_SUMS = frozenset(
    {
        "ReduceSum", "ReduceSumSquare", "ReduceL1", "ReduceL2", "ReduceProd", "ReduceLogSum",
        "ReduceLogSumExp",
    }
)  # fmt: skip
_PROTECTED = {
    "Exp": "e^x leaves float16's range from x = 11.1 on",
    "CumSum": "a running sum grows with its length",
    "CumProd": "a running product grows with its length",
    "ReduceLogSumExp": "e^x leaves float16's range from x = 11.1 on",
    "SoftmaxCrossEntropyLoss": "a loss is a sum of logarithms",
    "NegativeLogLikelihoodLoss": "a loss is a sum of logarithms",
    "Det": "a determinant is a product of many factors",
    "DFT": "a transform is a sum over its whole length",
    "STFT": "a transform is a sum over its whole length",
    "RoiAlign": "coordinates beyond 2048 are not exact in 11 bits",
    "GridSample": "positions between pixels need more than 11 bits",
    "AffineGrid": "positions between pixels need more than 11 bits",
    "LpPool": "powers and sums leave float16's range",
}
_TRIGONOMETRY = frozenset({"Sin", "Cos", "Tan"})
_SMALL_SUM = 256
"""Sums of at most so many elements are not protected."""
_HEAD = 50
"""A head has at most one part in so many of all weights."""
_SMALL_WEIGHT = 1 << 16
"""Elements of a constant that still looks like a table of frequencies and not like a trained weight."""


@functools.cache
def slot_types(
    op_type: str, domain: str, opset: int
) -> tuple[tuple[tuple[frozenset[str], ...], bool], tuple[tuple[frozenset[str], ...], bool]] | None:
    """Element types that the schema allows: of each formal input, then output; whether the last repeats."""
    schema = schema_of(op_type, domain, opset)
    if schema is None:
        return None
    named = {t.type_param_str: frozenset(t.allowed_type_strs) for t in schema.type_constraints}
    variadic = onnx.defs.OpSchema.FormalParameterOption.Variadic

    def side(
        formals: Iterable[onnx.defs.OpSchema.FormalParameter],
    ) -> tuple[tuple[frozenset[str], ...], bool]:
        listed = list(formals)
        types = tuple(named.get(f.type_str, frozenset({f.type_str})) for f in listed)
        return types, bool(listed) and listed[-1].option == variadic

    return side(schema.inputs), side(schema.outputs)


def allows(side: tuple[tuple[frozenset[str], ...], bool], index: int, dtype: ir.DataType) -> bool:
    """Whether a formal parameter may be a tensor of a type."""
    types, repeats = side
    if index >= len(types):
        if not repeats:
            return False
        index = len(types) - 1
    return f"tensor({type_name(dtype).replace('float32', 'float')})" in types[index]


def unsupported(node: ir.Node, opset: int, low: ir.DataType) -> str:
    """Why a node cannot compute in a type at all; empty if it can."""
    kind = type_name(low)
    sides = slot_types(node.op_type, node.domain, opset)
    if sides is None:
        name = f"{node.domain}::{node.op_type}" if node.domain else node.op_type
        hint = " (the pass legalize writes it out)" if node.domain == "com.microsoft" else ""
        return f"nothing says that {name} takes {kind}{hint}"
    if node.domain == "" and node.op_type in _DTYPE_ATTRIBUTE:
        return "its result has the type that an attribute says"
    if node.domain == "" and (node.op_type, low) in NO_KERNEL:
        return NO_KERNEL[node.op_type, low]
    if node.op_type == "BatchNormalization" and attribute(node, "training_mode", opset):
        return "it trains"
    for side, values in ((sides[0], node.inputs), (sides[1], node.outputs)):
        for index, value in enumerate(values):
            if value is not None and not isinstance(value.type, ir.TensorType) and value.type is not None:
                return "sequences and optional values keep their type"
            if value is None or value.dtype not in TRACKED or is_kept(node, index, side is sides[1]):
                continue
            if not allows(side, index, low):
                return f"{node.op_type} of opset {opset} does not take {kind}"
    return ""


def is_kept(node: ir.Node, index: int, output: bool) -> bool:
    """Whether an operand (or result) stays float32 whatever the node computes in."""
    if node.domain != "":
        return False
    table = KEPT_OUTPUTS if output else KEPT_INPUTS
    return index in table.get(node.op_type, ())


def is_bias(node: ir.Node, index: int) -> bool:
    """Whether an operand is added to a product.

    Float16 changes such an operand by 2⁻²⁵ at most, as it does the sum: what vanishes there is no further loss.
    (Keys in attention have such biases, since nothing ever moves them in training, and folded normalizations.)
    An epsilon is another matter: it is a single number, and something is divided by the sum.
    """
    if node.domain != "":
        return False
    if node.op_type == "Add":
        other = node.inputs[1 - index]
        maker = other.producer() if other is not None else None
        return maker is not None and maker.domain == "" and maker.op_type in HEAVY
    return _BIAS.get(node.op_type) == index


def protection(node: ir.Node, opset: int) -> str:
    """Why a node should stay in float32; empty if nothing speaks against a low type."""
    if node.domain != "":
        return ""
    op = node.op_type
    if op in _PROTECTED:
        return _PROTECTED[op]
    if op == "Pow":
        exponent = scalar_value(node.inputs[1]) if len(node.inputs) > 1 else None
        if exponent is not None and 0 < exponent <= 1:
            return ""
        return (
            "a power leaves float16's range" if exponent is None or exponent > 0 else "a quotient of powers"
        )
    if op in _SUMS:
        count = _reduced(node, opset)
        if count is not None and count <= _SMALL_SUM and op == "ReduceSum":
            return ""
        return f"a sum over {count if count is not None else 'many'} elements"
    if op == "ReduceMean" and _is_statistic(node):
        return "statistics of a normalization"
    if op == "Mul" and node.inputs[0] is node.inputs[1] and _feeds(node, _SUMS | {"ReduceMean"}):
        return "squares that are summed up leave float16's range from |x| = 256 on"
    if op in ("Sqrt", "Reciprocal", "Div") and _divides_by_statistic(node):
        return "statistics of a normalization"
    if op in _TRIGONOMETRY:
        return "an angle that is off by its 11th bit is another angle"
    return ""


def _reduced(node: ir.Node, opset: int) -> int | None:
    """How many elements a reduction takes together, where that is known."""
    data = node.inputs[0]
    dims = dims_of(data) if data is not None else None
    if dims is None:
        return None
    axes = attribute(node, "axes", opset)
    if axes is None and len(node.inputs) > 1 and node.inputs[1] is not None:
        from onnxlathe.infer import constant

        array = constant(node.inputs[1])
        if array is None:
            return None
        axes = [int(a) for a in array.reshape(-1)]
    count = 1
    for axis in axes or range(len(dims)):
        dim = dims[axis] if -len(dims) <= axis < len(dims) else None
        if not isinstance(dim, int):
            return None
        count *= dim
    return count


def _feeds(node: ir.Node, operators: frozenset[str] | set[str]) -> bool:
    return any(user.op_type in operators for value in node.outputs for user, _ in value.uses())


def _is_statistic(node: ir.Node) -> bool:
    """Whether a mean is subtracted from what it is the mean of, or is one of squares."""
    data = node.inputs[0]
    if data is None:
        return False
    maker = data.producer()
    if maker is not None and (
        maker.op_type == "Pow" or (maker.op_type == "Mul" and maker.inputs[0] is maker.inputs[1])
    ):
        return True
    return any(user.op_type == "Sub" and user.inputs[0] is data for user, _ in node.outputs[0].uses())


def _divides_by_statistic(node: ir.Node) -> bool:
    """Whether what is rooted or divided by comes straight from a mean or sum of squares."""
    value = node.inputs[1] if node.op_type == "Div" else node.inputs[0]
    for _ in range(4):
        maker = value.producer() if value is not None else None
        if maker is None:
            return False
        if maker.op_type in _SUMS or maker.op_type == "ReduceMean":
            source = maker.inputs[0].producer() if maker.inputs[0] is not None else None
            return maker.op_type != "ReduceSum" or (
                source is not None and source.op_type in ("Pow", "Exp", "Mul", "Abs")
            )
        if maker.op_type not in ("Add", "Sqrt", "Clip", "Max", "Reciprocal", "Expand"):
            return False
        value = next((v for v in maker.inputs if v is not None and not is_constant(v)), None)
    return False


def angles(nodes: Iterable[ir.Node]) -> Iterator[tuple[ir.Node, str]]:
    """What computes the angles that Sin and Cos take: positions times frequencies, not a trained layer."""
    front = [n for n in nodes if n.domain == "" and n.op_type in _TRIGONOMETRY]
    seen = set(front)
    while front:
        for value in front.pop().inputs:
            maker = value.producer() if value is not None else None
            if maker is None or maker in seen or _has_weight(maker) or maker.op_type in ("Cast", "Constant"):
                continue
            seen.add(maker)
            if any(v is not None and v.dtype in TRACKED for v in maker.outputs):
                yield maker, "it computes angles"
                front.append(maker)


def indices(nodes: Iterable[ir.Node]) -> Iterator[tuple[ir.Node, str]]:
    """Nodes whose results all become integers: positions and sizes, which must be exact."""
    marked: set[ir.Node] = set()
    for node in reversed(list(nodes)):
        if node.op_type in HEAVY or not node.outputs:
            continue
        users = [user for value in node.outputs for user, _ in value.uses()]
        if not users or any(v.is_graph_output() for v in node.outputs):
            continue
        if all(user in marked or _becomes_integer(user) for user in users) and any(
            v.dtype in TRACKED for v in node.outputs
        ):
            marked.add(node)
            yield node, "its result becomes an integer"


def heads(graph: ir.Graph) -> set[ir.Node]:
    """The last matrix products before the outputs, where their weights are few: poolers and projections.

    In float32 they cost next to nothing, and may save a Cast.
    """
    last: list[tuple[ir.Node, int]] = []
    followed: set[ir.Node] = set()
    total = 0
    for node in reversed(graph):
        heavy = node.domain == "" and node.op_type in HEAVY
        users = [user for value in node.outputs for user, _ in value.uses()]
        size = sum(_weight_size(value) for value in node.inputs) if heavy else 0
        total += size
        if any(user in followed or user.op_type in HEAVY or user.graph is not graph for user in users):
            followed.add(node)
        elif size:
            last.append((node, size))
    return {node for node, size in last if size * _HEAD < total}


def _weight_size(value: ir.Value | None) -> int:
    return value.const_value.size if value is not None and value.const_value is not None else 0


def _becomes_integer(node: ir.Node) -> bool:
    return (
        node.domain == ""
        and node.op_type == "Cast"
        and bool(node.outputs[0].dtype is not None and node.outputs[0].dtype.is_integer())
    )


def _has_weight(node: ir.Node) -> bool:
    return any(_weight_size(value) > _SMALL_WEIGHT for value in node.inputs)
