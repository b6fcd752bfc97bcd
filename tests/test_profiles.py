"""Optimization profiles: how users write them, what is proposed, and what is refused."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from helpers import parse
from onnxlathe.errors import UsageError
from onnxlathe.model import Model, load
from onnxlathe.model.shapes import input_specs
from onnxlathe.target.profiles import Profile, ProfileWishes, make_profiles, split_inputs, tighter


def model(tmp_path: Path, text: str) -> Model:
    path = tmp_path / "model.onnx"
    onnx.save(parse(text), path)
    return load(path)


@pytest.fixture
def image(tmp_path: Path) -> Model:
    return model(tmp_path, "g (float[batch, 3, h, 32] x) => (float[batch, 3, h, 32] y) { y = Relu(x) }")


@pytest.fixture
def tokens(tmp_path: Path) -> Model:
    """Two inputs of one shape, whose names make trouble."""
    return model(
        tmp_path,
        'g (float[batch, seq] "ids:0", float[batch, seq] mask) => (float[batch, seq] y)'
        ' { y = Add("ids:0", mask) }',
    )


@pytest.fixture
def reshaped(tmp_path: Path) -> Model:
    return model(tmp_path, "g (float[n, 4] x, int64[2] sizes) => (float[a, b] y) { y = Reshape(x, sizes) }")


@pytest.mark.parametrize(
    "words", ["x:{}x3x{}x32", "x:[{},3,{},32]", "x:{},3,{},32", "[{}, 3, {}, 32]", "'x':{}x3x{}x32"]
)
def test_spellings(image: Model, words: str) -> None:
    wishes = ProfileWishes([words.format(1, 8)], [words.format(2, 16)], [words.format(4, 64)])
    (profile,) = make_profiles(image, wishes)
    assert profile.shapes == {"x": ((1, 3, 8, 32), (2, 3, 16, 32), (4, 3, 64, 32))}
    assert profile.bindings == ({"batch": 1, "h": 8}, {"batch": 2, "h": 16}, {"batch": 4, "h": 64})
    assert profile.proposed == ()
    assert str(profile) == "batch 1…2…4, h 8…16…64"


@pytest.mark.parametrize(
    "text",
    [
        "ids:0:1x5,mask:1x5",
        "ids:0:[1,5], mask:[1,5]",
        "ids:0:1,5,mask:1,5",
        "'ids:0':1x5 mask:1x5",
        "mask:1x5,ids:0:1x5,",
        "mask:1x5",
    ],
)
def test_several_inputs(tokens: Model, text: str) -> None:
    (profile,) = make_profiles(tokens, ProfileWishes(opt_shapes=[text]))
    assert profile.shapes == {"ids:0": ((1, 5),) * 3, "mask": ((1, 5),) * 3}


def test_split() -> None:
    class Spec:
        def __init__(self, name: str) -> None:
            self.name = name

    specs = [Spec("a"), Spec("a,b"), Spec("c")]
    assert split_inputs("a,b:1x2,c:3", specs) == ["a,b:1x2", "c:3"]  # type: ignore[arg-type]
    assert split_inputs("nobody:1x2", specs) == ["nobody:1x2"]  # type: ignore[arg-type]


def test_several_profiles(image: Model) -> None:
    wishes = ProfileWishes(["1x3x32x32", "1x3x64x32"], (), ["1x3x32x32", "8x3x64x32"])
    first, second = make_profiles(image, wishes)
    assert first.shapes["x"] == ((1, 3, 32, 32),) * 3
    assert second.shapes["x"] == ((1, 3, 64, 32), (8, 3, 64, 32), (8, 3, 64, 32)), "opt is max if left out"


def test_ranges(image: Model) -> None:
    (profile,) = make_profiles(image, ProfileWishes(ranges=["batch=1:8:32", "h=64"]))
    assert profile.shapes["x"] == ((1, 3, 64, 32), (8, 3, 64, 32), (32, 3, 64, 32))
    (profile,) = make_profiles(image, ProfileWishes(ranges=["batch=1:8", "h=64"]))
    assert [b["batch"] for b in profile.bindings] == [1, 8, 8]


def test_ranges_fill_what_shapes_leave_open(image: Model) -> None:
    wishes = ProfileWishes(["x:2x3x64x32"], ranges=["batch=1:4:8"])
    (profile,) = make_profiles(image, wishes)
    assert [b["batch"] for b in profile.bindings] == [2, 4, 8]
    assert [b["h"] for b in profile.bindings] == [64, 64, 64]
    (profile,) = make_profiles(image, ProfileWishes((), (), ["x:16x3x64x32"], ranges=["batch=1:4:8"]))
    assert [b["batch"] for b in profile.bindings] == [1, 4, 16]


def test_proposals(image: Model, tokens: Model) -> None:
    (profile,) = make_profiles(image, ProfileWishes(ranges=["h=64"]))
    assert profile.proposed == ("batch",)
    assert [b["batch"] for b in profile.bindings] == [1, 4, 8]
    (profile,) = make_profiles(tokens, ProfileWishes(caps={"seq": 100}))
    assert set(profile.proposed) == {"batch", "seq"}
    assert profile.shapes["mask"] == ((1, 1), (4, 64), (8, 100)), "never above what the model can"


def test_expressions_follow(tmp_path: Path) -> None:
    kv = model(
        tmp_path,
        "g (float[1, past] p, float[1, seq] s, float[1, total] t) => (float[1, total] y)"
        " { c = Concat<axis=1>(p, s) y = Add(c, t) }",
    )
    for value in kv.graph.inputs:
        if value.name == "t":
            value.shape = type(value.shape)([1, "past + seq"])  # type: ignore[misc,arg-type]
    (profile,) = make_profiles(kv, ProfileWishes(ranges=["past=1:8:16", "seq=1:1:4"]))
    assert profile.shapes["t"] == ((1, 2), (1, 9), (1, 20))


def test_fixed_model_has_none(tmp_path: Path) -> None:
    fixed = model(tmp_path, "g (float[2, 3] x) => (float[2, 3] y) { y = Relu(x) }")
    assert make_profiles(fixed, ProfileWishes()) == []


def test_values_of_shape_tensors(reshaped: Model) -> None:
    wishes = ProfileWishes(["x:1x4,sizes:1x4"], ["x:2x4,sizes:[2,4]"], ["x:4x4,sizes:4x4"])
    (profile,) = make_profiles(reshaped, wishes)
    assert profile.values == {"sizes": ((1, 4), (2, 4), (4, 4))}
    assert profile.shapes == {"x": ((1, 4), (2, 4), (4, 4))}


@pytest.mark.parametrize(
    ("wishes", "message"),
    [
        (ProfileWishes(["x:1x4x8x32"]), r"--min-shapes.*dimension 1 of input 'x' is 3, not 4"),
        (ProfileWishes(max_shapes=["x:1x3x8"]), r"--max-shapes.*3 dimensions for an input of rank 4"),
        (ProfileWishes(["z:1x3x8x32"]), r"no input is called 'z'"),
        (ProfileWishes(["x:8x3x8x32"], (), ["x:4x3x8x32"]), r"dimension 'batch' has min 8, opt 4 and max 4"),
        (ProfileWishes(ranges=["batch=4:2:8"]), r"dimension 'batch' has min 4, opt 2 and max 8"),
        (ProfileWishes(["x:16x3x8x32"], ranges=["batch=1:2:8"]), r"'batch' has min 16, opt 2 and max 8"),
        (ProfileWishes(ranges=["batch=1", "batch=2"]), r"--range batch=2: .*'batch' has another range"),
        (ProfileWishes(ranges=["bach=1:2:8"]), r"no input has a dimension 'bach'"),
        (ProfileWishes(ranges=["batch=many"]), r"not a range"),
        (ProfileWishes(["x:1x3xqx32"]), r"dimension 2 of input 'x' is h, not q|not a dimension"),
    ],
)
def test_contradictions(image: Model, wishes: ProfileWishes, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make_profiles(image, wishes)


def test_inputs_that_share_a_symbol_cannot_disagree(tokens: Model) -> None:
    with pytest.raises(UsageError, match=r"dimension 'seq' cannot be 5 \(.*\) and 6"):
        make_profiles(tokens, ProfileWishes(["ids:0:1x5,mask:1x6"]))


def test_wrong_number_of_values(reshaped: Model) -> None:
    with pytest.raises(UsageError, match="input 'sizes' holds 2 integers, not 3"):
        make_profiles(reshaped, ProfileWishes(["sizes:1x2x3"]))


def test_tighter() -> None:
    bindings = ({"batch": 1, "seq": 1}, {"batch": 4, "seq": 64}, {"batch": 8, "seq": 256})
    profile = Profile(bindings=bindings, proposed=("batch", "seq"))
    said = "Expand_1: ISliceLayer has out of bounds access on axis 1 Condition '<' violated: 255 >= 128."
    assert tighter(profile, said) == {"seq": 128}
    said = "node_of_y: dimensions not compatible for elementwise. Condition '==' violated: 64 != 16."
    assert tighter(profile, said) == {"seq": 16}, "at opt"
    assert tighter(profile, "no numbers") == {"seq": 128}, "the largest is halved"
    assert tighter(Profile(bindings=bindings), said) == {}, "what the user gave is left alone"


def test_specs_are_those_of_the_model(image: Model) -> None:
    assert [spec.name for spec in input_specs(image)] == ["x"]
