"""The search: for each refused node the first rewrite whose result the target takes."""

from __future__ import annotations

import hashlib
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
_ROUNDS = 100  # each of which changes something
_FEW_FLOATS = 64  # bytes of floats
_FEW = 1 << 12  # bytes of other numbers: what is larger is a weight, and does not decide what a node becomes
_BUILT = 16 << 20  # bytes of weights with which an engine of one node is quickly built


@dataclass
class Solver:
    """Finds what the target takes instead of what it refuses.

    Attributes:
        judge: who decides.
        permit: asked before each change of the model itself.
        changed: called after it with the nodes before and after and how it was done.
        unsolved: refused nodes for which nothing was found, with the target's words.
        declined: why the lowerings of such a node did not apply, by its name.
    """

    judge: Judge
    permit: Callable[[], bool] = lambda: True
    changed: Callable[[ir.Node, list[ir.Node], str], None] = lambda *_: None
    unsolved: dict[str, str] = field(default_factory=dict)
    declined: dict[str, list[str]] = field(default_factory=dict)
    solved: dict[Any, tuple[str, ir.Model]] = field(default_factory=dict)
    recipes: dict[Any, str] = field(default_factory=dict)
    dead_ends: dict[Any, int] = field(default_factory=dict)
    taken: dict[bytes, bool] = field(default_factory=dict)

    def settle(
        self, model: ir.Model, depth: int = _DEPTH, expect: Expectation | None = None, *, top: bool = False
    ) -> Ruling:
        """Rewrite refused nodes of a small model until the target takes it or nothing helps.

        Args:
            model: changed in place.
            depth: how many rewrites of what rewrites made are tried.
            expect: typical inputs of `model`.
            top: it is the user's model: changes are asked for and reported.

        Returns:
            The last ruling.
        """
        names = Names(model)
        tried: set[ir.Node] = set()
        build = _weights(model) <= _BUILT
        ruling = self.judge.judge(model, expect, build=build)
        for _ in range(_ROUNDS):
            if ruling.accepted or (ruling.fatal and len(model.graph) > 1):
                break
            progress = False
            for node in self.refused(model, ruling):
                if node in tried or node.graph is None:
                    continue
                tried.add(node)
                if self.fix(node, model, names, depth, expect, top=top, message=ruling.message):
                    progress = True
            if not progress:
                break
            ruling = self.judge.judge(model, expect, build=build)
        return ruling

    def refused(self, model: ir.Model, ruling: Ruling) -> list[ir.Node]:
        """The nodes of the main graph that the target refuses, as far as it says or can be asked.

        A parser that has an importer for an operator outside of ONNX stops where that fails first; the others of
        its kind are asked about.
        """
        nodes = list(model.graph)
        if len(nodes) == 1:
            return nodes
        named = [nodes[i] for i in ruling.culprits if i < len(nodes)]
        if not named:
            return [node for node in nodes if not self._takes(node, model)]
        kinds = {(node.domain, node.op_type) for node in named if node.domain}
        alike = [n for n in nodes if (n.domain, n.op_type) in kinds and n not in named]
        return [*named, *(n for n in alike if not self._takes(n, model))]

    def _takes(self, node: ir.Node, model: ir.Model) -> bool:
        """Whether the target accepts a node alone."""
        piece = self.cut(node, model)
        key, _ = signature(piece)
        known = self.taken.get(key)
        if known is None:
            known = self.judge.judge(piece, build=_weights(piece) <= _BUILT).accepted
            self.taken[key] = known
        return known

    def cut(self, node: ir.Node, model: ir.Model) -> ir.Model:
        """A model of the node alone."""
        return mini.cut(node, dict(model.graph.opset_imports), model.ir_version)

    def fix(
        self,
        node: ir.Node,
        model: ir.Model,
        names: Names,
        depth: int = _DEPTH,
        expect: Expectation | None = None,
        *,
        top: bool = False,
        message: str = "",
    ) -> bool:
        """Replace a refused node by the first rewrite of it that the target takes.

        Returns:
            Whether there was one.
        """
        piece = self.cut(node, model)
        said = (
            {f"i{k}": expect[str(v.name)] for k, v in enumerate(mini.operands_of(node)) if v.name in expect}
            if expect
            else None
        )
        variable = [v for v in mini.operands_of(node) if not v.is_initializer() or v.is_graph_input()]
        fewer = len(piece.graph.inputs) < len(variable)
        if fewer and self.judge.judge(piece, said).accepted:
            return self._put(piece, node, names, top, "constant operands")
        if depth == 0:
            return False
        if any(True for _ in subgraphs(node)) and self._fix_inside(
            node, model, names, depth, expect, top, message
        ):
            return True
        digest, complete = signature(piece)
        key = (digest, repr(said))
        if key in self.solved:
            how, solution = self.solved[key]
            return self._put(solution.clone(), node, names, top, how)
        if key in self.recipes:  # what served the same operator with other weights serves here
            for how, candidate in self._candidates(piece):
                if how == self.recipes[key]:
                    return self._put(candidate, node, names, top, how)
        if self.dead_ends.get(key, -1) < depth:
            for how, candidate in self._candidates(piece):
                count = len(candidate.graph)
                if not self.settle(candidate, depth - 1, said).accepted:
                    continue
                if complete:
                    self.solved[key] = how, candidate.clone()
                elif len(candidate.graph) == count:
                    self.recipes[key] = how
                return self._put(candidate, node, names, top, how)
            self.dead_ends[key] = depth
        if top:
            name = node.name or node.op_type
            self.unsolved[name] = message
            reasons = self._reasons(piece)
            if reasons:
                self.declined[name] = [f"{node.op_type} '{name}': {reason}" for reason in reasons]
        return False

    def _fix_inside(
        self,
        node: ir.Node,
        model: ir.Model,
        names: Names,
        depth: int,
        expect: Expectation | None,
        top: bool,
        message: str,
    ) -> bool:
        """Rewrite what the target refuses of the nodes in the subgraphs of `node`."""
        progress = False
        for graph in subgraphs(node):
            for inner in list(graph):
                if inner.graph is None or self.judge.judge(self.cut(inner, model)).accepted:
                    continue
                if self.fix(inner, model, names, depth, expect, top=top, message=message):
                    progress = True
        return progress

    def _put(self, piece: ir.Model, node: ir.Node, names: Names, top: bool, how: str) -> bool:
        if top and not self.permit():
            return False
        made = mini.splice(piece, node, names)
        if top:
            self.changed(node, made, how)
        return True

    def _reasons(self, piece: ir.Model) -> list[str]:
        """Why the lowerings of a node decline, those that do."""
        node = mini.only_node(piece)
        said = []
        for lowering in LOWERINGS.get((node.domain, node.op_type), ()):
            copy = piece.clone()
            try:
                mini.apply(lowering, copy, mini.only_node(copy), Names(copy))
            except NoMatch as reason:
                said.append(str(reason))
        return list(dict.fromkeys(filter(None, said)))

    def _candidates(self, piece: ir.Model) -> Iterator[tuple[str, ir.Model]]:
        """Models that compute the same as `piece`, in the order in which they are to be tried."""
        node = mini.only_node(piece)
        if not piece.graph.inputs:
            copy = tidied(piece.clone())
            if all(n.op_type == "Identity" for n in copy.graph):
                yield "a constant", copy
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


def signature(piece: ir.Model) -> tuple[bytes, bool]:
    """What a node is, to be recognized by; and whether that is all there is to it.

    Of large weights it has type and shape: layers of a language model differ in nothing else.
    """
    graph = piece.graph
    digest, complete = hashlib.sha256(repr(sorted(graph.opset_imports.items())).encode()), True
    for node in graph:
        digest.update(ir.to_proto(node).SerializeToString())
    for value in (*graph.inputs, *graph.outputs):
        digest.update(repr((value.name, value.type, value.shape)).encode())
    for value in graph.initializers.values():
        tensor = value.const_value
        assert tensor is not None
        digest.update(repr((value.name, tensor.dtype, tensor.shape)).encode())
        if tensor.nbytes > (_FEW_FLOATS if tensor.dtype.is_floating_point() else _FEW):
            complete = False
        else:
            digest.update(ir.to_proto(tensor).SerializeToString())
    return digest.digest(), complete


def _weights(model: ir.Model) -> int:
    return sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value is not None)


def tidied(model: ir.Model) -> ir.Model:
    """The model with types and shapes inferred and constants folded."""
    whole = Model(model)
    infer_model(whole)
    Fold().run(whole, Context.of(model))
    infer_model(whole)
    return model
