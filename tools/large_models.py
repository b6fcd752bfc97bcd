"""Make models that are large in nodes or in bytes, for measuring how time and memory grow.

    python tools/large_models.py deep OUT.onnx --nodes 100000     # many small transformer layers
    python tools/large_models.py wide OUT.onnx --gigabytes 12     # few layers with large external weights

Both have the shape arithmetic and spelled-out normalizations that exporters write. The weights of `wide` are
pseudo-random small numbers, written in chunks; it never holds more than one chunk in memory.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

HEADS = 4
CHUNK = 1 << 24


class Graph:
    """Collects nodes and initializers."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.external: list[tuple[onnx.TensorProto, int]] = []

    def node(self, op: str, *inputs: str, **attributes: object) -> str:
        output = f"v{len(self.nodes)}"
        self.nodes.append(
            helper.make_node(op, list(inputs), [output], name=f"{op}_{len(self.nodes)}", **attributes)
        )
        return output

    def constant(self, value: object, dtype: type = np.int64) -> str:
        tensor = numpy_helper.from_array(np.asarray(value, dtype), f"c{len(self.weights)}")
        self.weights.append(tensor)
        return tensor.name

    def weight(self, shape: list[int], *, external: bool) -> str:
        name = f"w{len(self.weights)}"
        if external:
            tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=shape)
            self.external.append((tensor, 4 * int(np.prod(shape))))
        else:
            values = np.random.default_rng(len(self.weights)).standard_normal(shape).astype(np.float32) * 0.02
            tensor = numpy_helper.from_array(values, name)
        self.weights.append(tensor)
        return name


def layer(g: Graph, x: str, width: int, *, external: bool) -> str:
    """One transformer layer as an exporter writes it: about 70 nodes."""
    normed = norm(g, x, width)
    shape = g.node("Shape", normed)
    batch = g.node("Unsqueeze", g.node("Gather", shape, g.constant(0), axis=0), g.constant([0]))
    length = g.node("Unsqueeze", g.node("Gather", shape, g.constant(1), axis=0), g.constant([0]))
    split = g.node("Concat", batch, length, g.constant([HEADS]), g.constant([width // HEADS]), axis=0)
    parts = []
    for _ in range(3):
        projected = g.node("MatMul", normed, g.weight([width, width], external=external))
        biased = g.node("Add", projected, g.constant(np.full(width, 0.01), np.float32))
        parts.append(g.node("Transpose", g.node("Reshape", biased, split), perm=[0, 2, 1, 3]))
    scores = g.node("MatMul", parts[0], g.node("Transpose", parts[1], perm=[0, 1, 3, 2]))
    scores = g.node("Div", scores, g.node("Sqrt", g.constant(width / HEADS, np.float32)))
    mixed = g.node("MatMul", g.node("Softmax", scores, axis=-1), parts[2])
    joined = g.node("Concat", batch, length, g.constant([width]), axis=0)
    mixed = g.node("Reshape", g.node("Transpose", mixed, perm=[0, 2, 1, 3]), joined)
    x = g.node("Add", x, g.node("MatMul", mixed, g.weight([width, width], external=external)))
    inner = g.node("MatMul", norm(g, x, width), g.weight([width, 4 * width], external=external))
    erf = g.node("Erf", g.node("Div", inner, g.constant(2**0.5, np.float32)))
    half = g.node("Mul", inner, g.node("Add", erf, g.constant(1, np.float32)))
    gelu = g.node("Mul", half, g.constant(0.5, np.float32))
    return g.node("Add", x, g.node("MatMul", gelu, g.weight([4 * width, width], external=external)))


def norm(g: Graph, x: str, width: int) -> str:
    """A layer normalization spelled out."""
    centred = g.node("Sub", x, g.node("ReduceMean", x, axes=[-1]))
    variance = g.node("ReduceMean", g.node("Pow", centred, g.constant(2, np.float32)), axes=[-1])
    deviation = g.node("Sqrt", g.node("Add", variance, g.constant(1e-5, np.float32)))
    scaled = g.node("Mul", g.node("Div", centred, deviation), g.constant(np.ones(width), np.float32))
    return g.node("Add", scaled, g.constant(np.full(width, 0.1), np.float32))


def build(layers: int, width: int, path: Path, *, external: bool) -> onnx.ModelProto:
    """The model; with `external`, its weights go to a file beside `path`."""
    g = Graph()
    x = "x"
    for _ in range(layers):
        x = layer(g, x, width, external=external)
    shape = ["batch", "seq", width]
    graph = helper.make_graph(
        g.nodes,
        "large",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(x, TensorProto.FLOAT, shape)],
    )
    if external:
        write_weights(g, path.with_name(path.name + ".data"))
    graph.initializer.extend(g.weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def write_weights(g: Graph, data: Path) -> None:
    """Write the external weights one after the other and point the tensors at them."""
    numbers = np.random.default_rng(0).standard_normal(CHUNK // 4).astype(np.float32) * 0.02
    with data.open("wb") as file:
        for index, (tensor, size) in enumerate(g.external):
            # Each tensor begins elsewhere in the numbers, so that no two are equal.
            block = np.roll(numbers, 1009 * index).tobytes()
            offset = -(-file.tell() // 4096) * 4096
            file.seek(offset)
            for start in range(0, size, CHUNK):
                file.write(block[: min(CHUNK, size - start)])
            tensor.data_location = TensorProto.EXTERNAL
            for key, value in (("location", data.name), ("offset", offset), ("length", size)):
                tensor.external_data.add(key=key, value=str(value))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kind", choices=["deep", "wide"])
    parser.add_argument("output", type=Path)
    parser.add_argument("--nodes", type=int, default=100_000, help="of `deep`, about")
    parser.add_argument("--gigabytes", type=float, default=12, help="of `wide`")
    parser.add_argument("--layers", type=int, default=40, help="of `wide`")
    parser.add_argument("--width", type=int, help="of `wide`, instead of its gigabytes")
    arguments = parser.parse_args()
    if arguments.kind == "deep":
        model = build(max(arguments.nodes // 50, 1), 16, arguments.output, external=False)
    else:
        per_layer = arguments.gigabytes * 1e9 / arguments.layers / 4
        width = int((per_layer / 12) ** 0.5) // 64 * 64
        model = build(arguments.layers, arguments.width or width, arguments.output, external=True)
    onnx.save(model, arguments.output)
    print(f"{arguments.output}: {len(model.graph.node)} nodes")


if __name__ == "__main__":
    main()
