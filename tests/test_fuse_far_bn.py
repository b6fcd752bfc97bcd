"""BatchNormalization behind what only moves elements."""

from __future__ import annotations

import numpy as np
import pytest

from helpers import Array, check

RANDOM = np.random.default_rng(3)
SMALL = ({"n": 1, "m": 3}, {"n": 3, "m": 4})


def given(channels: int, **shapes: tuple[int, ...]) -> dict[str, Array]:
    found = {name: RANDOM.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    found |= {name: RANDOM.standard_normal(channels).astype(np.float32) for name in ("scale", "bias", "mean")}
    return found | {"var": (RANDOM.random(channels) + 0.5).astype(np.float32)}


NORM = "BatchNormalization(t, scale, bias, mean, var)"


def text(made: str) -> str:
    return f"g (float[n, m, 4] x, float[4, 6] v) => (float[p, 6] y) {{ {made} y = {NORM} }}"


@pytest.mark.parametrize("opset", [9, 13, 17])
@pytest.mark.parametrize("view", ["Flatten<axis=2>(a)", "Reshape(a, s)"])
def test_rows_of_a_product(view: str, opset: int) -> None:
    weights = given(6, w=(4, 6)) | {"s": np.array([-1, 6])}
    made = f"a = MatMul(x, w) t = {view}"
    check(text(made), "shapes,far_bn", ["Reshape", "Gemm"], opset=opset, weights=weights, sizes=SMALL)


def test_heads_of_a_product() -> None:
    """The channels are a part of what the product gives."""
    before = "g (float[n, m, 4] x) => (float[n, 3, m, 2] y) {"
    made = "a = MatMul(x, w) b = Reshape(a, s) t = Transpose<perm=[0, 2, 1, 3]>(b)"
    weights = given(3, w=(4, 6)) | {"s": np.array([0, 0, 3, 2])}
    check(f"{before} {made} y = {NORM} }}", "shapes,far_bn", ["MatMul", "Reshape", "Transpose", "Add"],
          weights=weights, sizes=SMALL)  # fmt: skip
    made = made.replace("b = Reshape(a", "c = Add(a, k) b = Reshape(c")
    check(f"{before} {made} y = {NORM} }}", "shapes,far_bn", ["MatMul", "Add", "Reshape", "Transpose"],
          weights=weights | given(3, k=(6,)), sizes=SMALL)  # fmt: skip


def test_several_convolutions() -> None:
    """Side by side, each takes its channels; the sum of two has to give one bias."""
    dims = "g (float[n, 4, m, m] x) => (float[n, 6, m, m] y)"
    both = f"{dims} {{ a = Conv(x, w, k) b = Conv(x, u) t = Add(a, b) y = {NORM} }}"
    check(both, "shapes,far_bn", ["Conv", "Conv", "Add", "Add"], weights=given(6, w=(6, 4, 1, 1), u=(6, 4, 1, 1),
          k=(6,)), sizes=SMALL)  # fmt: skip


@pytest.mark.parametrize(
    "made",
    [
        "a = MatMul(x, w) r = Tanh(a) t = Reshape(r, s)",
        "a = MatMul(x, v) t = Reshape(a, s)",  # no constant weight
        "a = MatMul(x, w) b = Reshape(a, s) c = Tanh(b) t = Sub(b, c)",  # read otherwise as well
        "a = MatMul(x, w3) t = Reshape(a, s)",  # rows of two places make a row of channels
    ],
)
def test_what_stays_normalized(made: str) -> None:
    weights = given(6, w=(4, 6), w3=(4, 3)) | {"s": np.array([-1, 6])}
    sizes = ({"n": 2, "m": 2}, {"n": 4, "m": 3})
    check(text(made), "shapes,far_bn", None, weights=weights, sizes=sizes)


def test_statistics_of_the_batch() -> None:
    made = "a = MatMul(x, w) t = Reshape(a, s)"
    trained = text(made).replace(
        "y = BatchNormalization(", "y, mean1, var1 = BatchNormalization<training_mode=1>("
    )
    weights = given(6, w=(4, 6)) | {"s": np.array([-1, 6])}
    check(trained, "shapes,far_bn", None, weights=weights, sizes=SMALL)
