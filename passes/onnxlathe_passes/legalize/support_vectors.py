"""ai.onnx.ml: SVMClassifier, in which each pair of classes decides and votes count, as in ONNX Runtime."""

from __future__ import annotations

import itertools

import numpy as np
import onnx_ir as ir

from onnxlathe.rewrite import require
from onnxlathe_passes.legalize.draft import Draft, lowers, value_of
from onnxlathe_passes.legalize.learned import (
    features,
    floats,
    kernel,
    labelled,
    labels_of,
    outputs_of,
    transformed,
    two_sided,
)


@lowers("ai.onnx.ml::SVMClassifier")
def svm_classifier(op: Draft, node: ir.Node) -> list[ir.Value | None]:
    """Kernels of the support vectors, a score for each pair of classes, and the class with the most votes."""
    x, labels, rho = features(op, node), labels_of(node), floats(node, "rho")
    require(floats(node, "prob_a").size == 0, "probabilities, which ONNX Runtime finds by iteration")
    how = str(value_of(node, "post_transform", op, "NONE"))
    require(how in ("NONE", "LOGISTIC", "SOFTMAX"), f"post_transform={how}")
    counts = np.asarray(value_of(node, "vectors_per_class", op, []) or [], np.int64)
    coefficients = floats(node, "coefficients")
    require(labels.size >= 2, "one class only")
    if not counts.sum():
        return _linear(op, node, x, labels, coefficients.reshape(labels.size, -1), float(rho[0]), how)
    total = int(counts.sum())
    vectors = floats(node, "support_vectors").reshape(total, -1)
    near = kernel(op, x, vectors, str(value_of(node, "kernel_type", op, "LINEAR")), node)
    pairs = list(itertools.combinations(range(labels.size), 2))
    weights = _by_pairs(coefficients.reshape(-1, total), counts, pairs)
    scores = op.Add(op.MatMul(near, op.constant(weights)), op.constant(rho[: len(pairs)]))
    won = op.cast(op.Greater(scores, op.like(0.0, scores)), ir.DataType.FLOAT)
    first = np.array([[pair[0] == c for c in range(labels.size)] for pair in pairs], np.float32)
    second = np.array([[pair[1] == c for c in range(labels.size)] for pair in pairs], np.float32)
    lost = op.Sub(op.like(1.0, won), won)
    votes = op.Add(op.MatMul(won, op.constant(first)), op.MatMul(lost, op.constant(second)))
    label = labelled(op, votes, labels)
    if len(pairs) > 1:
        return outputs_of(node, label, transformed(op, scores, how))
    _, both = two_sided(op, scores, labels, how, complement=how != "NONE")
    return outputs_of(node, label, both)


def _by_pairs(coefficients: np.ndarray, counts: np.ndarray, pairs: list[tuple[int, int]]) -> np.ndarray:
    """For each support vector and pair of classes its coefficient, which is zero unless it is of one of them."""
    starts = np.concatenate([[0], np.cumsum(counts)])
    weights = np.zeros((coefficients.shape[1], len(pairs)), np.float32)
    for column, (i, j) in enumerate(pairs):
        mine, theirs = slice(starts[i], starts[i + 1]), slice(starts[j], starts[j + 1])
        weights[mine, column] = coefficients[j - 1, mine]
        weights[theirs, column] = coefficients[i, theirs]
    return weights


def _linear(
    op: Draft, node: ir.Node, x: ir.Value, labels: np.ndarray, weights: np.ndarray, rho: float, how: str
) -> list[ir.Value | None]:
    """Without support vectors: a product with the coefficients. Of two classes, the second wins from a limit on."""
    scores = op.Add(op.MatMul(x, op.constant(np.ascontiguousarray(weights.T))), op.like(rho, x))
    label = labelled(op, scores, labels)
    if labels.size == 2:
        best = op.reduce("Max", scores, [1], False)
        sure = (
            op.GreaterOrEqual(best, op.like(0.5, best))
            if (weights >= 0).all()
            else op.Greater(best, op.like(0.0, best))
        )
        label = op.Where(sure, op.constant(labels[1]), label)
    return outputs_of(node, label, transformed(op, scores, how))
