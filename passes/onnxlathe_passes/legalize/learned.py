"""ai.onnx.ml: scalers, linear models, support vectors and encoders of scikit-learn as tensor algebra."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from onnxlathe.rewrite import require
from onnxlathe_passes.legalize.draft import (
    Draft,
    element_type,
    given,
    lowers,
    rank_of,
    static_dims,
    static_or_none,
    value_of,
    wanted,
)

T = ir.DataType


def features(op: Draft, node: ir.Node, index: int = 0) -> ir.Value:
    """An operand of these operators as float rows; a single row may come without its axis."""
    x = op.cast(given(node, index), T.FLOAT)
    rank = rank_of(x)
    require(rank in (1, 2), "neither a row nor rows of features")
    return op.unsqueeze(x, 0) if rank == 1 else x


def floats(node: ir.Node, name: str) -> np.ndarray:
    """A list of floats that is an attribute; empty where it is left out."""
    own = node.attributes.get(name)
    return np.asarray(own.value if own else [], dtype=np.float32)


def transformed(op: Draft, scores: ir.Value, how: str) -> ir.Value:
    """Scores after `post_transform`; a single score stays as it is, which is what ONNX Runtime does."""
    require(how in ("NONE", "LOGISTIC", "SOFTMAX"), f"post_transform={how}")
    dims = static_or_none(scores)
    if dims is not None and dims[-1] == 1:
        return scores
    if how == "LOGISTIC":
        scores = op.Sigmoid(scores)
    elif how == "SOFTMAX":
        scores = op.Softmax(scores, axis=-1)
    return scores


def labels_of(node: ir.Node) -> np.ndarray:
    """The classes of a classifier, where they are numbers, or nobody asks for them."""
    own = node.attributes.get("classlabels_ints") or node.attributes.get("classlabels_int64s")
    strings = node.attributes.get("classlabels_strings")
    if own is None and strings is not None and not wanted(node, 0):
        return np.arange(len(strings.value), dtype=np.int64)
    require(own is not None or strings is None, "its labels are strings")
    return np.asarray(own.value if own else [], dtype=np.int64)


def labelled(op: Draft, scores: ir.Value, labels: np.ndarray) -> ir.Value:
    """The label of the best score of each row."""
    best = op.ArgMax(scores, axis=1, keepdims=0)
    result: ir.Value = op.Gather(op.constant(labels), best)
    return result


def two_sided(
    op: Draft, score: ir.Value, labels: np.ndarray, how: str, *, limit: float = 0.0, complement: bool = True
) -> tuple[ir.Value, ir.Value]:
    """Label and both scores of a decision that is one number: the second class from `limit` on.

    The first class gets what is missing to one, or the negated number; as ONNX Runtime does it.
    """
    require(how in ("NONE", "LOGISTIC", "SOFTMAX"), f"post_transform={how}")
    chosen = op.squeeze(op.Greater(score, op.like(limit, score)), 1)
    label = op.Where(chosen, op.constant(labels[1]), op.constant(labels[0]))
    if how == "LOGISTIC":
        return label, op.Sigmoid(op.Concat(op.Neg(score), score, axis=1))
    other = op.Sub(op.like(1.0, score), score) if complement else op.Neg(score)
    return label, op.Concat(other, score, axis=1)


def outputs_of(node: ir.Node, label: ir.Value, scores: ir.Value) -> list[ir.Value | None]:
    """Those of a classifier's outputs that are there."""
    return [label if wanted(node, 0) else None, scores if wanted(node, 1) else None]


@lowers("ai.onnx.ml::Scaler")
def scaler(op: Draft, node: ir.Node) -> ir.Value:
    """(x - offset) * scale, column by column."""
    x = op.cast(given(node, 0), T.FLOAT)
    offset, scale = floats(node, "offset"), floats(node, "scale")
    require(offset.size > 0 and scale.size > 0, "no offset or scale")
    result: ir.Value = op.Mul(op.Sub(x, op.constant(offset)), op.constant(scale))
    return result


@lowers("ai.onnx.ml::Normalizer")
def normalizer(op: Draft, node: ir.Node) -> ir.Value:
    """Each row over its norm; a row without one stays."""
    x = op.cast(given(node, 0), T.FLOAT)
    how = str(value_of(node, "norm", op, "MAX"))
    axis = rank_of(x) - 1
    # MAX is the largest of the numbers, not of their sizes.
    norm = op.reduce({"MAX": "Max", "L1": "L1"}.get(how, "L2"), x, [axis])
    zero = op.Equal(norm, op.like(0.0, x))
    result: ir.Value = op.Div(x, op.Where(zero, op.like(1.0, x), norm))
    return result


@lowers("ai.onnx.ml::LinearRegressor")
def linear_regressor(op: Draft, node: ir.Node) -> ir.Value:
    """A product with the coefficients."""
    targets = int(value_of(node, "targets", op, 1))
    x, intercepts = features(op, node), floats(node, "intercepts")
    weights = floats(node, "coefficients").reshape(targets, -1)
    y = op.MatMul(x, op.constant(np.ascontiguousarray(weights.T)))
    if intercepts.size:
        y = op.Add(y, op.constant(intercepts))
    return transformed(op, y, str(value_of(node, "post_transform", op, "NONE")))


@lowers("ai.onnx.ml::LinearClassifier")
def linear_classifier(op: Draft, node: ir.Node) -> list[ir.Value | None]:
    """Scores by a product with the coefficients, and the label of the best one."""
    x, labels, intercepts = features(op, node), labels_of(node), floats(node, "intercepts")
    coefficients = floats(node, "coefficients")
    classes = intercepts.size or max(1, coefficients.size // static_dims(x)[1])
    weights = coefficients.reshape(classes, -1)
    how = str(value_of(node, "post_transform", op, "NONE"))
    scores = op.MatMul(x, op.constant(np.ascontiguousarray(weights.T)))
    if intercepts.size:
        scores = op.Add(scores, op.constant(intercepts))
    if classes == 1:
        require(labels.size == 2, "one score without two labels")
        return outputs_of(node, *two_sided(op, scores, labels, how))
    require(labels.size == classes, "labels and scores differ in number")
    return outputs_of(node, labelled(op, scores, labels), transformed(op, scores, how))


@lowers("ai.onnx.ml::SVMRegressor")
def svm_regressor(op: Draft, node: ir.Node) -> ir.Value:
    """Weighted kernels of the support vectors."""
    x, rho = features(op, node), floats(node, "rho")
    supports = int(value_of(node, "n_supports", op, 0))
    coefficients = floats(node, "coefficients")
    how = str(value_of(node, "post_transform", op, "NONE"))
    if supports:
        vectors = floats(node, "support_vectors").reshape(supports, -1)
        near = kernel(op, x, vectors, str(value_of(node, "kernel_type", op, "LINEAR")), node)
    else:
        near = x
    y = op.Add(op.MatMul(near, op.constant(coefficients.reshape(-1, 1))), op.constant(rho[:1]))
    if int(value_of(node, "one_class", op, 0)):
        y = op.Where(op.Greater(y, op.like(0.0, y)), op.like(1.0, y), op.like(-1.0, y))
    return transformed(op, y, how)


def kernel(op: Draft, x: ir.Value, vectors: np.ndarray, kind: str, node: ir.Node) -> ir.Value:
    """How near each row lies to each support vector, `[rows, vectors]`."""
    gamma, shift, degree = (*floats(node, "kernel_params"), 0.0, 0.0, 0.0)[:3]
    if kind == "RBF":
        # Differences rather than |x|² - 2xy + |y|², which cancels.
        apart = op.Sub(op.unsqueeze(x, 1), op.constant(vectors[None]))
        squares = op.reduce("SumSquare", apart, [2], keepdims=False)
        result: ir.Value = op.Exp(op.Mul(squares, op.like(-gamma, x)))
        return result
    dot = op.MatMul(x, op.constant(np.ascontiguousarray(vectors.T)))
    if kind == "LINEAR":
        return dot  # type: ignore[no-any-return]
    moved = op.Add(op.Mul(dot, op.like(gamma, x)), op.like(shift, x))
    require(kind in ("POLY", "SIGMOID"), f"kernel_type={kind}")
    return op.Pow(moved, op.like(degree, x)) if kind == "POLY" else op.Tanh(moved)  # type: ignore[no-any-return]


@lowers("ai.onnx.ml::Imputer")
def imputer(op: Draft, node: ir.Node) -> ir.Value:
    """What is missing is replaced."""
    x = given(node, 0)
    if element_type(x) in (T.INT64, T.INT32):
        missing = int(value_of(node, "replaced_value_int64", op, 0))
        values = np.asarray(value_of(node, "imputed_value_int64s", op, []), dtype=np.int64)
        hit = op.Equal(x, op.like(missing, x))
    else:
        gone = float(value_of(node, "replaced_value_float", op, 0.0))
        values = floats(node, "imputed_value_floats")
        hit = op.IsNaN(x) if math.isnan(gone) else op.Equal(x, op.like(gone, x))
    require(values.size > 0, "nothing to put in")
    result: ir.Value = op.Where(hit, op.like(values, x), x)
    return result


@lowers("ai.onnx.ml::OneHotEncoder")
def one_hot_encoder(op: Draft, node: ir.Node) -> ir.Value:
    """Equal to each category; for numbers."""
    require("cats_int64s" in node.attributes, "its categories are strings")
    # With zeros=0 an unknown category ends the run; an engine has no such way out.
    require(bool(value_of(node, "zeros", op, 1)), "an unknown category is an error")
    categories = np.asarray(node.attributes["cats_int64s"].value, dtype=np.int64)
    hits = op.Equal(op.unsqueeze(op.cast(given(node, 0), T.INT64), -1), op.constant(categories))
    return op.cast(hits, T.FLOAT)


@lowers("ai.onnx.ml::FeatureVectorizer")
def feature_vectorizer(op: Draft, node: ir.Node) -> ir.Value:
    """Columns side by side."""
    parts = []
    widths = list(value_of(node, "inputdimensions", op, []) or [])
    require(len(widths) == len(node.inputs), "widths are missing")
    for index, width in enumerate(widths):
        part = features(op, node, index)
        dims = static_or_none(part)
        require(dims is not None and dims[1] == width, "a column is cut or filled up")
        parts.append(part)
    result: ir.Value = op.Concat(*parts, axis=1)
    return result


@lowers("TfIdfVectorizer")
def tf_idf(op: Draft, node: ir.Node) -> ir.Value:
    """Each window of the sequence compared with each n-gram of the pool; for numbers."""
    require("pool_int64s" in node.attributes, "its n-grams are strings")
    x = given(node, 0)
    length = static_dims(x)[-1]
    least, most, skips = (
        int(value_of(node, n, op)) for n in ("min_gram_length", "max_gram_length", "max_skip_count")
    )
    pool = np.asarray(node.attributes["pool_int64s"].value, dtype=np.int64)
    starts = [*node.attributes["ngram_counts"].value, len(pool)]
    places = np.asarray(node.attributes["ngram_indexes"].value, dtype=np.int64)
    counts, columns, first = [], [], 0
    for size in range(1, len(starts)):
        grams = pool[starts[size - 1] : starts[size]].reshape(-1, size)
        mine, first = places[first : first + len(grams)], first + len(grams)
        windows = [
            [start + step * k for k in range(size)]
            for step in range(1, (skips if size > 1 else 0) + 2)
            for start in range(length - step * (size - 1))
        ]
        if not (least <= size <= most and len(grams) and windows):
            continue
        hit: ir.Value | None = None
        for k in range(size):
            item = op.unsqueeze(op.Gather(x, op.ints([w[k] for w in windows]), axis=-1), -1)
            same = op.Equal(item, op.like(grams[:, k], x))
            hit = same if hit is None else op.And(hit, same)
        assert hit is not None
        counts.append(op.reduce("Sum", op.cast(hit, T.FLOAT), [rank_of(x) - 1], keepdims=False))
        columns.append(mine)
    require(bool(counts), "no n-gram fits")
    order = np.concatenate(columns)
    width = int(places.max()) + 1
    table = (order[:, None] == np.arange(width)).astype(np.float32)
    found = op.MatMul(op.Concat(*counts, axis=-1) if len(counts) > 1 else counts[0], op.constant(table))
    mode = str(value_of(node, "mode", op, "TF"))
    weights = floats(node, "weights") if mode != "TF" else np.ones(width, np.float32)
    require(weights.size in (0, width), "weights and outputs differ in number")
    if mode == "IDF":
        found = op.cast(op.Greater(found, op.like(0.0, found)), T.FLOAT)
    result: ir.Value = op.Mul(found, op.constant(weights)) if weights.size else found
    return result
