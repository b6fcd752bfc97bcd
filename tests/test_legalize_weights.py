"""Weights of a few bits (MatMulNBits, GatherBlockQuantized) against ONNX Runtime's kernels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from legalize_helpers import Refusing, agree, in_runtime, legalized, same_as_before, single
from onnxlathe.infer import infer_model
from onnxlathe.model import Model
from onnxlathe.rewrite import Context
from onnxlathe.target import find_target
from onnxlathe_passes.legalize import Legalize
from onnxlathe_passes.legalize.judge import TargetJudge
from onnxlathe_passes.legalize.run import Legalizing

F, F16 = 1, 10
MS = "com.microsoft"
RNG = np.random.default_rng(3)
needs_target = pytest.mark.skipif(not find_target().available, reason="no TensorRT is installed")


def matmul(
    depth: int,
    width: int,
    bits: int = 4,
    block: int = 32,
    zeros: str = "",
    kind: Any = np.float32,
    **more: Any,
) -> tuple[onnx.ModelProto, dict[str, Any]]:
    """A product of two rows; `zeros` are `packed`, `middle` (packed, and what they are by default) or `floats`."""
    blocks = -(-depth // block)
    points: Any = None
    if zeros == "packed":
        points = RNG.integers(0, 256, (width, -(-blocks * bits // 8))).astype(np.uint8)
    if zeros == "middle":
        byte = sum(1 << (bits - 1 + shift) for shift in range(0, 8, bits))
        points = np.full((width, -(-blocks * bits // 8)), byte, np.uint8)
    if zeros == "floats":
        points = RNG.uniform(0, 1 << bits, (width, blocks)).astype(kind)
    feeds = {
        "x": RNG.standard_normal((2, 3, depth)).astype(kind),
        "b": RNG.integers(0, 256, (width, blocks, block * bits // 8)).astype(np.uint8),
        "s": RNG.uniform(0.01, 0.1, (width, blocks)).astype(kind),
        "z": points,
    }
    constants = [n for n in ("b", "s", "z") if feeds[n] is not None]
    element = F16 if kind == np.float16 else F
    attributes = {"K": depth, "N": width, "bits": bits, "block_size": block}
    proto = single("MatMulNBits", feeds, [element], constants=constants, domain=MS, **attributes, **more)
    return proto, feeds


def weights_of(proto: onnx.ModelProto) -> int:
    """The element type of the weights that are dequantized; 0 where none are."""
    types = {t.name: t.data_type for t in proto.graph.initializer}
    found = [types[n.input[0]] for n in proto.graph.node if n.op_type == "DequantizeLinear"]
    return found[0] if found else 0


@pytest.mark.parametrize(
    ("bits", "zeros", "kind"),
    [
        (4, "", onnx.TensorProto.INT4), (4, "middle", onnx.TensorProto.INT4), (4, "packed", onnx.TensorProto.INT8),
        (2, "", onnx.TensorProto.INT4), (2, "packed", onnx.TensorProto.INT4), (8, "", onnx.TensorProto.INT8),
        (8, "packed", 0), (4, "floats", 0),
    ],
)  # fmt: skip
@pytest.mark.parametrize(("depth", "width"), [(64, 3), (96, 8)])
def test_a_product(bits: int, zeros: str, kind: int, depth: int, width: int) -> None:
    """Weights stay integers where their zero points leave any."""
    proto, feeds = matmul(depth, width, bits, zeros=zeros)
    after = same_as_before(proto, feeds, ["MatMulNBits"], runtime=True, rtol=1e-4, atol=1e-4)
    assert weights_of(after) == kind


@pytest.mark.parametrize("block", [16, 128])
def test_other_blocks_and_types(block: int) -> None:
    proto, feeds = matmul(256, 5, block=block)
    same_as_before(proto, feeds, ["MatMulNBits"], runtime=True, rtol=1e-4, atol=1e-4)
    proto, feeds = matmul(256, 5, block=block, kind=np.float16)
    after = same_as_before(proto, feeds, ["MatMulNBits"], runtime=True, rtol=1e-2, atol=2e-2)
    assert weights_of(after) == onnx.TensorProto.INT4


@pytest.mark.parametrize(("depth", "block"), [(40, 32), (100, 64)])
def test_a_block_that_is_not_full(depth: int, block: int) -> None:
    proto, feeds = matmul(depth, 6, block=block)
    after = same_as_before(proto, feeds, ["MatMulNBits"], runtime=True, rtol=1e-4, atol=1e-4)
    assert weights_of(after) == 0


def test_an_older_operator_set_is_raised() -> None:
    proto, feeds = matmul(64, 3)
    proto.opset_import[0].version = 14
    after = same_as_before(proto, feeds, ["MatMulNBits"], runtime=True, rtol=1e-4, atol=1e-4)
    assert weights_of(after) == onnx.TensorProto.INT4
    assert max(o.version for o in after.opset_import if not o.domain) == 21


def test_weights_that_are_inputs_stay() -> None:
    proto, _ = matmul(64, 3)
    held = {t.name: t for t in proto.graph.initializer}
    proto.graph.input.append(onnx.helper.make_tensor_value_info("b", onnx.TensorProto.UINT8, held["b"].dims))
    with pytest.raises(AssertionError):
        legalized(proto, ["MatMulNBits"])


def table(
    rows: int, columns: int, bits: int, zeros: bool, kind: int = 0, block: int = 32
) -> tuple[onnx.ModelProto, dict[str, Any]]:
    """Rows looked up in a table of bytes, or of another element type."""
    blocks = -(-columns // block)
    feeds: dict[str, Any] = {
        "data": RNG.integers(0, 256, (rows, columns * bits // 8)).astype(np.uint8),
        "i": RNG.integers(0, rows, (2, 3)).astype(np.int64),
        "s": RNG.uniform(0.01, 0.1, (rows, blocks)).astype(np.float32),
        "z": RNG.integers(0, 256, (rows, -(-blocks * bits // 8))).astype(np.uint8) if zeros else None,
    }
    constants = [n for n in ("data", "s", "z") if feeds[n] is not None]
    attributes: dict[str, Any] = {"block_size": block, "quantize_axis": 1, "gather_axis": 0}
    attributes |= {"bits": bits} if not kind else {}
    proto = single("GatherBlockQuantized", feeds, [F], constants=constants, domain=MS, **attributes)
    if kind:
        for i, (name, wide) in enumerate((("data", columns), ("s", 0), ("z", blocks))):
            if wide and feeds[name] is not None:
                low, high = (-8, 8) if kind == onnx.TensorProto.INT4 else (0, 16)
                numbers = RNG.integers(low, high, (rows, wide))
                tensor = onnx.helper.make_tensor(name, kind, (rows, wide), numbers.reshape(-1).tolist())
                proto.graph.initializer[i].CopyFrom(tensor)
    return proto, feeds


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize(("rows", "columns"), [(7, 64), (20, 96)])
def test_a_look_up(bits: int, zeros: bool, rows: int, columns: int) -> None:
    proto, feeds = table(rows, columns, bits, zeros)
    after = same_as_before(proto, feeds, ["GatherBlockQuantized"], runtime=True, rtol=1e-5, atol=1e-6)
    held = {t.name: t.data_type for t in after.graph.initializer}
    gathered = [held[n.input[0]] for n in after.graph.node if n.op_type == "Gather"]
    assert onnx.TensorProto.UINT8 in gathered  # the table stays packed


@pytest.mark.parametrize("kind", [onnx.TensorProto.INT4, onnx.TensorProto.UINT4])
@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("columns", [64, 48])
def test_a_look_up_in_small_integers(kind: int, zeros: bool, columns: int) -> None:
    proto, feeds = table(9, columns, 4, zeros, kind)
    same_as_before(proto, feeds, ["GatherBlockQuantized"], runtime=True, rtol=1e-5, atol=1e-6)


def chain(count: int, width: int) -> tuple[onnx.ModelProto, dict[str, Any]]:
    """Products one after another, whose weights are too large to be looked into."""
    one, feeds = matmul(width, width)
    nodes, weights = [], []
    for k in range(count):
        source = "x" if k == 0 else f"h{k - 1}"
        target = "y0" if k == count - 1 else f"h{k}"
        node = onnx.NodeProto()
        node.CopyFrom(one.graph.node[0])
        node.name = f"n{k}"
        node.input[:] = [source, f"b{k}", f"s{k}"]
        node.output[:] = [target]
        nodes.append(node)
        blocks = width // 32
        weights += [
            onnx.numpy_helper.from_array(RNG.integers(0, 256, (width, blocks, 16)).astype(np.uint8), f"b{k}"),
            onnx.numpy_helper.from_array(RNG.uniform(0, 0.01, (width, blocks)).astype(np.float32), f"s{k}"),
        ]
    proto = onnx.helper.make_model(
        onnx.helper.make_graph(nodes, "g", one.graph.input, one.graph.output, weights),
        opset_imports=one.opset_import, ir_version=10,
    )  # fmt: skip
    return proto, feeds


def test_layers_that_differ_in_their_weights_are_one_question() -> None:
    asked = {}
    for count in (2, 6):
        proto, feeds = chain(count, 512)
        model = Model(ir.from_proto(proto))
        infer_model(model)
        judge = Refusing(frozenset(["MatMulNBits"]))
        Legalizing(Legalize(), model, Context.of(model.ir), judge).run()
        after = ir.to_proto(model.ir)
        agree(in_runtime(after, feeds), in_runtime(proto, {"x": feeds["x"]}), 1e-3, 1e-3)
        assert len(after.graph.initializer) == 2 * count  # those that it had are gone
        asked[count] = judge.asked.count("DequantizeLinear MatMul")
    assert asked[2] == asked[6]


@needs_target
def test_the_target_takes_both(tmp_path: Path) -> None:
    with TargetJudge(find_target()) as judge:  # type: ignore[arg-type]
        for proto, _ in (matmul(64, 8), matmul(64, 8, zeros="packed"), table(9, 64, 4, True)):
            model = Model(ir.from_proto(proto))
            infer_model(model)
            assert not judge.judge(model.ir).accepted
            Legalizing(Legalize(), model, Context.of(model.ir), judge).run()
            assert judge.judge(model.ir).accepted
