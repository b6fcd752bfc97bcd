"""scikit-learn's operators against ONNX Runtime's: scalers, linear models, support vectors, trees, n-grams."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from legalize_helpers import Refusing, agree, in_reference, in_runtime, legalized, same_as_before, single
from onnxlathe.infer import infer_model
from onnxlathe.model import Model
from onnxlathe.rewrite import Context
from onnxlathe_passes.legalize import Legalize
from onnxlathe_passes.legalize.run import Legalizing

F, I64 = onnx.TensorProto.FLOAT, onnx.TensorProto.INT64
ML = "ai.onnx.ml"


def rows(count: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, width)).astype(np.float32)


def ml(op: str, feeds: dict[str, Any], outputs: Any, version: int = 1, **attributes: Any) -> onnx.ModelProto:
    proto = single(op, feeds, outputs, opset=18, domain=ML, **attributes)
    for entry in proto.opset_import:
        if entry.domain == ML:
            entry.version = version
    return proto


def check(proto: onnx.ModelProto, feeds: dict[str, Any], **how: Any) -> onnx.ModelProto:
    return same_as_before(proto, feeds, [proto.graph.node[0].op_type], runtime=True, **how)


@pytest.mark.parametrize("dtype", [np.float32, np.int64, np.int32])
@pytest.mark.parametrize("width", [1, 3])
def test_scaler(dtype: Any, width: int) -> None:
    x = (rows(4, 3) * 5).astype(dtype)
    offset, scale = list(np.arange(width) + 0.5), list(np.arange(width) - 1.25)
    check(ml("Scaler", {"x": x}, [(F, [4, 3])], offset=offset, scale=scale), {"x": x}, rtol=1e-6)


@pytest.mark.parametrize("norm", ["MAX", "L1", "L2"])
@pytest.mark.parametrize("shape", [(4, 3), (1, 5), (2, 1)])
def test_normalizer(norm: str, shape: tuple[int, int]) -> None:
    x = rows(*shape)
    x[0] = 0 if shape[0] > 2 else x[0]
    check(ml("Normalizer", {"x": x}, [(F, shape)], norm=norm), {"x": x})


@pytest.mark.parametrize("transform", ["NONE", "LOGISTIC", "SOFTMAX"])
@pytest.mark.parametrize("targets", [1, 2, 3])
def test_linear_regressor(transform: str, targets: int) -> None:
    x = rows(5, 4)
    weights = rows(targets, 4, 1).reshape(-1).tolist()
    bias = [0.5, -1.0, 2.0][:targets]
    proto = ml(
        "LinearRegressor", {"x": x}, [(F, [5, targets])], targets=targets, coefficients=weights,
        intercepts=bias, post_transform=transform,
    )  # fmt: skip
    check(proto, {"x": x})


@pytest.mark.parametrize("transform", ["NONE", "LOGISTIC", "SOFTMAX"])
@pytest.mark.parametrize(("classes", "labels"), [(1, 2), (2, 2), (4, 4)])
def test_linear_classifier(transform: str, classes: int, labels: int) -> None:
    x = rows(6, 3)
    proto = ml(
        "LinearClassifier", {"x": x}, [(I64, [6]), (F, [6, labels])], post_transform=transform,
        coefficients=rows(classes, 3, 2).reshape(-1).tolist(), intercepts=[0.1, -0.2, 0.3, 0.4][:classes],
        classlabels_ints=[7, 3, 5, 9][:labels],
    )  # fmt: skip
    check(proto, {"x": x})


@pytest.mark.parametrize("kind", ["LINEAR", "POLY", "RBF", "SIGMOID"])
@pytest.mark.parametrize("one_class", [0, 1])
def test_svm_regressor(kind: str, one_class: int) -> None:
    x = rows(5, 3)
    proto = ml(
        "SVMRegressor", {"x": x}, [(F, [5, 1])], kernel_type=kind, kernel_params=[0.5, 0.25, 3.0], n_supports=4,
        support_vectors=rows(4, 3, 3).reshape(-1).tolist(), coefficients=[0.5, -1.5, 1.0, 0.25], rho=[0.125],
        one_class=one_class,
    )  # fmt: skip
    check(proto, {"x": x})


def test_svm_regressor_without_supports() -> None:
    x = rows(5, 3)
    check(
        ml(
            "SVMRegressor",
            {"x": x},
            [(F, [5, 1])],
            coefficients=[1.0, -2.0, 0.5],
            rho=[3.0],
            kernel_type="LINEAR",
            n_supports=0,
            support_vectors=[0.0],
            kernel_params=[0.0, 0.0, 0.0],
        ),
        {"x": x},
    )


def test_imputer() -> None:
    x = np.array([[1, np.nan, 3], [np.nan, 0, -1]], np.float32)
    how = {"imputed_value_floats": [9.0, 8.0, 7.0]}
    check(ml("Imputer", {"x": x}, [(F, [2, 3])], replaced_value_float=float("nan"), **how), {"x": x})
    check(ml("Imputer", {"x": x[:, :2]}, [(F, [2, 2])], imputed_value_floats=[5.0]), {"x": x[:, :2]})
    n = np.array([[1, -5, 3]], np.int64)
    proto = ml("Imputer", {"x": n}, [(I64, [1, 3])], replaced_value_int64=-5, imputed_value_int64s=[4])
    check(proto, {"x": n})


@pytest.mark.parametrize("shape", [(4,), (2, 3)])
def test_one_hot_encoder(shape: tuple[int, ...]) -> None:
    x = np.random.default_rng(0).integers(0, 5, shape)
    check(ml("OneHotEncoder", {"x": x}, [F], cats_int64s=[3, 0, 1]), {"x": x})


def test_feature_vectorizer() -> None:
    feeds = {"a": rows(3, 2), "b": rows(3, 1, 1)}
    check(ml("FeatureVectorizer", feeds, [(F, [3, 3])], inputdimensions=[2, 1]), feeds)


# Trees


def grown(trees: int, depth: int, width: int, seed: int, modes: list[str]) -> dict[str, Any]:
    """Attributes of random trees, some of their branches cut short; and their leaves as (tree, node)."""
    random = np.random.default_rng(seed)
    made: dict[str, list[Any]] = {
        n: []
        for n in ("treeids", "nodeids", "featureids", "values", "modes", "truenodeids", "falsenodeids", "nan")
    }
    leaves: list[tuple[int, int]] = []
    for tree in range(trees):
        queue, count = [(0, 0)], 1
        while queue:
            node, level = queue.pop(0)
            leaf = level == depth or (level > 0 and random.random() < 0.2)
            yes, no = (0, 0) if leaf else (count, count + 1)
            count += 0 if leaf else 2
            queue += [] if leaf else [(yes, level + 1), (no, level + 1)]
            leaves += [(tree, node)] if leaf else []
            row = (
                tree, node, int(random.integers(width)), float(random.integers(-2, 3)) / 2,
                "LEAF" if leaf else str(random.choice(modes)), yes, no, int(random.integers(2)),
            )  # fmt: skip
            for column, entry in zip(made.values(), row, strict=True):
                column.append(entry)
    nan = made.pop("nan")
    attributes: dict[str, Any] = {f"nodes_{n}": v for n, v in made.items()}
    return attributes | {"leaves": leaves, "nan": nan}


def sampled(count: int, width: int, seed: int, *, nan: bool) -> np.ndarray:
    """Numbers that often are exactly a threshold, and sometimes none at all."""
    random = np.random.default_rng(seed)
    x = (random.integers(-4, 5, (count, width)) / 4).astype(np.float32)
    if nan:
        x[random.random(x.shape) < 0.2] = np.nan
    return x


LEQ = ["BRANCH_LEQ"]
ALL = [f"BRANCH_{m}" for m in ("LEQ", "LT", "GTE", "GT", "EQ", "NEQ")]


@pytest.mark.parametrize(("trees", "depth", "width"), [(1, 1, 1), (3, 4, 5), (7, 3, 2)])
@pytest.mark.parametrize("modes", [LEQ, ["BRANCH_LT"], ALL])
@pytest.mark.parametrize("nan", [False, True])
def test_tree_regressor(trees: int, depth: int, width: int, modes: list[str], nan: bool) -> None:
    grow = grown(trees, depth, width, trees, modes)
    leaves, tracks = grow.pop("leaves"), grow.pop("nan")
    if nan:
        grow["nodes_missing_value_tracks_true"] = tracks
    x = sampled(32, width, 1, nan=nan)
    proto = ml(
        "TreeEnsembleRegressor", {"x": x}, [(F, [32, 1])], 3, n_targets=1, **grow,
        target_treeids=[t for t, _ in leaves], target_nodeids=[n for _, n in leaves],
        target_ids=[0] * len(leaves), target_weights=rows(1, len(leaves), 4)[0].tolist(),
    )  # fmt: skip
    check(proto, {"x": x})


@pytest.mark.parametrize("how", ["SUM", "AVERAGE", "MIN", "MAX"])
@pytest.mark.parametrize("targets", [1, 2])
def test_aggregates(how: str, targets: int) -> None:
    grow = grown(4, 3, 3, 5, LEQ)
    leaves, _ = grow.pop("leaves"), grow.pop("nan")
    x = sampled(16, 3, 2, nan=False)
    pairs = [(t, n, k) for t, n in leaves for k in range(targets)]
    proto = ml(
        "TreeEnsembleRegressor", {"x": x}, [(F, [16, targets])], 3, n_targets=targets, aggregate_function=how,
        target_treeids=[p[0] for p in pairs], target_nodeids=[p[1] for p in pairs],
        target_ids=[p[2] for p in pairs], target_weights=rows(1, len(pairs), 4)[0].tolist(),
        base_values=[0.5, -0.5][:targets], **grow,
    )  # fmt: skip
    check(proto, {"x": x})


@pytest.mark.parametrize("transform", ["NONE", "SOFTMAX", "LOGISTIC"])
@pytest.mark.parametrize("classes", [3, 5])
def test_tree_classifier(transform: str, classes: int) -> None:
    grow = grown(3, 3, 4, 6, LEQ)
    leaves, _ = grow.pop("leaves"), grow.pop("nan")
    x = sampled(24, 4, 3, nan=False)
    pairs = [(t, n, k) for t, n in leaves for k in range(classes)]
    proto = ml(
        "TreeEnsembleClassifier", {"x": x}, [(I64, [24]), (F, [24, classes])], 3, post_transform=transform,
        class_treeids=[p[0] for p in pairs], class_nodeids=[p[1] for p in pairs],
        class_ids=[p[2] for p in pairs], class_weights=rows(1, len(pairs), 4)[0].tolist(),
        classlabels_int64s=[4, 2, 8, 9, 1][:classes], **grow,
    )  # fmt: skip
    check(proto, {"x": x})


@pytest.mark.parametrize("positive", [True, False])
@pytest.mark.parametrize("transform", ["NONE", "LOGISTIC", "SOFTMAX"])
def test_binary_tree_classifier(positive: bool, transform: str) -> None:
    grow = grown(3, 3, 4, 7, LEQ)
    leaves, _ = grow.pop("leaves"), grow.pop("nan")
    x = sampled(24, 4, 3, nan=False)
    weights = rows(1, len(leaves), 4)[0]
    weights = np.abs(weights) / 4 if positive else weights
    proto = ml(
        "TreeEnsembleClassifier", {"x": x}, [(I64, [24]), (F, [24, 2])], 3, post_transform=transform,
        class_treeids=[t for t, _ in leaves], class_nodeids=[n for _, n in leaves],
        class_ids=[0] * len(leaves), class_weights=weights.tolist(), classlabels_int64s=[4, 2], **grow,
    )  # fmt: skip
    check(proto, {"x": x})


@pytest.mark.parametrize("kept", [0, 1])
def test_one_output_of_a_classifier(kept: int) -> None:
    x = rows(6, 3)
    proto = ml(
        "LinearClassifier", {"x": x}, [(I64, [6]), (F, [6, 3])], coefficients=rows(3, 3, 2).reshape(-1).tolist(),
        intercepts=[0.1, -0.2, 0.3], classlabels_ints=[7, 3, 5],
    )  # fmt: skip
    del proto.graph.output[1 - kept]
    check(proto, {"x": x})


def test_a_tree_of_one_leaf() -> None:
    x = rows(3, 2)
    one: dict[str, Any] = {
        f"nodes_{n}": [0] for n in ("treeids", "nodeids", "featureids", "truenodeids", "falsenodeids")
    }
    proto = ml(
        "TreeEnsembleRegressor", {"x": x}, [(F, [3, 1])], 3, n_targets=1, nodes_values=[0.0], nodes_modes=["LEAF"],
        target_treeids=[0], target_nodeids=[0], target_ids=[0], target_weights=[2.5], **one,
    )  # fmt: skip
    check(proto, {"x": x})


def conformance(name: str) -> Any:
    from onnx.backend.test.case.node import collect_testcases

    return next(case for case in collect_testcases(None) if case.name == name)


@pytest.mark.parametrize("name", ["single_tree", "set_membership"])
def test_tree_ensemble_of_version_5(name: str) -> None:
    case = conformance(f"test_ai_onnx_ml_tree_ensemble_{name}")
    proto = case.model
    names = [i.name for i in proto.graph.input]
    for inputs, expected in case.data_sets:
        feeds = {n: np.asarray(x, np.float32) for n, x in zip(names, inputs, strict=True)}
        after, _ = legalized(proto, ["TreeEnsemble"], io_types="widen")
        agree(in_runtime(after, feeds), [np.asarray(e, np.float32) for e in expected])


# n-grams


@pytest.mark.parametrize(
    ("grams", "skip"), [((1, 1), 0), ((2, 2), 0), ((2, 2), 5), ((1, 2), 0), ((1, 2), 2), ((3, 3), 1)]
)
@pytest.mark.parametrize("mode", ["TF", "IDF", "TFIDF"])
@pytest.mark.parametrize("shape", [(9,), (2, 6)])
def test_tf_idf(grams: tuple[int, int], skip: int, mode: str, shape: tuple[int, ...]) -> None:
    x = np.random.default_rng(3).integers(1, 5, shape)
    pool = [2, 3, 4, 1, 2, 3, 3, 4, 1, 2, 3, 4, 3, 2]  # two, two pairs... in counts below
    how = {
        "mode": mode, "min_gram_length": grams[0], "max_gram_length": grams[1], "max_skip_count": skip,
        "ngram_counts": [0, 4, 8], "ngram_indexes": [0, 1, 2, 3, 5, 4, 6, 7], "pool_int64s": pool,
    }  # fmt: skip
    if mode != "TF":
        how["weights"] = [0.5, 1.0, 2.0, 0.25, 3.0, 1.5, 0.75, 1.25]
    check(single("TfIdfVectorizer", {"x": x}, [F], opset=18, **how), {"x": x})


# Near misses


@pytest.mark.parametrize(
    ("op", "outputs", "how"),
    [
        ("LinearRegressor", [(F, [2, 1])], {"coefficients": [1.0, 2.0], "post_transform": "PROBIT"}),
        (
            "LinearClassifier",
            [(onnx.TensorProto.STRING, [2]), (F, [2, 2])],
            {
                "coefficients": [1.0, 2.0, 3.0, 4.0],
                "intercepts": [0.0, 0.0],
                "classlabels_strings": ["a", "b"],
            },
        ),
        ("OneHotEncoder", [F], {"cats_int64s": [1, 2], "zeros": 0}),
    ],
)
def test_what_is_left_alone(op: str, outputs: Any, how: dict[str, Any]) -> None:
    _left_alone(ml(op, {"x": rows(2, 2)}, outputs, **how))


def test_votes_for_both_of_two_classes_are_left_alone() -> None:
    # ONNX Runtime takes the label from the second score alone, the specification from the larger one.
    grow = grown(2, 2, 3, 8, LEQ)
    leaves, _ = grow.pop("leaves"), grow.pop("nan")
    pairs = [(t, n, k) for t, n in leaves for k in range(2)]
    votes = {
        "class_treeids": [p[0] for p in pairs], "class_nodeids": [p[1] for p in pairs],
        "class_ids": [p[2] for p in pairs], "class_weights": [0.5] * len(pairs), "classlabels_int64s": [0, 1],
    }  # fmt: skip
    _left_alone(
        ml("TreeEnsembleClassifier", {"x": rows(4, 3)}, [(I64, [4]), (F, [4, 2])], 3, **votes, **grow)
    )


def _left_alone(proto: onnx.ModelProto) -> None:
    op = proto.graph.node[0].op_type
    model = Model(ir.from_proto(proto))
    infer_model(model)
    context = Context.of(model.ir)
    assert Legalizing(Legalize(), model, context, Refusing(frozenset([op]))).run() == 0
    assert [n.op_type for n in model.graph] == [op]


def test_reference_and_runtime_agree_on_the_cases_used_here() -> None:
    x = np.array([1, 2, 3, 2, 3, 4, 1], np.int64)
    proto = single(
        "TfIdfVectorizer", {"x": x}, [F], opset=18, mode="TF", min_gram_length=2, max_gram_length=2,
        max_skip_count=1, ngram_counts=[0, 1], ngram_indexes=[0, 1, 2], pool_int64s=[9, 2, 3, 3, 4],
    )  # fmt: skip
    agree(in_runtime(proto, {"x": x}), in_reference(proto, {"x": x}))


def svc(classes: int, kind: str, transform: str, features: int, **more: Any) -> dict[str, Any]:
    """Attributes of a classifier with some support vectors of each class."""
    counts = [2, 3, 1, 2][:classes]
    total = sum(counts)
    return {
        "vectors_per_class": counts, "kernel_type": kind, "kernel_params": [0.5, 0.25, 2.0],
        "support_vectors": rows(total, features, 3).reshape(-1).tolist(),
        "coefficients": rows(classes - 1, total, 4).reshape(-1).tolist(),
        "rho": rows(1, classes * (classes - 1) // 2, 5)[0].tolist(),
        "classlabels_ints": [7, 3, 9, 1][:classes], "post_transform": transform, **more,
    }  # fmt: skip


@pytest.mark.parametrize("kind", ["LINEAR", "RBF", "POLY", "SIGMOID"])
@pytest.mark.parametrize("classes", [2, 3, 4])
def test_svm_classifier(kind: str, classes: int) -> None:
    for transform, count in (("NONE", 20), ("LOGISTIC", 3), ("SOFTMAX", 5)):
        x = rows(count, 4)
        proto = ml("SVMClassifier", {"x": x}, [I64, F], **svc(classes, kind, transform, 4))
        check(proto, {"x": x}, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("positive", [False, True])
def test_svm_classifier_without_support_vectors(classes: int, positive: bool) -> None:
    x = rows(15, 4)
    weights = rows(classes, 4, 8)
    weights = np.abs(weights) if positive else weights
    for transform in ("NONE", "SOFTMAX"):
        attributes = {
            "coefficients": weights.reshape(-1).tolist(), "rho": [0.2], "classlabels_ints": [4, 2, 6][:classes],
            "post_transform": transform, "kernel_type": "LINEAR", "kernel_params": [0.0, 0.0, 0.0],
        }  # fmt: skip
        check(ml("SVMClassifier", {"x": x}, [I64, F], **attributes), {"x": x}, rtol=1e-4, atol=1e-5)


def test_svm_classifier_of_probabilities_stays() -> None:
    """They come from an iteration that stops at a tolerance of its own."""
    x = rows(3, 4)
    more = {"prob_a": [-1.0], "prob_b": [0.1]}
    proto = ml("SVMClassifier", {"x": x}, [I64, F], **svc(2, "RBF", "NONE", 4, **more))
    with pytest.raises(AssertionError):
        legalized(proto, ["SVMClassifier"])


@pytest.mark.parametrize("classes", [2, 3])
def test_labels_that_are_strings_and_nobody_reads(classes: int) -> None:
    x = rows(6, 4)
    attributes = svc(classes, "RBF", "NONE", 4)
    numbers = ml("SVMClassifier", {"x": x}, [I64, F], **attributes)
    del attributes["classlabels_ints"]
    attributes["classlabels_strings"] = ["red", "green", "blue"][:classes]
    proto = ml("SVMClassifier", {"x": x}, [0, F], **attributes)
    after, _ = legalized(proto, ["SVMClassifier"])
    agree(in_runtime(after, {"x": x}), in_runtime(numbers, {"x": x})[1:], 1e-4, 1e-5)
