"""Reading a model: the graph now, the weights when somebody asks."""

from __future__ import annotations

import logging
import os
import stat
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir

from onnxlathe._collector import paused
from onnxlathe.errors import ModelError

from .check import Checker, check_tensors
from .model import Model
from .protos import bodies_of, element_type, tensors_of
from .tensors import FileTensor, SmallTensor, SourceFile, digest, nbytes_of
from .wire import Elided, Payload, Source, WireError, elide, fields

TYPES_KEY = "onnxlathe.types"
EXTERNAL_KEY = "onnxlathe.external"
"""Key in the main graph's `meta` where the model came with external data."""
"""`graph.meta` key: serialized TypeProto by name, for inputs and outputs that onnx_ir has no type for."""

_MAX_OPEN_FILES = 128

# What else people give to a tool that wants ONNX: offset, magic, what it is, what to do.
_EXPORT = "Export it to ONNX first."
_MAGIC = (
    (0, b"version https://git-lfs", "a Git LFS pointer", "Fetch the real file: `git lfs pull`."),
    (0, b"PK\x03\x04", "a zip archive (a PyTorch `.pt` file is one)", _EXPORT),
    (0, b"\x80\x02", "a Python pickle (an old PyTorch `.pt` file is one)", _EXPORT),
    (0, b"ftrt", "a TensorRT engine", "Give the ONNX model that it was built from."),
    (0, b"ptrt", "a TensorRT engine", "Give the ONNX model that it was built from."),
    (4, b"TFL3", "a TensorFlow Lite model", "Convert it with tf2onnx first."),
    (4, b"ORTM", "an ONNX Runtime `.ort` model", "Give the ONNX model that it was made from."),
    (0, b"\x89HDF", "an HDF5 (Keras) file", "Convert it with tf2onnx first."),
    (0, b"GGUF", "a GGUF model", _EXPORT),
    (0, b"\x93NUMPY", "a NumPy array", "Give a model; arrays are inputs."),
    (0, b"\x1f\x8b", "a gzip file", "Unpack it first: `gunzip`."),
    (0, b"\xfd7zXZ", "an xz file", "Unpack it first: `unxz`."),
    (0, b"\x28\xb5\x2f\xfd", "a zstd file", "Unpack it first: `unzstd`."),
    (8, b"{", "a safetensors file", _EXPORT),
)
_TEXT = (
    ((b"<!doctype", b"<html"), "an HTML page", "The download went wrong; look at the file."),
    ((b"{", b"["), "JSON", "Only the binary form of ONNX is read."),
    (
        (b"<", b"ir_version"),
        "ONNX in text form",
        "Only the binary form of ONNX is read.",
    ),
)


def load(path: str | os.PathLike[str], *, strict: bool = False) -> Model:
    """Read an ONNX model, and leave its weights where they are.

    Works alike for one self-contained file, for external data beside the file, and for models of any size.
    Tensors of 1 KiB and more become `FileTensor`: they hold the file open and read from it on demand.

    Args:
        path: the model file. External data must lie in its folder or below.
        strict: refuse what would otherwise be repaired and be reported in `Model.repairs`: nodes out of
            order, node names given twice, a missing opset, equal initializers given twice, sparse tensors,
            training information.

    Raises:
        ModelError: the file is no ONNX model, is damaged, or breaks a rule of ONNX that cannot be repaired.
    """
    with paused():
        file = _open(Path(path))
        elided, proto = _parse(file)
        loader = _Weights(file, elided)
        loader.check(proto)
        checker = Checker(proto, strict=strict, digest=loader.digest)
        try:
            checker.run()
            types = _take_types(proto)
            graph_model = _deserialize(proto)
        except UnicodeDecodeError as error:  # names are checked; this is for texts that nobody else reads
            raise ModelError(
                f"{str(path)!r} has a text that is no UTF-8: {error.object[:40]!r}",
                hint="The file is damaged; export the model again.",
            ) from None
        if types:
            graph_model.graph.meta[TYPES_KEY] = types
        model = Model(graph_model, path=Path(path), repairs=checker.repairs)
        if loader.has_external_data:
            graph_model.graph.meta[EXTERNAL_KEY] = True
        if checker.shadowed:
            _unshadow(model)
        loader.attach(model)
        return model


def _open(path: Path) -> SourceFile:
    try:
        found = path.stat()
    except OSError as error:
        what = "there is no such file" if isinstance(error, FileNotFoundError) else error.strerror
        raise ModelError(f"cannot read model {str(path)!r}: {what}", hint="Check the path.") from None
    if stat.S_ISDIR(found.st_mode):
        inside = sorted(p.name for p in path.glob("*.onnx"))[:3]
        hint = f"It contains {', '.join(inside)}; name one." if inside else "Give a model file."
        raise ModelError(f"{str(path)!r} is a directory", hint=hint)
    if not stat.S_ISREG(found.st_mode):
        raise ModelError(f"{str(path)!r} is not a regular file", hint="Write the model to a file first.")
    if not found.st_size:
        raise ModelError(f"{str(path)!r} is empty", hint="The export or download went wrong; repeat it.")
    return SourceFile(path)


def _parse(file: SourceFile) -> tuple[Elided, Any]:
    """The file without its big payloads, also as a ModelProto."""
    source = Source(file.read, file.size)
    head = file.read(0, min(64, file.size))
    for offset, magic, what, hint in _MAGIC:
        if head[offset : offset + len(magic)] == magic:
            # A magic is only believed where the bytes are not the beginning of a model.
            if _begins_a_model(source):
                break
            raise ModelError(f"{str(file.path)!r} is no ONNX model: it looks like {what}", hint=hint)
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    for starts, what, hint in _TEXT:
        if text.startswith(starts) and not _begins_a_model(source):
            raise ModelError(f"{str(file.path)!r} is no ONNX model: it looks like {what}", hint=hint)
    try:
        elided = elide(source)
        proto = onnx.ModelProto.FromString(elided.data)
    except WireError as error:
        if not _begins_a_model(source):
            raise ModelError(
                f"{str(file.path)!r} is no ONNX model: its first bytes are {head[:8].hex(' ')}",
                hint="Give a file that an ONNX exporter has written.",
            ) from None
        if "ends at byte" in str(error) or "end inside" in str(error):
            raise ModelError(
                f"{str(file.path)!r} is truncated or damaged: {error}, and the file has {file.size} bytes"
                f" (seen at byte {error.at})",
                hint="The copy or download was cut off; repeat it.",
            ) from None
        raise ModelError(
            f"{str(file.path)!r} is damaged at byte {error.at}: {error}", hint="Export or copy it again."
        ) from None
    except Exception as error:  # protobuf's DecodeError has no home that all versions share
        raise ModelError(
            f"{str(file.path)!r} is no well-formed ONNX protobuf: {error}", hint="Export or copy it again."
        ) from None
    return elided, proto


# Wire types of ModelProto's fields: a file that begins otherwise is something else.
_MODEL_FIELDS = {1: 0, 2: 2, 3: 2, 4: 2, 5: 0, 6: 2, 7: 2, 8: 2, 14: 2, 20: 2, 25: 2, 26: 2}


def _begins_a_model(source: Source) -> bool:
    """Whether the first field is one that a ModelProto can have (it may still be cut off)."""
    try:
        for number, wire_type, *_ in fields(source, 0, 1 << 62):
            return _MODEL_FIELDS.get(number) == wire_type
    except WireError:
        pass
    return False


def _take_types(proto: Any) -> dict[str, bytes]:
    """Take away types that onnx_ir cannot read (maps and opaque ones); returns the main graph's, by name."""
    types: dict[str, bytes] = {}
    for body in bodies_of(proto):
        values = [*body.value_info]
        if isinstance(body, onnx.GraphProto):
            values += [*body.input, *body.output]
        for value in values:
            if value.HasField("type") and _has_no_ir_type(value.type):
                if body is proto.graph:
                    types[value.name] = value.type.SerializeToString()
                value.ClearField("type")
    return types


def _has_no_ir_type(kind: Any) -> bool:
    while True:
        which = kind.WhichOneof("value")
        if which in ("map_type", "opaque_type"):
            return True
        if which not in ("sequence_type", "optional_type"):
            return False
        kind = getattr(kind, which).elem_type


def _deserialize(proto: Any) -> ir.Model:
    logger = logging.getLogger("onnx_ir")
    level = logger.level
    logger.setLevel(logging.ERROR)  # what it would warn about was checked or repaired before
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ir.serde.deserialize_model(proto)
    except ir.serde.SerdeError as error:
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        if isinstance(cause, UnicodeDecodeError):
            raise cause from None
        raise ModelError(
            f"the model cannot be represented: {str(cause).splitlines()[0]}",
            hint="It uses something that onnx_ir does not support, or is damaged.",
        ) from None
    finally:
        logger.setLevel(level)


class _Weights:
    """Knows where the elements of each tensor lie that is not in memory.

    Args:
        file: the model file.
        elided: what was left out of it.
    """

    def __init__(self, file: SourceFile, elided: Elided) -> None:
        self.file = file
        self.elided = elided
        folder = Path(os.path.abspath(file.path)).parent
        self._folder = folder
        # The model may be a link (as in the Hugging Face cache): the folder it points to is its own as well.
        self._roots = {os.path.realpath(folder), os.path.dirname(os.path.realpath(file.path))}
        self._files: dict[str, SourceFile] = {}
        self._places: dict[str, SourceFile] = {}

    def check(self, proto: Any) -> None:
        """Every tensor must be complete, wherever it lies; raises ModelError for the first that is not."""
        check_tensors(proto)
        for tensor in tensors_of(proto):
            if tensor.data_location == onnx.TensorProto.EXTERNAL:
                self._locate(tensor)

    def digest(self, tensor: Any) -> bytes:
        """A hash of the elements of a TensorProto."""
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            file, offset, external = self._locate(tensor)
            shape = ir.Shape(tensor.dims)
            dtype = element_type(tensor)
            return FileTensor(file, offset, dtype=dtype, shape=shape, external=external).digest()
        if tensor.data_type == onnx.TensorProto.STRING:
            return b"\0".join(tensor.string_data)
        return digest(ir.TensorProtoTensor(tensor))

    def _locate(self, tensor: Any) -> tuple[SourceFile, int, bool]:
        """The file, the offset in it, and whether it is an external one."""
        entries = {entry.key: entry.value for entry in tensor.external_data}
        location = entries.get("location", "")
        if tensor.data_type == onnx.TensorProto.STRING:
            raise ModelError(f"tensor {tensor.name!r} holds strings in raw data, which ONNX forbids")
        nbytes = nbytes_of(element_type(tensor), list(tensor.dims))
        payload = self.elided.payload(location)
        if payload is not None:
            _check_payload(tensor, payload, nbytes)
            return self.file, payload.offset, False
        file = self._external(tensor.name, location)
        try:
            offset = int(entries.get("offset") or 0)
            length = int(entries.get("length") or nbytes)
        except ValueError:
            raise ModelError(
                f"tensor {tensor.name!r}: offset {entries.get('offset')!r} or length"
                f" {entries.get('length')!r} of its external data is no number"
            ) from None
        if length != nbytes:
            raise ModelError(
                f"tensor {tensor.name!r}: its external data are {length} bytes long; type and shape"
                f" {list(tensor.dims)} need {nbytes}",
                hint="Model and data do not belong together; export or copy both again.",
            )
        if offset < 0 or offset + length > file.size:
            raise ModelError(
                f"tensor {tensor.name!r}: its data lie at bytes {offset} to {offset + length} of"
                f" {location!r}, which has {file.size} bytes",
                hint="The data file was cut off or belongs to another model; copy it again.",
            )
        return file, offset, True

    def _external(self, name: str, location: str) -> SourceFile:
        """The external data file of this location, opened once."""
        if (known := self._places.get(location)) is not None:
            return known
        where = f"tensor {name!r}: external data {location!r}"
        if not location:
            raise ModelError(f"tensor {name!r}: its external data have no location")
        if os.path.isabs(location) or ".." in Path(location).parts or "\0" in location:
            raise ModelError(
                f"{where} is outside the model's folder",
                hint="A model may only name files beside itself or below; move the data there.",
            )
        path = self._folder / location
        real = os.path.realpath(path)
        if not any(real.startswith(root.rstrip(os.sep) + os.sep) for root in self._roots):
            raise ModelError(
                f"{where} is a link that leads outside the model's folder",
                hint="Replace the link by the file itself if you trust it.",
            )
        if real not in self._files:
            try:
                mode = os.stat(real).st_mode
            except OSError:
                raise ModelError(
                    f"{where}: there is no such file in {str(self._folder)!r}",
                    hint="Copy the data file beside the model.",
                ) from None
            if not stat.S_ISREG(mode):
                raise ModelError(f"{where} is not a regular file")
            self._files[real] = SourceFile(real, keep_open=len(self._files) < _MAX_OPEN_FILES)
        self._places[location] = self._files[real]
        return self._files[real]

    @property
    def has_external_data(self) -> bool:
        """Whether some tensor lies in another file."""
        return bool(self._places)

    def attach(self, model: Model) -> None:
        """Give every tensor that is not in memory its `FileTensor`, and the others what answers quickly."""
        for graph in model.graphs():
            for value in graph.initializers.values():
                if value.const_value is not None:
                    value.const_value = self._ours(value.const_value)
                    if not value.is_graph_input():
                        _describe(value, value.const_value)
            for node in graph:
                if node.attributes.data:
                    _replace_attributes(node.attributes, self)
        for function in model.ir.functions.values():
            _replace_attributes(function.attributes, self)

    def _ours(self, tensor: ir.TensorProtocol) -> ir.TensorProtocol:
        # By type: `isinstance` asks typing's protocols about every tensor, which takes microseconds.
        if type(tensor) is ir.TensorProtoTensor:
            return SmallTensor(tensor.raw)
        return self._tensor(tensor) if type(tensor) is ir.ExternalTensor else tensor

    def _tensor(self, tensor: ir.ExternalTensor) -> FileTensor:
        payload = self.elided.payload(str(tensor.location))
        if payload is not None:
            file, offset = self.file, payload.offset
        else:
            file, offset = self._places[str(tensor.location)], tensor.offset or 0
        return FileTensor(
            file,
            offset,
            dtype=tensor.dtype,
            shape=tensor.shape,
            name=tensor.name,
            doc_string=tensor.doc_string,
            metadata_props=dict(tensor.metadata_props) or None,
            external=payload is None,
        )


def _describe(value: ir.Value, tensor: ir.TensorProtocol) -> None:
    """The type and shape of a constant are its tensor's, whatever the graph notes of it elsewhere.

    ONNX Runtime's optimizer transposes weights and leaves what was noted of their shapes.
    """
    if value.shape != tensor.shape or value.dtype != tensor.dtype:
        value.shape, value.type = ir.Shape(tensor.shape.numpy()), ir.TensorType(tensor.dtype)


def _replace_attributes(attributes: Any, weights: _Weights) -> None:
    for name, attribute in attributes.data.items():
        kind = attribute.type
        if attribute.is_ref() or kind not in (ir.AttributeType.TENSOR, ir.AttributeType.TENSORS):
            continue
        held = (
            weights._ours(attribute.value)
            if kind is ir.AttributeType.TENSOR
            else [weights._ours(tensor) for tensor in attribute.value]
        )
        attributes[name] = ir.Attr(name, kind, held, doc_string=attribute.doc_string)


def _check_payload(tensor: Any, payload: Payload, nbytes: int) -> None:
    fitting = {
        "float_data": (onnx.TensorProto.FLOAT, onnx.TensorProto.COMPLEX64),
        "double_data": (onnx.TensorProto.DOUBLE, onnx.TensorProto.COMPLEX128),
    }.get(payload.field)
    if fitting is not None and tensor.data_type not in fitting:
        raise ModelError(
            f"tensor {tensor.name!r} of type {element_type(tensor).name} has its elements in {payload.field},"
            " where ONNX does not allow them"
        )
    if payload.nbytes != nbytes:
        raise ModelError(
            f"tensor {tensor.name!r} of type {element_type(tensor).name} and shape {list(tensor.dims)} should"
            f" have {nbytes} bytes of data and has {payload.nbytes}",
            hint="The file was damaged or written wrongly; export the model again.",
        )


def _unshadow(model: Model) -> None:
    """Rename values of subgraphs that have the name of one visible from outside.

    ONNX demands distinct names; runtimes accept such models, and each name means its innermost value. With
    distinct names, passes may move nodes between graphs. Formal inputs and outputs are bound by position.
    """
    taken = {value.name for graph in model.graphs() for value in _values(graph) if value.name}

    def visit(graph: ir.Graph, outer: frozenset[str]) -> None:
        for value in list(_values(graph)):
            if value.name in outer:
                number = 1
                while (name := f"{value.name}_{number}") in taken:
                    number += 1
                taken.add(name)
                value.name = name
        nested = [
            attribute for node in graph for attribute in node.attributes.values() if not attribute.is_ref()
        ]
        visible: frozenset[str] | None = None
        for attribute in nested:
            for inner in _graphs_of(attribute):
                if visible is None:
                    visible = outer | {value.name for value in _values(graph) if value.name}
                visit(inner, visible)

    visit(model.graph, frozenset())
    for function in model.ir.functions.values():
        visit(function.graph, frozenset())


def _graphs_of(attribute: ir.Attr) -> list[ir.Graph]:
    if attribute.is_ref():
        return []
    if attribute.type == ir.AttributeType.GRAPH:
        return [attribute.as_graph()]
    if attribute.type == ir.AttributeType.GRAPHS:
        return list(attribute.as_graphs())
    return []


def _values(graph: ir.Graph) -> Iterator[ir.Value]:
    """The values that a graph defines."""
    yield from graph.inputs
    yield from (value for value in graph.initializers.values() if not value.is_graph_input())
    for node in graph:
        yield from node.outputs
