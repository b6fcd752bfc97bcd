"""`root_of_square` changes what it should, and holds on whatever it is given."""

from __future__ import annotations

import onnx
import onnx_ir as ir
from onnxlathe_root_of_square import PASSES

import onnxlathe
from onnxlathe.check import Prover

MODEL = """
<ir_version: 10, opset_import: ["" : 18]>
g (float[n, 4] x) => (float[n, 4] y) {
    a = Mul(x, x)
    b = Sqrt(a)
    y = Relu(b)
}
"""


def test_it_changes_what_it_should() -> None:
    model = onnxlathe.Model(ir.from_proto(onnx.parser.parse_model(MODEL)))
    result = onnxlathe.optimize(model, [PASSES[0]])
    assert [node.op_type for node in model.graph] == ["Abs", "Relu"]
    assert result.verdict is not None
    assert result.verdict.status == "equal"


def test_it_holds() -> None:
    with Prover(examples=100) as prover:
        proof = prover.prove(PASSES[0]())
    assert proof.holds, proof.counterexample and proof.counterexample.text()
