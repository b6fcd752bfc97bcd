"""Ensembles of decision trees: all trees are walked down at once, one comparison a level.

The strategy "TreeTraversal" of Hummingbird (Nakandala et al., OSDI 2020): the nodes of all trees are rows of
tables, and where each sample stands in each tree is a tensor of row numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from onnxlathe.rewrite import require
from onnxlathe_passes.legalize.draft import Array, Draft, lowers, value_of, wanted
from onnxlathe_passes.legalize.learned import (
    features,
    floats,
    labelled,
    labels_of,
    outputs_of,
    transformed,
    two_sided,
)

_DEEPEST = 256

_MODES = ("BRANCH_LEQ", "BRANCH_LT", "BRANCH_GTE", "BRANCH_GT", "BRANCH_EQ", "BRANCH_NEQ", "BRANCH_MEMBER")
_TRANSFORMS = ("NONE", "SOFTMAX", "LOGISTIC", "SOFTMAX_ZERO", "PROBIT")
_AGGREGATES = ("AVERAGE", "SUM", "MIN", "MAX")


@dataclass
class Forest:
    """Rows of nodes. A leaf leads to itself.

    Every comparison is brought to x <= t or x < t: the others swap the two ways, and equality is two rows.

    Attributes:
        feature, threshold: what is compared with what.
        inclusive: x <= t rather than x < t.
        missing: NaN goes the way of a true comparison.
        true, false: the rows that follow.
        roots: first row of each tree.
        weights: row → (target, weight) of its leaf.
    """

    feature: list[int] = field(default_factory=list)
    threshold: list[float] = field(default_factory=list)
    inclusive: list[bool] = field(default_factory=list)
    missing: list[bool] = field(default_factory=list)
    true: list[int] = field(default_factory=list)
    false: list[int] = field(default_factory=list)
    roots: list[int] = field(default_factory=list)
    weights: dict[int, list[tuple[int, float]]] = field(default_factory=dict)

    def leaf(self) -> int:
        """A new leaf."""
        row = len(self.feature)
        return self._row(0, 0.0, False, False, row, row)

    def _row(self, feature: int, threshold: float, inclusive: bool, missing: bool, yes: int, no: int) -> int:
        self.feature.append(feature)
        self.threshold.append(threshold)
        self.inclusive.append(inclusive)
        self.missing.append(missing)
        self.true.append(yes)
        self.false.append(no)
        return len(self.feature) - 1

    def set(self, row: int, mode: str, feature: int, threshold: float, nan: bool, yes: int, no: int) -> None:
        """Make a leaf a branch: `mode` of the specification, `nan` goes to `yes` if it is set."""
        if mode in ("BRANCH_GT", "BRANCH_GTE", "BRANCH_NEQ"):
            yes, no = no, yes
            nan = not (nan or mode == "BRANCH_NEQ")  # NaN != t holds
            mode = {"BRANCH_GT": "BRANCH_LEQ", "BRANCH_GTE": "BRANCH_LT", "BRANCH_NEQ": "BRANCH_EQ"}[mode]
        if mode == "BRANCH_EQ":  # x <= t, and then not x < t
            yes = self._row(feature, threshold, False, False, no, yes)
            mode = "BRANCH_LEQ"
        require(mode in ("BRANCH_LEQ", "BRANCH_LT"), f"a node of mode {mode}")
        self.feature[row], self.threshold[row], self.missing[row] = feature, threshold, nan
        self.inclusive[row], self.true[row], self.false[row] = mode == "BRANCH_LEQ", yes, no

    def member(self, row: int, feature: int, members: Sequence[float], nan: bool, yes: int, no: int) -> None:
        """Make a leaf a branch on being one of several numbers."""
        rows = [row, *(self.leaf() for _ in members[1:])]
        for this, number, rest in zip(rows, members, [*rows[1:], no], strict=True):
            self.set(this, "BRANCH_EQ", feature, number, nan, yes, rest)

    def depth(self) -> int:
        """Steps until every sample stands at a leaf."""
        level, steps = set(self.roots), 0
        while level := {n for r in level for n in (self.true[r], self.false[r]) if n != r}:
            steps += 1
            require(steps <= _DEEPEST, "a tree of more than 256 levels")
        return steps

    def table(self, targets: int) -> Array:
        """Weights of each row for each target."""
        made = np.zeros((len(self.feature), targets), np.float32)
        for row, pairs in self.weights.items():
            for target, weight in pairs:
                made[row, target] += np.float32(weight)
        return made


def walked(op: Draft, x: ir.Value, forest: Forest) -> ir.Value:
    """The leaf that each row of `x` comes to in each tree: [samples, trees]."""
    tables = {
        name: np.asarray(getattr(forest, name), dtype=kind)
        for name, kind in (
            ("feature", np.int64), ("threshold", np.float32), ("inclusive", bool), ("missing", bool),
            ("true", np.int64), ("false", np.int64),
        )
    }  # fmt: skip
    roots = np.asarray(forest.roots, dtype=np.int64)
    inner = tables["true"] != np.arange(len(tables["true"]))
    inclusive = tables["inclusive"][inner]
    at: ir.Value | None = None

    def of(name: str) -> ir.Value:
        """A table's entries where the samples stand; at the roots they all stand alike."""
        if at is None:
            return op.constant(tables[name][roots])
        result: ir.Value = op.Gather(op.constant(tables[name]), at)
        return result

    for _ in range(forest.depth()):
        mine = (
            op.Gather(x, of("feature"), axis=1) if at is None else op.GatherElements(x, of("feature"), axis=1)
        )
        limit = of("threshold")
        if inclusive.all():
            goes = op.LessOrEqual(mine, limit)
        else:
            goes = op.Less(mine, limit)
            if inclusive.any():
                goes = op.Or(goes, op.And(op.Equal(mine, limit), of("inclusive")))
        if tables["missing"].any():
            goes = op.Or(goes, op.And(op.IsNaN(mine), of("missing")))
        at = op.Where(goes, of("true"), of("false"))
    if at is None:  # leaves only: as many rows as samples all the same
        at = op.Expand(
            op.constant(roots), op.Concat(op.Shape(x, start=0, end=1), op.ints([len(roots)]), axis=0)
        )
    return at


def aggregated(op: Draft, leaves: ir.Value, forest: Forest, targets: int, how: str) -> ir.Value:
    """The trees' weights put together: [samples, targets]."""
    weights = op.Gather(op.constant(forest.table(targets)), leaves)
    require(how in _AGGREGATES, f"aggregate_function={how}")
    if how in ("MIN", "MAX"):
        rows = [r for r in range(len(forest.feature)) if forest.true[r] == r]
        full = all({t for t, _ in forest.weights.get(r, [])} == set(range(targets)) for r in rows)
        require(full, "a leaf without a weight for each target")
        return op.reduce("Min" if how == "MIN" else "Max", weights, [1], keepdims=False)
    total = op.reduce("Sum", weights, [1], keepdims=False)
    return op.Div(total, op.like(len(forest.roots), total)) if how == "AVERAGE" else total


@lowers("ai.onnx.ml::TreeEnsembleRegressor")
def tree_regressor(op: Draft, node: ir.Node) -> ir.Value:
    """The sum of what the leaves say, or their mean, least or largest."""
    forest = _forest(node, "target")
    targets = int(value_of(node, "n_targets", op, 1))
    x = features(op, node)
    how = str(value_of(node, "aggregate_function", op, "SUM"))
    scores = aggregated(op, walked(op, x, forest), forest, targets, how)
    base = _numbers(node, "base_values")
    if base.size:
        scores = op.Add(scores, op.constant(base))
    return transformed(op, scores, str(value_of(node, "post_transform", op, "NONE")))


@lowers("ai.onnx.ml::TreeEnsembleClassifier")
def tree_classifier(op: Draft, node: ir.Node) -> list[ir.Value | None]:
    """The sum of the leaves' votes, and the label with most of them."""
    forest, labels = _forest(node, "class"), labels_of(node)
    x = features(op, node)
    how = str(value_of(node, "post_transform", op, "NONE"))
    ids = {target for pairs in forest.weights.values() for target, _ in pairs}
    classes = len(labels)
    base = _numbers(node, "base_values")
    if classes == 2 and len(ids) == 1:
        return outputs_of(node, *_binary(op, x, forest, labels, base, how))
    require(classes > 1 and max(ids) < classes, "labels and votes differ in number")
    # ONNX Runtime has its own way with this case, whatever the labels are.
    require(classes > 2 or not wanted(node, 0), "votes for both of two classes")
    scores = aggregated(op, walked(op, x, forest), forest, classes, "SUM")
    if base.size:
        scores = op.Add(scores, op.constant(base))
    return outputs_of(node, labelled(op, scores, labels), transformed(op, scores, how))


def _binary(
    op: Draft, x: ir.Value, forest: Forest, labels: Array, base: Array, how: str
) -> tuple[ir.Value, ir.Value]:
    """Votes for one of two classes: probabilities where none is negative, else signed scores."""
    forest.weights = {row: [(0, w) for _, w in pairs] for row, pairs in forest.weights.items()}
    score = aggregated(op, walked(op, x, forest), forest, 1, "SUM")
    if base.size:
        require(base.size == 1, "two base values for one score")
        score = op.Add(score, op.constant(base))
    positive = all(w >= 0 for pairs in forest.weights.values() for _, w in pairs)
    return two_sided(op, score, labels, how, limit=0.5 if positive else 0.0, complement=positive)


@lowers("ai.onnx.ml::TreeEnsemble")
def tree_ensemble(op: Draft, node: ir.Node) -> ir.Value:
    """As the specification has them since version 5: leaves apart from branches."""
    forest = Forest()

    def tensor(name: str) -> Array:
        return np.asarray(node.attributes[name].as_tensor().numpy()).reshape(-1)

    def ints(name: str) -> list[int]:
        return [int(n) for n in value_of(node, name, op, None) or []]

    feature, splits, modes = ints("nodes_featureids"), tensor("nodes_splits"), tensor("nodes_modes")
    yes, no = ints("nodes_truenodeids"), ints("nodes_falsenodeids")
    yes_leaf, no_leaf = ints("nodes_trueleafs"), ints("nodes_falseleafs")
    tracks = ints("nodes_missing_value_tracks_true") or [0] * len(feature)
    targets, leaf_weights = ints("leaf_targetids"), tensor("leaf_weights")
    for _ in feature:
        forest.leaf()
    leaves = [forest.leaf() for _ in targets]
    for leaf, target, weight in zip(leaves, targets, leaf_weights, strict=True):
        forest.weights[leaf] = [(target, float(weight))]
    sets = _members(tensor("membership_values") if "membership_values" in node.attributes else np.zeros(0))
    for row, number in enumerate(feature):
        after = leaves[yes[row]] if yes_leaf[row] else yes[row], leaves[no[row]] if no_leaf[row] else no[row]
        mode = _MODES[int(modes[row])]
        if mode == "BRANCH_MEMBER":
            forest.member(row, number, sets.pop(0), bool(tracks[row]), *after)
        else:
            forest.set(row, mode, number, float(splits[row]), bool(tracks[row]), *after)
    forest.roots = ints("tree_roots")
    x = features(op, node)
    how = _AGGREGATES[int(value_of(node, "aggregate_function", op, 1))]
    scores = aggregated(op, walked(op, x, forest), forest, int(value_of(node, "n_targets", op, 1)), how)
    return transformed(op, scores, _TRANSFORMS[int(value_of(node, "post_transform", op, 0))])


def _members(values: Array) -> list[list[float]]:
    """Sets of numbers, each ended by a NaN."""
    sets: list[list[float]] = [[]]
    for value in values:
        if np.isnan(value):
            sets.append([])
        else:
            sets[-1].append(float(value))
    return sets


def _numbers(node: ir.Node, name: str) -> Array:
    """A list of numbers, given as floats or as a tensor of them."""
    own = node.attributes.get(f"{name}_as_tensor")
    if own is not None:
        return np.asarray(own.as_tensor().numpy(), dtype=np.float32).reshape(-1)
    return floats(node, name)


def _forest(node: ir.Node, kind: str) -> Forest:
    """The trees of a regressor (`target`) or classifier (`class`)."""

    def ints(name: str) -> list[int]:
        own = node.attributes.get(name)
        return [int(v) for v in own.value] if own else []

    forest, rows = Forest(), dict[tuple[int, int], int]()
    names = list(zip(ints("nodes_treeids"), ints("nodes_nodeids"), strict=True))
    for name in names:
        rows[name] = forest.leaf()
    require(len(rows) == len(names), "a node is there twice")
    modes = [str(m) for m in node.attributes["nodes_modes"].as_strings()]
    tracks = ints("nodes_missing_value_tracks_true") or [0] * len(names)
    below: set[int] = set()
    branches = zip(
        names, modes, ints("nodes_featureids"), _numbers(node, "nodes_values"), tracks,
        ints("nodes_truenodeids"), ints("nodes_falsenodeids"), strict=True,
    )  # fmt: skip
    for name, mode, feature, value, nan, yes, no in branches:
        if mode == "LEAF":
            continue
        require((name[0], yes) in rows and (name[0], no) in rows, "a branch leads nowhere")
        after = rows[name[0], yes], rows[name[0], no]
        below.update(after)
        forest.set(rows[name], mode, feature, float(value), bool(nan), *after)
    first = dict.fromkeys(tree for tree, _ in names)
    forest.roots = [
        next((rows[n] for n in names if n[0] == tree and rows[n] not in below), rows[tree, 0])
        for tree in first
    ]
    weights = zip(
        ints(f"{kind}_treeids"), ints(f"{kind}_nodeids"), ints(f"{kind}_ids"),
        _numbers(node, f"{kind}_weights"), strict=True,
    )  # fmt: skip
    for tree, leaf, target, weight in weights:
        forest.weights.setdefault(rows[tree, leaf], []).append((target, float(weight)))
    return forest
