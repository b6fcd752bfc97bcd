"""What must be true of a model before anything else touches it.

The checks work on the protobuf message, where names are still names: `onnx_ir` links nodes to values and
would silently make up what is missing. Two kinds of findings: what can be put right without changing what
the model computes is repaired and reported; everything else is a `ModelError` that names the culprit.
All of it takes time linear in the size of the model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import onnx

from onnxlathe.errors import ModelError

from .arity import check_arity
from .opset_imports import (
    default_ir_version,
    default_opset,
    domain_of,
    domains_of,
    opsets_of,
    set_opsets,
    versions_of,
)
from .order import in_order
from .protos import check_tensor, dense, infer_attribute_type, tensors_of, text

# Messages of onnx are untyped here: NodeProto, GraphProto, and so on.
Proto = Any

# Attributes whose value is one message, and the field that holds it.
_SINGLE = {
    onnx.AttributeProto.TENSOR: "t",
    onnx.AttributeProto.GRAPH: "g",
    onnx.AttributeProto.SPARSE_TENSOR: "sparse_tensor",
}


class Checker:
    """Checks and repairs one ModelProto in place.

    Args:
        proto: the model; weights may be elided.
        strict: refuse what would otherwise be repaired.
        digest: gives the hash of the elements of a tensor whose payload was elided or is external.

    After `run`, `repairs` holds one sentence per repair, and `shadowed` whether some subgraph gives a
    value the name of one that it can also see from outside.
    """

    def __init__(self, proto: Proto, *, strict: bool, digest: Callable[[Proto], bytes]) -> None:
        self.proto = proto
        self.strict = strict
        self.digest = digest
        self.repairs: list[str] = []
        self.shadowed = False
        self._imports: dict[str, int] = {}
        self._scope: dict[str, str] = {}  # what the graph checked last defines, and by whom

    def run(self) -> None:
        """Raises ModelError for the first thing that is wrong and cannot be repaired."""
        proto = self.proto
        if not proto.HasField("graph"):
            raise ModelError(
                "the file holds no graph",
                hint="It is a protobuf message, but no ONNX model; is it a TensorProto (`.pb`) of test data?",
            )
        self._versions()
        self._functions()
        if len(proto.training_info):
            self._repaired("the model has training_info", "it was dropped, only inference is kept")
            proto.ClearField("training_info")
        graph = proto.graph
        graph.name = graph.name or "main_graph"
        main = self._imports = versions_of(proto)
        inputs = self._input_names(graph)
        free = self._graph(graph, inputs, [], "the graph")
        assert not free
        self._node_names([graph])
        for function in proto.functions:
            where = f"function {function.name!r}"
            inputs = self._distinct(function.input, "input", where)
            self._imports = versions_of(function) or main
            self._body(function, inputs, {}, [], where)
            for name in function.output:
                if name not in self._scope:
                    raise ModelError(f"{where} has the output {name!r}, which none of its nodes produces")
            self._node_names([function])

    def _repaired(self, problem: str, remedy: str) -> None:
        if self.strict:
            raise ModelError(problem, hint=f"Loaded without `strict`, it is repaired: {remedy}.")
        self.repairs.append(f"{problem}; {remedy}")

    # Versions ---------------------------------------------------------------------------------------

    def _versions(self) -> None:
        proto = self.proto
        if proto.ir_version > onnx.IR_VERSION:
            raise ModelError(
                f"the model has IR version {proto.ir_version}; onnx {onnx.__version__} knows up to"
                f" {onnx.IR_VERSION}",
                hint="Upgrade the onnx package, or export for an older version.",
            )
        used = domains_of(proto.graph.node)
        opsets = opsets_of(proto.opset_import, "the model")
        for domain in sorted(used - opsets.keys()):
            opsets[domain] = version = 1 if domain else default_opset(proto.ir_version)
            what = f"operators of domain {domain!r}" if domain else "standard operators"
            self._repaired(f"the model imports no opset for its {what}", f"opset {version} was assumed")
        if proto.ir_version < 1:
            version = default_ir_version(opsets.get("", 1))
            self._repaired("the model has no IR version", f"version {version} was assumed")
            proto.ir_version = version
        set_opsets(proto.opset_import, opsets)
        for function in proto.functions:
            where = f"function {function.name!r}"
            own = opsets_of(function.opset_import, where)
            for domain in sorted(domains_of(function.node) - own.keys()):
                own[domain] = opsets.get(domain, 1)
                self._repaired(f"{where} imports no opset for domain {domain!r}", "the model's was assumed")
            set_opsets(function.opset_import, own)

    # Graphs -----------------------------------------------------------------------------------------

    def _input_names(self, graph: Proto) -> dict[str, str]:
        return self._distinct([value.name for value in graph.input], "input", f"graph {graph.name!r}")

    def _distinct(self, names: Iterable[str], what: str, where: str) -> dict[str, str]:
        defined: dict[str, str] = {}
        for name in names:
            if not text(name, where):
                raise ModelError(f"{where} has an {what} without a name")
            if name in defined:
                raise ModelError(f"{where} has two {what}s named {name!r}")
            defined[name] = f"an {what} of {where}"
        return defined

    def _graph(
        self, graph: Proto, inputs: dict[str, str], outer: list[dict[str, str]], where: str
    ) -> set[str]:
        """Check a graph; returns the names it takes from the graphs around it."""
        initializers = self._initializers(graph, where)
        free = self._body(graph, inputs, initializers, outer, where)
        scope = self._scope
        for output in graph.output:
            name = text(output.name, where)
            if name in scope:
                continue
            if not any(name in names for names in outer):
                raise ModelError(
                    f"{where} has the output {name!r}, which nothing produces{_close(name, scope)}",
                    hint="Remove the output, or export the model again.",
                )
            # Legal or not, runtimes refuse a branch that hands an outer value straight through.
            output.name = self._fresh(f"{name}_inner", scope, outer)
            node = graph.node.add(op_type="Identity", input=[name], output=[output.name])
            scope[output.name] = _label(node, len(graph.node) - 1)
            free.add(name)
            self._repaired(
                f"{where} returns {name!r} of the graph around it", "an Identity node was put in between"
            )
        self._scope = scope
        return free

    def _fresh(self, name: str, scope: dict[str, str], outer: list[dict[str, str]]) -> str:
        candidate, number = name, 1
        while candidate in scope or any(candidate in names for names in outer):
            candidate, number = f"{name}_{number}", number + 1
        return candidate

    def _initializers(self, graph: Proto, where: str) -> dict[str, str]:
        for sparse in graph.sparse_initializer:
            graph.initializer.append(dense(sparse))
            self._repaired(f"initializer {sparse.values.name!r} is sparse", "it was made dense")
        graph.ClearField("sparse_initializer")
        seen: dict[str, Proto] = {}
        dropped: set[int] = set()
        for index, tensor in enumerate(graph.initializer):
            name = text(tensor.name, where)
            if not name:
                what = f"initializer {index} of {where} has no name"
                self._repaired(what, "it was dropped, nothing can use it")
                dropped.add(index)
            elif name not in seen:
                seen[name] = tensor
            elif self._equal(seen[name], tensor):
                self._repaired(f"initializer {name!r} is there twice, with equal contents", "one was dropped")
                dropped.add(index)
            else:
                raise ModelError(
                    f"{where} has two different initializers named {name!r}",
                    hint="Only one can be meant; export the model again.",
                )
        if dropped:
            kept = [tensor for index, tensor in enumerate(graph.initializer) if index not in dropped]
            _replace(graph.initializer, kept)
        return dict.fromkeys(seen, f"an initializer of {where}")

    def _equal(self, one: Proto, other: Proto) -> bool:
        if (one.data_type, list(one.dims)) != (other.data_type, list(other.dims)):
            return False
        return self.digest(one) == self.digest(other)

    def _body(
        self,
        body: Proto,
        inputs: dict[str, str],
        initializers: dict[str, str],
        outer: list[dict[str, str]],
        where: str,
    ) -> set[str]:
        """Check and sort the nodes of a graph or function; leaves its names in `self._scope`."""
        scope = {**initializers, **inputs}
        producer: dict[str, int] = {}
        nodes = list(body.node)
        local = {(f.domain, f.name) for f in self.proto.functions}
        for index, node in enumerate(nodes):
            if not text(node.op_type, where):
                raise ModelError(f"{_label(node, index)} of {where} has no operator")
            if (node.domain, node.op_type) not in local:
                check_arity(node, self._imports, _label(node, index), where)
            text(node.name, where)
            text(node.domain, where)
            for name in node.output:
                if not text(name, where):
                    continue
                if name in scope:
                    raise ModelError(
                        f"{_label(node, index)} produces {name!r}, which is already {_by(scope[name])}",
                        hint="Every tensor of a graph must have one producer and one name.",
                    )
                scope[name] = _label(node, index)
                producer[name] = index
        if outer and not self.shadowed:
            self.shadowed = any(name in names for names in outer for name in scope)
            if self.shadowed:
                self._repaired(
                    "subgraphs give names from outside to values of their own", "those were renamed"
                )

        free: set[str] = set()
        needs: list[list[int]] = []
        inner_scopes = [*outer, scope]
        for index, node in enumerate(nodes):
            used = [name for name in node.input if name]
            if len(node.attribute):
                used.extend(self._attributes(node, index, inner_scopes))
            before: list[int] = []
            for name in used:
                if name in producer:
                    before.append(producer[name])
                elif name not in scope:
                    if not any(name in names for names in outer):
                        raise ModelError(
                            f"{_label(node, index)} takes the input {name!r}, which nothing produces"
                            f"{_close(name, scope)}",
                            hint="It is no graph input, no initializer and no output of a node;"
                            " export the model again.",
                        )
                    free.add(name)
            needs.append(before)
        if any(other >= index for index, before in enumerate(needs) for other in before):
            order = in_order(needs, lambda index: _label(nodes[index], index), where)
            self._repaired(f"the nodes of {where} are not in topological order", "they were sorted")
            _replace(body.node, [nodes[index] for index in order])
        self._scope = scope
        return free

    def _attributes(self, node: Proto, index: int, scopes: list[dict[str, str]]) -> set[str]:
        """Check a node's attributes; returns the names that its subgraphs take from around them."""
        free: set[str] = set()
        names: set[str] = set()
        for attribute in node.attribute:
            if text(attribute.name, _label(node, index)) in names:
                raise ModelError(f"{_label(node, index)} has two attributes named {attribute.name!r}")
            names.add(attribute.name)
            if not attribute.type and not attribute.ref_attr_name:
                infer_attribute_type(attribute)  # left out by exporters of 2017
            field = _SINGLE.get(attribute.type)
            if field and not attribute.ref_attr_name and not attribute.HasField(field):
                raise ModelError(f"attribute {attribute.name!r} of {_label(node, index)} has no value")
            if attribute.type == onnx.AttributeProto.SPARSE_TENSOR:
                if node.op_type != "Constant" or domain_of(node.domain):
                    raise ModelError(
                        f"{_label(node, index)} has the sparse attribute {attribute.name!r}: not supported",
                        hint="Export the model with dense tensors.",
                    )
                tensor = dense(attribute.sparse_tensor)
                attribute.Clear()
                attribute.name, attribute.type = "value", onnx.AttributeProto.TENSOR
                attribute.t.CopyFrom(tensor)
                self._repaired(f"the value of {_label(node, index)} is sparse", "it was made dense")
            graphs = [attribute.g] if attribute.HasField("g") else attribute.graphs
            for graph in graphs:
                where = f"subgraph {attribute.name!r} of {_label(node, index)}"
                taken = self._graph(graph, self._input_names(graph), scopes, where)
                free.update(taken)
        return free

    # Names of nodes and functions -------------------------------------------------------------------

    def _node_names(self, bodies: list[Proto]) -> None:
        """Give every node of a graph (or function) and its subgraphs a name of its own."""
        nodes = list(_nodes(bodies))
        taken = {node.name for node in nodes if node.name}
        seen: set[str] = set()
        renamed: list[str] = []
        for index, node in enumerate(nodes):
            old = node.name
            if old and old not in seen:
                seen.add(old)
                continue
            stem, number = (old, 1) if old else (node.op_type, index)
            while (name := f"{stem}_{number}") in taken:
                number += 1
            node.name = name
            taken.add(name)
            seen.add(name)
            if old:
                renamed.append(f"{old!r} to {name!r}")
        if renamed:
            more = f" and {len(renamed) - 3} more" if len(renamed) > 3 else ""
            self._repaired("nodes share their names", f"some were renamed: {', '.join(renamed[:3])}{more}")

    def _functions(self) -> None:
        ids: dict[tuple[str, str, str], int] = {}
        functions = list(self.proto.functions)
        for index, function in enumerate(functions):
            text(function.name, "a function")
            text(function.overload, "a function's overload")
            key = (domain_of(function.domain), function.name, function.overload)
            if key in ids:
                raise ModelError(f"function {function.name!r} of domain {key[0]!r} is defined twice")
            ids[key] = index
        if not functions:
            return
        calls = [
            [
                ids[key]
                for node in _nodes([function])
                if (key := (domain_of(node.domain), node.op_type, node.overload)) in ids
            ]
            for function in functions
        ]
        # Any order will do: onnx_ir does not ask for one. But a function must not call itself.
        in_order(calls, lambda index: f"function {functions[index].name!r}", "the model's functions")


# Helpers --------------------------------------------------------------------------------------------


def _nodes(bodies: list[Proto]) -> Iterator[Proto]:
    """All nodes of graphs or functions, outer ones before those of their subgraphs."""
    pending = list(bodies)
    for body in pending:
        for node in body.node:
            yield node
            for attribute in node.attribute:
                if attribute.HasField("g"):
                    pending.append(attribute.g)
                pending.extend(attribute.graphs)


def _replace(repeated: Any, messages: list[Proto]) -> None:
    """Give a repeated message field new contents made of some of its old ones."""
    copies = [type(message).FromString(message.SerializeToString()) for message in messages]
    del repeated[:]
    repeated.extend(copies)


def _label(node: Proto, index: int) -> str:
    return f"node {node.name!r} ({node.op_type})" if node.name else f"node {index} ({node.op_type})"


def _by(definition: str) -> str:
    return f"an output of {definition}" if definition.startswith("node") else definition


def _close(name: str, scope: dict[str, str]) -> str:
    """`; did you mean …?`, for a message about a name that is not there."""
    import difflib

    if len(scope) > 20_000:
        return ""
    near = difflib.get_close_matches(name, scope, n=1, cutoff=0.8)
    return f"; there is a {near[0]!r}" if near else ""


def check_tensors(proto: Proto) -> None:
    """Every tensor with its data in the file must have as many as its type and shape say.

    Raises:
        ModelError: naming the tensor.
    """
    for tensor in tensors_of(proto):
        check_tensor(tensor)
