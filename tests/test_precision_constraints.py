"""Constraints: words, files, specifications for older TensorRT, and what they select."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers import parse
from onnxlathe.errors import LatheError, UsageError
from onnxlathe.model import Model
from onnxlathe.precision import (
    Constraint,
    Constraints,
    dump_constraints,
    load_constraints,
    parse_keep,
    parse_layer_precisions,
    parse_tensor_dtypes,
    select,
)
from onnxlathe.precision.toml_text import to_toml
from onnxlathe.rewrite import carry_origin


def said(constraints: list[Constraint]) -> list[str]:
    return [str(c) for c in constraints]


def test_words_of_the_command_line() -> None:
    assert said(parse_keep("fp32:*LayerNorm*,Softmax")) == ["float32:*LayerNorm*", "float32:Softmax"]
    assert said(parse_keep("bf16:'op=Exp',output=y , a..b")) == [
        "bfloat16:operator=Exp",
        "bfloat16:output=y",
        "bfloat16:a..b",
    ]
    assert said(parse_keep("Conv:0")) == ["float32:Conv:0"]
    (loose,) = parse_keep("half:~node=x*")
    assert loose.optional
    assert str(loose) == "float16:~node=x*"


@pytest.mark.parametrize("word", ["", "fp32:", "fp32:,", "..b", "between=a"])
def test_words_that_select_nothing(word: str) -> None:
    with pytest.raises(UsageError):
        parse_keep(word)


@pytest.mark.parametrize("word", ["fp32:*Norm*", "bf16:op=Exp", "fp16:~conv1", "fp32:a..b", "fp32:tensor=x"])
def test_words_survive_being_written(word: str) -> None:
    (constraint,) = parse_keep(word)
    assert parse_keep(str(constraint)) == [constraint]


def test_specifications_for_older_tensorrt() -> None:
    notes: list[str] = []
    assert said(parse_layer_precisions(["*:fp16,conv1:fp32", "/a/b:0:half"], notes=notes)) == [
        "float16:~*",
        "float32:~conv1",
        "float16:~/a/b:0",
    ]
    assert not notes
    assert said(parse_layer_precisions(["topk:fp16+int32,s:fp32+fp16"], notes=notes)) == [
        "float16:~topk",
        "float32:~s",
    ]
    assert "int32" in notes[0]
    assert said(parse_layer_precisions(["a:float16 b:bfloat16"])) == ["float16:~a", "bfloat16:~b"]
    assert said(parse_tensor_dtypes(["x:float16", "i:int8"], notes=notes)) == ["float16:~tensor=x"]
    assert "int8" in notes[1]
    with pytest.raises(UsageError, match="NAME:TYPE"):
        parse_layer_precisions(["fp16"])


def test_files(tmp_path: Path) -> None:
    written = Constraints(
        type="float16",
        keep=[
            Constraint(node="/layers.3/Pow", reason='it "overflows": 9e4', statistic={"own": 0.5, "n": 3}),
            Constraint(type="bfloat16", operator="Exp"),
        ],
        search={"error_before": float("inf"), "trials": 7, "passes": "O3"},
    )
    for name in ("c.toml", "c.json"):
        dump_constraints(written, tmp_path / name)
        read = load_constraints(tmp_path / name)
        assert (read.type, read.keep) == (written.type, written.keep)
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["c.json", "c.toml"]
    with pytest.raises(LatheError, match="cannot write"):
        dump_constraints(written, tmp_path / "nowhere" / "c.toml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("type = 'int8'", "int8"),
        ("[[keep]]\ntype = 'fp32'", "exactly one"),
        ("[[keep]]\nnode = 'a'\noperator = 'b'", "exactly one"),
        ("[[keep]]\nbetween = 'a'", "FIRST"),
        ("schema = 2", "schema 2"),
        ("keep = 3", "keep"),
        ("[[keep]]\nnodes = 'a'", "nodes"),
        ("= [", "constraints"),
    ],
)
def test_files_that_make_no_sense(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(text)
    with pytest.raises(UsageError) as caught:
        load_constraints(path)
    assert message in f"{caught.value.message} {caught.value.hint}"


@pytest.mark.parametrize(
    ("read", "word"),
    [
        (parse_keep, "fp33:Softmax"),
        (parse_keep, "int8:Softmax"),
        (lambda w: parse_layer_precisions([w]), "conv1:float99"),
        (lambda w: parse_tensor_dtypes([w]), "x:foo"),
    ],
)
def test_what_is_meant_for_a_type(read: Callable[[str], object], word: str) -> None:
    with pytest.raises(UsageError, match="is not a type that precision can choose"):
        read(word)


def test_names_with_colons() -> None:
    assert [c.match for c in parse_keep("fp16:/a/b:0")] == ["/a/b:0"]
    assert [c.match for c in parse_keep("scope:conv1")] == ["scope:conv1"]


PLAIN = st.recursive(
    st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=5,
)


@given(st.dictionaries(st.text(), PLAIN | st.dictionaries(st.text(), PLAIN, max_size=3), max_size=4))
def test_any_plain_data_as_toml(data: dict[str, Any]) -> None:
    assert msgspec.toml.decode(to_toml(data)) == data


@pytest.fixture
def model() -> Model:
    """x → MatMul_a → Softmax_b → Exp_c → Add_y, and x → Neg_d → Add_y."""
    proto = parse(
        """g (float[n, 4] x) => (float[n, 4] y) { a = MatMul(x, w)  b = Softmax(a)  c = Exp(b)  d = Neg(x)
        y = Add(c, d) }""",
        weights={"w": np.eye(4, dtype=np.float32)},
    )
    for node in proto.graph.node:
        node.name = f"/net[0]/{node.op_type}_{node.output[0]}"
    return Model(ir.from_proto(proto))


@pytest.mark.parametrize(
    ("word", "names"),
    [
        ("Softmax", {"b"}),
        ("/net[0]/Exp_c", {"c"}),
        ("/net[0]/*_[bc]", set()),
        ("*_?", {"a", "b", "c", "d", "y"}),
        ("op=*max", {"b"}),
        ("node=*Exp*", {"c"}),
        ("output=d", {"d"}),
        ("a..c", {"b", "c"}),
        ("x..y", {"a", "b", "c", "d", "y"}),
        ("w..b", {"a", "b"}),
    ],
)
def test_what_is_selected(model: Model, word: str, names: set[str]) -> None:
    if not names:
        with pytest.raises(UsageError, match="selects nothing"):
            select(model, parse_keep(word))
        return
    selection = select(model, parse_keep(word))
    assert {n.outputs[0].name for n in selection.nodes} == names


def test_the_last_one_counts(model: Model) -> None:
    selection = select(model, [*parse_keep("*"), *parse_keep("bf16:Exp")])
    kinds = {n.op_type: dtype.name for n, (dtype, _) in selection.nodes.items()}
    assert kinds["Exp"] == "BFLOAT16"
    assert kinds["Neg"] == "FLOAT"


def test_original_names_are_found_after_a_fusion(model: Model) -> None:
    softmax = next(n for n in model.graph if n.op_type == "Softmax")
    exp = next(n for n in model.graph if n.op_type == "Exp")
    carry_origin([softmax, exp], [exp])
    selection = select(model, parse_keep("origin=/net[0]/Softmax_b"))
    assert {n.op_type for n in selection.nodes} == {"Softmax", "Exp"}


def test_inputs_and_outputs(model: Model) -> None:
    assert select(model, parse_keep("fp16:tensor=x")).tensors == {"x": ir.DataType.FLOAT16}


def test_a_near_miss_is_named(model: Model) -> None:
    with pytest.raises(UsageError) as caught:
        select(model, parse_keep("Softmx"))
    assert "Softmax" in caught.value.hint
    with pytest.raises(UsageError, match="no value 'q'"):
        select(model, parse_keep("q..y"))
    assert len(select(model, parse_keep("~Softmx")).idle) == 1
