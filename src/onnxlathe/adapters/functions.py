"""Functions and rules written for other libraries, as passes.

Each adapter may be called with the function, or used as a decorator. Keyword-only parameters of the function
become options of the pass, its docstring the documentation.
"""

from __future__ import annotations

import inspect
import sys
import typing
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, overload

import onnx_ir as ir

from onnxlathe.adapters.exchange import Lent, adopt, lend, take_back
from onnxlathe.errors import PassError, UsageError
from onnxlathe.model import Model
from onnxlathe.rewrite import Context, Pass, make_pass

Function = Callable[..., Any]
F = TypeVar("F", bound=Function)


@overload
def from_graphsurgeon(function: Function, *, name: str = "", group: str = "") -> type[Pass]: ...


@overload
def from_graphsurgeon(
    function: None = None, *, name: str = "", group: str = ""
) -> Callable[[Function], type[Pass]]: ...


def from_graphsurgeon(function: Function | None = None, *, name: str = "", group: str = "") -> Any:
    """A pass from a function over an `onnx_graphsurgeon.Graph`.

    The function changes the graph in place or returns another one. The values of a constant are read from
    the model file when they are asked for, and not before; the graph is sorted topologically afterwards.

    Args:
        function: `f(graph, *, option=default…)`.
        name: what the pipeline text calls it; the function's name if left out.
        group: the group it belongs to.
    """

    def run(function: Function, model: Model, context: Context, name: str, options: dict[str, Any]) -> int:
        gs = _needed("onnx_graphsurgeon", name, "onnx-graphsurgeon")
        lent = lend(model)
        graph = gs.import_onnx(lent.proto)
        _attach(gs, graph, lent)
        returned = function(graph, **options)
        if returned is not None:
            graph = returned
        if not isinstance(graph, gs.Graph):
            raise PassError(
                f"pass '{name}' returned {type(graph).__name__}", hint="return a Graph, or nothing at all"
            )
        graph.toposort()
        proto = gs.export_onnx(graph, do_type_check=False, ir_version=model.ir.ir_version)
        # What graphsurgeon has no place for.
        proto.metadata_props.extend(lent.proto.metadata_props)
        proto.doc_string = proto.doc_string or lent.proto.doc_string
        proto.producer_name, proto.producer_version = lent.proto.producer_name, lent.proto.producer_version
        return adopt(model, take_back(proto, lent), context, name)

    return _adapter(run, function, name, group)


@overload
def from_proto(
    function: Function, *, name: str = "", group: str = "", weights: bool = False
) -> type[Pass]: ...


@overload
def from_proto(
    function: None = None, *, name: str = "", group: str = "", weights: bool = False
) -> Callable[[Function], type[Pass]]: ...


def from_proto(
    function: Function | None = None, *, name: str = "", group: str = "", weights: bool = False
) -> Any:
    """A pass from a function over an `onnx.ModelProto`.

    The function changes the model in place or returns another one. Large weights are references to external
    data that do not exist: they may be moved, renamed and dropped, but not read.

    Args:
        function: `f(model, *, option=default…)`.
        name: what the pipeline text calls it; the function's name if left out.
        group: the group it belongs to.
        weights: send the weights along, for a function that reads them; they are then all in memory.
    """

    def run(function: Function, model: Model, context: Context, name: str, options: dict[str, Any]) -> int:
        import onnx

        lent = lend(model, weights=weights)
        try:
            returned = function(lent.proto, **options)
        except Exception as error:
            if "onnxlathe-weight" not in str(error):
                raise
            raise PassError(
                f"pass '{name}' reads weights that were not sent along: {error}",
                hint="make it with from_proto(…, weights=True)",
            ) from error
        proto = lent.proto if returned is None else returned
        if not isinstance(proto, onnx.ModelProto):
            raise PassError(
                f"pass '{name}' returned {type(proto).__name__}",
                hint="return a ModelProto, or nothing at all",
            )
        return adopt(model, take_back(proto, lent), context, name)

    return _adapter(run, function, name, group)


def from_onnx_ir(subject: Any, *, name: str = "", group: str = "") -> type[Pass]:
    """A pass from an `onnx_ir.passes` pass.

    Args:
        subject: an instance, or a class, whose constructor's parameters with defaults become options.
        name: what the pipeline text calls it; the class's name if left out.
        group: the group it belongs to.
    """

    def run(made: Any, model: Model, context: Context, name: str, options: dict[str, Any]) -> int:
        instance: Any = made(**options) if inspect.isclass(made) else made
        work = model.ir.clone()
        result = instance(work)
        if not result.modified:
            return 0
        return adopt(model, result.model, context, name)

    cls = subject if inspect.isclass(subject) else type(subject)
    parameters = inspect.signature(cls).parameters.values() if inspect.isclass(subject) else ()
    return _made(run, subject, name or cls.__name__, group, parameters, cls.__doc__, _caller())


def from_onnxscript(rules: Any, *, name: str, group: str = "", doc: str = "") -> type[Pass]:
    """A pass from an onnxscript `RewriteRule`, a `RewriteRuleSet`, or a list of rules.

    Args:
        rules: what to apply.
        name: what the pipeline text calls it.
        group: the group it belongs to.
        doc: one line of documentation.
    """

    def run(rules: Any, model: Model, context: Context, name: str, options: dict[str, Any]) -> int:
        pattern = _needed("onnxscript.rewriter", name, "onnxscript", "peers")
        if isinstance(rules, (list, tuple)):
            rules = pattern.RewriteRuleSet(list(rules))
        work = model.ir.clone()
        if not rules.apply_to_model(work):
            return 0
        return adopt(model, work, context, name)

    doc = doc or f"Apply the onnxscript rewrite rules {name}."
    return _made(run, rules, name, group, (), doc, _caller())


def _adapter(run: Any, function: Function | None, name: str, group: str) -> Any:
    caller = _caller(3)
    if function is None:
        return lambda f: _of_function(run, f, name, group, caller)
    return _of_function(run, function, name, group, caller)


def _of_function(run: Any, function: Function, name: str, group: str, module: str) -> type[Pass]:
    parameters = list(inspect.signature(function).parameters.values())[1:]
    return _made(run, function, name or function.__name__, group, parameters, function.__doc__, module)


def _made(
    run: Any,
    subject: Any,
    name: str,
    group: str,
    parameters: Sequence[inspect.Parameter] | Any,
    doc: str | None,
    module: str,
) -> type[Pass]:
    """A pass whose options are the parameters with defaults."""
    options = [p for p in parameters if p.default is not p.empty and p.kind is not p.VAR_KEYWORD]
    try:
        hints = typing.get_type_hints(subject.__init__ if inspect.isclass(subject) else subject)
    except Exception:
        hints = {}  # names that only a type checker can resolve

    def adapted(model: Model, context: Context, **values: Any) -> int:
        if not context.permit(name):
            return 0
        return int(run(subject, model, context, name, values))

    adapted.__name__ = adapted.__qualname__ = name
    adapted.__doc__ = inspect.cleandoc(doc) if doc else None
    adapted.__module__ = module
    kinds = {p.name: hints.get(p.name, type(p.default)) for p in options}
    adapted.__annotations__ = kinds
    adapted.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            inspect.Parameter("model", inspect.Parameter.POSITIONAL_OR_KEYWORD),
            inspect.Parameter("context", inspect.Parameter.POSITIONAL_OR_KEYWORD),
            *(inspect.Parameter(p.name, inspect.Parameter.KEYWORD_ONLY, default=p.default) for p in options),
        ]
    )
    return make_pass(name, group=group)(adapted)


def _caller(depth: int = 2) -> str:
    """The module that an adapter is called from: there the pass belongs."""
    return str(sys._getframe(depth).f_globals.get("__name__", __name__))


def _needed(module: str, name: str, package: str, extra: str = "") -> Any:
    from importlib import import_module

    try:
        return import_module(module)
    except ImportError as error:
        what = f"'onnxlathe[{extra}]'" if extra else package
        raise UsageError(
            f"pass '{name}' needs the package {package}, which cannot be imported: {error}",
            hint=f"pip install {what}",
        ) from error


def _attach(gs: Any, graph: Any, lent: Lent) -> None:
    """Let graphsurgeon's constants find their values in the model file."""

    class Values(gs.ir.tensor.LazyValues):  # type: ignore[misc]
        """Reads a weight where it lies."""

        def __init__(self, tensor: Any, weight: ir.TensorProtocol) -> None:
            super().__init__(tensor)
            self.weight = weight

        def load(self) -> Any:
            return self.weight.numpy().copy()

    from onnxlathe.adapters.exchange import MARK

    def attach(tensor: Any) -> None:
        values = getattr(tensor, "_values", None)
        if not isinstance(values, gs.ir.tensor.LazyValues):
            return
        entries = {e.key: e.value for e in values.tensor.external_data}
        if entries.get("location") == MARK:
            # New values, should it get some, are not external.
            tensor.data_location = None
            tensor._values = Values(values.tensor, lent.tensors[int(entries.get("offset", 0))])

    graphs = [graph, *graph.subgraphs(recursive=True)]
    graphs += [
        each for function in graph.functions for each in (function, *function.subgraphs(recursive=True))
    ]
    for each in graphs:
        for tensor in each.tensors().values():
            attach(tensor)
        for node in each.nodes:
            for value in node.attrs.values():
                attach(value)
