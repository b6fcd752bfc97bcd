"""The search: for each refused node the first rewrite whose result the target takes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import onnx_ir as ir

from onnxlathe import Model
from onnxlathe.infer import infer_model
from onnxlathe.rewrite import Context, Names, NoMatch, subgraphs
from onnxlathe_passes.fold import Fold
from onnxlathe_passes.legalize import mini
from onnxlathe_passes.legalize.body import expanded
from onnxlathe_passes.legalize.draft import LOWERINGS
from onnxlathe_passes.legalize.judge import Expectation, Judge, Ruling

_DEPTH = 4  # rewrites of what rewrites made
_ROUNDS = 12


@dataclass
class Solver:
    """Finds what the target takes instead of what it refuses.

    Attributes:
        judge: who decides.
        permit: asked before each change of the model itself.
        changed: called after it with the nodes before and after and how it was done.
        unsolved: refused nodes for which nothing was found, with the target's words.
    """

    judge: Judge
    permit: Callable[[], bool] = lambda: True
    changed: Callable[[ir.Node, list[ir.Node], str], None] = lambda *_: None
    unsolved: dict[str, str] = field(default_factory=dict)
    dead_ends: set[Any] = field(default_factory=set)

    def settle(
        self, model: ir.Model, depth: int = _DEPTH, expect: Expectation | None = None, *, top: bool = False
    ) -> Ruling:
        """Rewrite refused nodes of a small model until the target takes it or nothing helps.

        Returns:
            The last ruling.
        """
        names = Names(model)
        tried: set[ir.Node] = set()
        ruling = self.judge.judge(model, expect)
        for _ in range(_ROUNDS):
            if ruling.accepted or (ruling.fatal and len(model.graph) > 1):
                break
            progress = False
            for node in self._culprits(model, ruling):
                if node in tried or node.graph is None:
                    continue
                tried.add(node)
                if self._fix(node, model, names, depth, expect, top, ruling):
                    progress = True
            if not progress:
                break
            ruling = self.judge.judge(model, expect)
        return ruling

    def _culprits(self, model: ir.Model, ruling: Ruling) -> list[ir.Node]:
        nodes = list(model.graph)
        if len(nodes) == 1:
            return nodes
        named = [nodes[i] for i in ruling.culprits if i < len(nodes)]
        if named:
            return named
        alone = []
        for node in nodes:
            piece = self._cut(node, model)
            if piece is not None and not self.judge.judge(piece).accepted:
                alone.append(node)
        return alone

    def _cut(self, node: ir.Node, model: ir.Model) -> ir.Model | None:
        return mini.cut(node, dict(model.graph.opset_imports), model.ir_version)

    def _fix(
        self,
        node: ir.Node,
        model: ir.Model,
        names: Names,
        depth: int,
        expect: Expectation | None,
        top: bool,
        ruling: Ruling,
    ) -> bool:
        piece = self._cut(node, model)
        if piece is None:
            return False
        runtime = {v for v in node.inputs if v is not None and not v.is_initializer()}
        fewer = len(piece.graph.inputs) < len(runtime)
        if fewer and self.judge.judge(piece, expect).accepted:
            return self._put(piece, node, names, top, "constant operands")
        if depth == 0:
            return False
        if any(True for _ in subgraphs(node)) and self._fix_inside(node, model, names, depth, expect, top, ruling):
            return True
        key = ir.to_proto(piece).SerializeToString()
        if key in self.dead_ends:
            return False
        for how, candidate in self._candidates(piece):
            if self.settle(candidate, depth - 1, expect).accepted:
                return self._put(candidate, node, names, top, how)
        self.dead_ends.add(key)
        if top:
            self.unsolved[node.name or node.op_type] = ruling.message
        return False

    def _fix_inside(
        self,
        node: ir.Node,
        model: ir.Model,
        names: Names,
        depth: int,
        expect: Expectation | None,
        top: bool,
        ruling: Ruling,
    ) -> bool:
        """Rewrite what the target refuses of the nodes in the subgraphs of `node`."""
        progress = False
        for graph in subgraphs(node):
            for inner in list(graph):
                piece = self._cut(inner, model) if inner.graph is not None else None
                if piece is None or self.judge.judge(piece).accepted:
                    continue
                if self._fix(inner, model, names, depth, expect, top, ruling):
                    progress = True
        return progress

    def _put(self, piece: ir.Model, node: ir.Node, names: Names, top: bool, how: str) -> bool:
        if top and not self.permit():
            return False
        made = mini.splice(piece, node, names)
        if top:
            self.changed(node, made, how)
        return True

    def _candidates(self, piece: ir.Model) -> Iterator[tuple[str, ir.Model]]:
        """Models that compute the same as `piece`, in the order in which they are to be tried."""
        node = mini.only_node(piece)
        for lowering in LOWERINGS.get((node.domain, node.op_type), ()):
            copy = piece.clone()
            try:
                if mini.apply(lowering, copy, mini.only_node(copy), Names(copy)):
                    yield lowering.__name__, tidied(copy)
            except NoMatch:
                continue
        try:
            yield "function body", tidied(expanded(piece, node))
        except NoMatch:
            return


def tidied(model: ir.Model) -> ir.Model:
    """The model with types and shapes inferred and constants folded."""
    whole = Model(model)
    infer_model(whole)
    Fold().run(whole, Context.of(model))
    infer_model(whole)
    return model
