"""The worklist: rules are tried at nodes of their operator, and again only where something changed.

Seeded with every node whose operator some rule starts at. After a change, the new nodes, what lies
downstream of them as far as the deepest rule can see, and the producers that lost a use come back on the
list. No rule ever rescans the graph.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence

import onnx_ir as ir

from onnxlathe.errors import PassError
from onnxlathe.infer import dims_of, infer_node
from onnxlathe.model import Model, subgraphs
from onnxlathe.rewrite.builder import Builder
from onnxlathe.rewrite.context import Context
from onnxlathe.rewrite.edit import is_used, remove_unused, replace_value
from onnxlathe.rewrite.match import input_types
from onnxlathe.rewrite.rule import Attempt, LocalRule, Rule

# A rule that undoes another's work would go on for ever; no honest one changes a node this often.
_CHANGES_PER_NODE = 20


def drive(model: Model, rules: Sequence[LocalRule], context: Context) -> int:
    """Run rules together until none of them has anything left to do.

    Args:
        model: changed in place; main graph, subgraphs and model-local functions alike.
        rules: tried in this order at each node; the first that fires wins.
        context: permission, names and records.

    Returns:
        The number of changes.

    Raises:
        PassError: a rule raised, changed an element type or a static shape, or does not come to rest.
    """
    changes = 0
    scopes: list[tuple[ir.Graph, dict[str, int], bool]] = [(model.graph, model.ir.opset_imports, False)]
    scopes += [(f.graph, f.opset_imports, True) for f in model.ir.functions.values()]
    for graph, imports, in_function in scopes:
        opset = imports.get("", model.opset)
        active = [r for r in rules if r.min_opset <= opset and r.name not in context.disabled]
        if active:
            worklist = _Worklist(graph, opset, active, context, in_function)
            changes += worklist.run()
            for domain in worklist.domains - {""}:
                # An operator of another domain (a plugin's) needs an import, in the function as in the model.
                imports.setdefault(domain, 1)
                model.ir.opset_imports.setdefault(domain, 1)
    return changes


class _Worklist:
    def __init__(
        self,
        graph: ir.Graph,
        opset: int,
        rules: Sequence[LocalRule],
        context: Context,
        in_function: bool,
    ) -> None:
        self.opset = opset
        self.context = context
        self.builder = Builder(opset)
        self.function_graph = graph if in_function else None
        self.index: dict[tuple[str, str], list[LocalRule]] = {}
        for rule in rules:
            for key in rule.operators():
                self.index.setdefault(key, []).append(rule)
        self.reach = max(rule.depth if isinstance(rule, Rule) else rule.reach for rule in rules)
        self.queue: deque[ir.Node] = deque()
        self.queued: set[ir.Node] = set()
        self.domains: set[str] = set()
        nodes = list(_all_nodes(graph))
        self.budget = _CHANGES_PER_NODE * (len(nodes) + 50)
        for node in nodes:
            self.add(node)

    def add(self, node: ir.Node) -> None:
        if node not in self.queued and (node.domain, node.op_type) in self.index:
            self.queued.add(node)
            self.queue.append(node)

    def run(self) -> int:
        changes = 0
        while self.queue:
            node = self.queue.popleft()
            self.queued.discard(node)
            if node.graph is None:
                continue
            for rule in self.index[node.domain, node.op_type]:
                if self._try(rule, node):
                    changes += 1
                    if changes > self.budget:
                        raise PassError(
                            f"rule '{rule.name}' does not come to rest at node '{node.name}'",
                            hint=f"leave it out with -{rule.name}; rules that undo each other never end",
                        )
                    break
        return changes

    def _try(self, rule: LocalRule, node: ir.Node) -> bool:
        op = self.builder
        try:
            attempt = rule.attempt(node, op)
        except PassError:
            raise
        except (Exception, SystemExit) as error:
            op.rewind(0)
            raise PassError(
                f"rule '{rule.name}' failed at node '{node.name}' ({node.op_type}): "
                f"{type(error).__name__}: {error}",
                hint=f"leave it out with -{rule.name}, and report it to its author",
            ) from error
        if attempt.outputs is None or not self._usable(node, attempt) or not self._allowed(op.nodes):
            op.rewind(0)
            return False
        if not self.context.permit(rule.name):
            op.rewind(0)
            return False
        self.builder = Builder(self.opset)
        self._apply(rule, node, attempt, op)
        return True

    def _usable(self, node: ir.Node, attempt: Attempt) -> bool:
        """Whether every output that something needs has a replacement, and not itself."""
        assert attempt.outputs is not None
        changed = False
        for old, new in zip(node.outputs, attempt.outputs, strict=True):
            if new is None:
                if is_used(old) or old.is_graph_output():
                    return False
            elif new is not old:
                changed = True
        if not changed:
            return False
        # An output that must stay an output of this graph, and already is an Identity of the replacement.
        new = attempt.outputs[0]
        return not (
            node.op_type == "Identity" and node.outputs[0].is_graph_output() and not _movable(node, new)
        )

    def _allowed(self, nodes: Iterable[ir.Node]) -> bool:
        """Whether the specification gives the new operators to the element types that they are used with."""
        for node in nodes:
            types = input_types(node.op_type, self.opset) if node.domain == "" else ()
            for value, allowed in zip(node.inputs, types, strict=False):
                if value is not None and value.dtype is not None and value.dtype.value not in allowed:
                    return False
        return True

    def _apply(self, rule: LocalRule, node: ir.Node, attempt: Attempt, op: Builder) -> None:
        graph = node.graph
        assert graph is not None
        outputs = attempt.outputs or ()
        names = self.context.names
        self._enter_constants(op, node, outputs)
        for new in op.nodes:
            for output in new.outputs:
                if output.name is None:
                    output.name = names.value(f"{node.name}/{new.op_type}_output")
            new.name = names.node(f"{node.name}/{new.op_type}")
            self.domains.add(new.domain)
            graph.insert_before(node, new)
            infer_node(new, self.opset)
        changed = list(op.nodes)
        fresh = set(op.nodes)
        touched: list[ir.Node] = []
        for old, value in zip(node.outputs, outputs, strict=True):
            if value is None or value is old:
                continue
            _agree(rule, node, old, value)
            touched.extend(user for user, _ in old.uses())
            name = old.name
            identity = replace_value(old, value, names)
            if identity is not None:
                changed.append(identity)
            elif value.producer() in fresh and not value.is_graph_output():
                # Users look for a value under the name that the exporter gave it.
                old.name, value.name = None, name
        before = attempt.matched or (node,)
        _, neighbours = remove_unused([*before, node])
        if op.nodes and node.graph is None:
            last = op.nodes[-1]
            names.release_node(last.name)
            names.release_node(node.name)
            last.name = names.node(node.name or last.op_type)
        self.context.record(rule.name, before, changed)
        for woken in (*changed, *neighbours):
            self.add(woken)
        self._wake(changed, touched)

    def _enter_constants(self, op: Builder, node: ir.Node, results: Sequence[ir.Value | None]) -> None:
        graph = node.graph
        assert graph is not None
        for value in op.constants:
            if not is_used(value) and not any(value is result for result in results):
                continue
            value.name = self.context.names.value(value.name or f"{node.name}/const")
            if graph is self.function_graph:
                # A function body has no initializers.
                tensor = value.const_value
                assert tensor is not None
                holder = ir.Node("", "Constant", (), [ir.AttrTensor("value", tensor)], outputs=[value])
                holder.name = self.context.names.node(f"{node.name}/Constant")
                graph.insert_before(node, holder)
            else:
                graph.register_initializer(value)

    def _wake(self, changed: Iterable[ir.Node], touched: Iterable[ir.Node]) -> None:
        """Queue what lies downstream of a change, as far as a pattern can see."""
        front = dict.fromkeys(n for n in touched if n.graph is not None)
        for node in changed:
            for output in node.outputs:
                front.update(dict.fromkeys(user for user, _ in output.uses()))
        seen: set[ir.Node] = set()
        for _ in range(self.reach):
            following: dict[ir.Node, None] = {}
            for node in front:
                if node in seen or node.graph is None:
                    continue
                seen.add(node)
                self.add(node)
                for output in node.outputs:
                    following.update(dict.fromkeys(user for user, _ in output.uses()))
            front = following


def _all_nodes(graph: ir.Graph) -> Iterator[ir.Node]:
    for node in graph:
        for inner in subgraphs(node):
            yield from _all_nodes(inner)
        yield node


def _movable(node: ir.Node, value: ir.Value | None) -> bool:
    """Whether `value` can itself become the output that `node`, an Identity, provides."""
    producer = value.producer() if value is not None else None
    return (
        producer is not None
        and producer.graph is node.graph
        and value is not None
        and not value.is_graph_output()
    )


def _agree(rule: LocalRule, node: ir.Node, old: ir.Value, new: ir.Value) -> None:
    """Keep what is known of a replaced value; a contradiction means that the rule is wrong."""
    if new.dtype is None:
        new.type = old.type
    elif old.dtype is not None and old.dtype != new.dtype:
        raise PassError(
            f"rule '{rule.name}' changes the element type of '{old.name}' (node '{node.name}', "
            f"{node.op_type}) from {old.dtype.name} to {new.dtype.name}"
        )
    before, after = dims_of(old), dims_of(new)
    if before is None:
        return
    if after is None:
        new.shape = old.shape
        return
    clash = len(before) != len(after) or any(
        isinstance(a, int) and isinstance(b, int) and a != b for a, b in zip(before, after, strict=False)
    )
    if clash:
        raise PassError(
            f"rule '{rule.name}' changes the shape of '{old.name}' (node '{node.name}', {node.op_type}) "
            f"from {old.shape} to {new.shape}"
        )
    if any(b is None and a is not None for a, b in zip(before, after, strict=True)) and old.shape is not None:
        new.shape = old.shape
