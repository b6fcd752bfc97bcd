"""The walk: node after node, each by its rule, through subgraphs and calls of model-local functions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import onnx_ir as ir

from onnxlathe.infer import (  # noqa: F401 - importing them registers their rules
    ops_contrib,
    ops_control,
    ops_elementwise,
    ops_index,
    ops_nn,
    ops_reduce,
    ops_sequence,
    ops_sequence_models,
    ops_shape,
)
from onnxlathe.infer.contents import Content
from onnxlathe.infer.context import RULES, NodeContext
from onnxlathe.infer.dims import Dim, Dims
from onnxlathe.infer.fallback import infer_by_schema
from onnxlathe.infer.values import (
    KNOWN,
    content_of,
    dims_of,
    set_dims,
    shape_of,
)

__all__ = ["Engine", "infer_model", "infer_node"]

_MAX_NOTES = 200
_MAX_DEPTH = 24  # of calls and subgraphs within each other
_MAX_VISITS = 2_000_000  # of nodes; beyond it only the outermost graph is walked on

Operator = tuple[str, str, str]
Journal = dict[int, tuple[ir.Value, ir.TypeProtocol | None, ir.Shape | None, Any]]
Before = tuple[Journal | None, bool, int]


class HasIR(Protocol):
    """Anything that holds an IR model, such as ``onnxlathe.Model``."""

    @property
    def ir(self) -> ir.Model: ...


class Engine:
    """One inference: what is shared by all nodes of a model.

    Args:
        functions: the model-local functions.
        opsets: versions by domain, for nodes of the main graph.
        allow_fresh: whether unknown sizes may get made-up names.
        in_function: whether nodes may refer to attributes of a function that is not being called.
    """

    def __init__(
        self,
        functions: Mapping[Operator, ir.Function] | None = None,
        opsets: Mapping[str, int] | None = None,
        *,
        allow_fresh: bool = False,
        in_function: bool = False,
    ) -> None:
        self.functions = functions or {}
        self.opsets = opsets or {}
        self.allow_fresh = allow_fresh
        self.in_function = in_function
        self.notes: list[str] = []
        self.symbols: set[str] = set()  # names that mean one size in a whole run
        self.journal: Journal | None = None  # facts to restore when a loop's assumption fails
        self._bound: Mapping[str, ir.Attr] | None = None  # attributes of the call being inferred
        self._calls: dict[Any, list[tuple[ir.TypeProtocol | None, Dims | None, Content | None]]] = {}
        self._depth = 0
        self._visited = 0

    def note(self, sentence: str) -> None:
        """Keeps a sentence about something strange; repeated and very many ones are dropped."""
        if len(self.notes) < _MAX_NOTES and sentence not in self.notes:
            self.notes.append(sentence)

    def attribute(self, name: str | None, default: Any) -> Any:
        """The value that the current call gives to a function's attribute."""
        attribute = None if self._bound is None or name is None else self._bound.get(name)
        return default if attribute is None else attribute.value

    # Walking.

    def infer_graph(self, graph: ir.Graph | ir.Function) -> None:
        """Infers each node of a graph in order."""
        if self._depth >= _MAX_DEPTH:
            self.note("graphs are nested too deeply; the innermost are left as they are")
            return
        if self.exhausted:
            self.note("loops in loops change shapes too often; inner bodies are left as they are")
            return
        self._depth += 1
        opsets = self.opsets
        for node in graph:
            self._visited += 1
            self.infer(node, opsets.get(node.domain, 1))
        self._depth -= 1

    @property
    def exhausted(self) -> bool:
        """Whether bodies were walked so often that no more walking is worth it."""
        return self._visited > _MAX_VISITS and self._depth > 0

    def infer(self, node: ir.Node, opset: int) -> bool:
        """Infers one node's outputs; returns whether anything new was learned."""
        n = NodeContext(self, node, opset)
        try:
            found = RULES.get((node.domain, node.op_type))
            if self.functions:
                function = self.functions.get((node.domain, node.op_type, node.overload))
                if function is not None:
                    self._call(n, function)
                    return n.changed
            if self.in_function and any(a.is_ref() for a in n.attributes.values()):
                return False  # decided by each call
            if found is None:
                infer_by_schema(n)
            else:
                found(n)
        except Exception as error:  # a strange node leaves its outputs unknown; it never stops the walk
            self.note(f"node {node.name!r} ({node.op_type}): {type(error).__name__}: {error}")
        return n.changed

    # Facts.

    def copy_facts(self, n: NodeContext, source: ir.Value | None, target: ir.Value) -> None:
        """Gives an output the facts of another value, of whatever type."""
        if source is None or source.type is None:
            return
        if type(source.type) is ir.TensorType:
            index = target.index()
            n.out(0 if index is None else index, source.type.dtype, dims_of(source), content_of(source))
            return
        if target.type != source.type:
            target.type = source.type
            n.changed = True
        if source.shape is not None:
            target.shape = source.shape.copy()

    def remember(self, value: ir.Value) -> None:
        """Notes a value's facts before they change, while a loop's body is inferred."""
        assert self.journal is not None
        if id(value) not in self.journal:
            store = value._metadata
            content = None if store is None else store.data.get(KNOWN)
            self.journal[id(value)] = (value, value.type, value.shape, content)

    def begin_body(self) -> Before:
        """Starts the inference of a body that runs many times; see :meth:`end_body`."""
        before = (self.journal, self.allow_fresh, len(self.notes))
        self.journal = {}
        self.allow_fresh = False
        return before

    def end_body(self, before: Before, *, keep: bool) -> None:
        """Ends it, and restores what the values said before unless it is to be kept."""
        journal = self.journal or {}
        self.journal, self.allow_fresh, notes = before
        if not keep:
            del self.notes[notes:]
        for value, kind, shape, content in journal.values():
            if not keep:
                value.type, value.shape = kind, shape
                if content is not None:
                    value.meta[KNOWN] = content
                else:
                    value.meta.pop(KNOWN, None)
            elif self.journal is not None and id(value) not in self.journal:
                self.journal[id(value)] = (value, kind, shape, content)

    # Calls.

    def _call(self, n: NodeContext, function: ir.Function) -> None:
        """Infers a call on a copy of the body, so that the shared body says nothing of this call alone."""
        facts = [_facts(v) for v in n.inputs]
        key = (function.identifier(), tuple(map(_fingerprint, facts)), _attribute_key(n.attributes))
        results = self._calls.get(key)
        if results is None:
            results = self._infer_call(function, facts, n.attributes)
            self._calls[key] = results
        for i, (kind, dims, content) in enumerate(results):
            if i >= len(n.outputs) or kind is None:
                continue
            if isinstance(kind, ir.TensorType):
                n.out(i, kind.dtype, dims, content)
            else:
                n.outputs[i].type = kind

    def _infer_call(
        self,
        function: ir.Function,
        facts: list[tuple[ir.TypeProtocol | None, Dims | None, Content | None]],
        attributes: Mapping[str, ir.Attr],
    ) -> list[tuple[ir.TypeProtocol | None, Dims | None, Content | None]]:
        if self._depth >= _MAX_DEPTH:
            return []
        body = function.clone()
        for value, (kind, dims, content) in zip(body.inputs, facts, strict=False):
            _place(value, kind, dims, content)
        saved = (self._bound, self.opsets, self.allow_fresh, self.journal, self.in_function)
        bound = {name: a for name, a in function.attributes.items() if a.value is not None}
        bound.update((name, self._resolve(a)) for name, a in attributes.items())
        self._bound = bound
        self.opsets, self.allow_fresh, self.journal = function.opset_imports, False, None
        self.in_function = False
        self.infer_graph(body)
        self._bound, self.opsets, self.allow_fresh, self.journal, self.in_function = saved
        results = []
        for value in body.outputs:
            dims = dims_of(value)
            if dims is not None:
                dims = tuple(
                    [None if isinstance(d, Dim) and not d.symbols <= self.symbols else d for d in dims]
                )
            results.append((value.type, dims, content_of(value)))
        return results

    def _resolve(self, attribute: ir.Attr) -> ir.Attr:
        if attribute.is_ref() and self._bound is not None:
            return self._bound.get(attribute.ref_attr_name or "", attribute)
        return attribute


def _facts(value: ir.Value | None) -> tuple[ir.TypeProtocol | None, Dims | None, Content | None]:
    if value is None:
        return None, None, None
    kind = value.type
    if kind is None and value.const_value is not None:
        kind = ir.TensorType(value.const_value.dtype)
    return kind, dims_of(value), content_of(value)


def _fingerprint(facts: tuple[ir.TypeProtocol | None, Dims | None, Content | None]) -> Any:
    kind, dims, content = facts
    entries = None if content is None else (content.shape, tuple(content.reshape(-1).tolist()))
    return str(kind), dims, repr(entries)


def _attribute_key(attributes: Mapping[str, ir.Attr]) -> Any:
    """Attributes as a key; values that are not plain count by identity."""
    return tuple(
        (name, a.value if isinstance(a.value, int | float | str | tuple) else id(a.value))
        for name, a in sorted(attributes.items())
    )


def _place(value: ir.Value, kind: ir.TypeProtocol | None, dims: Dims | None, content: Content | None) -> None:
    """States facts about a function's input."""
    if isinstance(kind, ir.TensorType):
        value.type = ir.TensorType(kind.dtype)
    elif kind is not None:
        value.type = kind
    set_dims(value, dims)
    if content is not None:
        value.meta[KNOWN] = content


def infer_model(model: HasIR | ir.Model) -> list[str]:
    """Infers types, symbolic shapes and small contents of all values of a model, in place.

    Runs through the main graph, subgraphs, and function bodies. Facts that are already there (``value_info``)
    are kept where inference finds nothing better. Inputs with unnamed dimensions get names
    (``input_d0``), so that sizes derived from them can be told.

    Args:
        model: an :class:`onnxlathe.Model` or an ``onnx_ir.Model``.

    Returns:
        Sentences about contradictions and nodes that could not be understood; empty for a sound model.
    """
    ir_model = model if isinstance(model, ir.Model) else model.ir
    engine = Engine(ir_model.functions, ir_model.opset_imports, allow_fresh=True)
    _name_inputs(engine, ir_model.graph.inputs)
    engine.infer_graph(ir_model.graph)
    for function in ir_model.functions.values():
        _infer_function(engine, function)
    return engine.notes


def _name_inputs(engine: Engine, inputs: Iterable[ir.Value]) -> None:
    taken = {
        name for value in inputs for d in dims_of(value) or () if isinstance(d, Dim) for name in d.symbols
    }
    engine.symbols |= taken
    for value in inputs:
        dims = dims_of(value)
        if dims is None or None not in dims:
            continue
        named: list[Any] = list(dims)
        for axis, dim in enumerate(dims):
            if dim is None:
                name = f"{value.name}_d{axis}"
                while name in taken:
                    name += "_"
                taken.add(name)
                engine.symbols.add(name)
                named[axis] = Dim(name)
        value.shape = shape_of(tuple(named))


def _infer_function(engine: Engine, function: ir.Function) -> None:
    """Infers a shared body from what is true of all calls alike: nothing is assumed about its inputs."""
    inner = Engine(engine.functions, function.opset_imports, in_function=True)
    inner.infer_graph(function)


def infer_node(node: ir.Node, opset: int) -> bool:
    """Infers the outputs of one node from its inputs, in place; call it again when inputs are better known.

    Args:
        node: the node; it need not belong to a graph.
        opset: the version of the node's domain that the model imports.

    Returns:
        Whether anything new was learned about an output.
    """
    # No made-up names: the node may stand in a loop or function, where one name would mean many sizes.
    engine = Engine(opsets={"": opset}, in_function=True)
    for value in node.inputs:
        if value is not None:
            engine.symbols.update(
                name for d in dims_of(value) or () if isinstance(d, Dim) for name in d.symbols
            )
    return engine.infer(node, opset)
