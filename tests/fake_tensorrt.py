"""A stand-in for TensorRT's runtime whose one engine copies `x` to `y`, on a real GPU or in host memory.

What it takes and gives has the form of the API that TensorRT 10, 11 and TensorRT for RTX share.
"""

from __future__ import annotations

import ctypes
import enum
import math
from types import SimpleNamespace
from typing import Any

import numpy as np


class TensorIOMode(enum.Enum):
    INPUT = 0
    OUTPUT = 1


class DataType(enum.Enum):
    FLOAT = np.float32
    INT64 = np.int64
    BF16 = None


class ICudaEngine:
    """Input x: float [-1, 4], input k: int64 [1] (a shape tensor), output y of x's shape."""

    num_io_tensors = 3
    dtype = DataType.FLOAT

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self.contexts: list[Context] = []

    def get_tensor_name(self, index: int) -> str:
        return ("x", "k", "y")[index]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode.OUTPUT if name == "y" else TensorIOMode.INPUT

    def get_tensor_dtype(self, name: str) -> DataType:
        return DataType.INT64 if name == "k" else self.dtype

    def is_shape_inference_io(self, name: str) -> bool:
        return name == "k"

    def create_execution_context(self, config: Any = None) -> Context:
        self.contexts.append(Context(self, config))
        return self.contexts[-1]


class Context:
    def __init__(self, engine: ICudaEngine, config: Any) -> None:
        self.engine, self.config = engine, config
        self.profile = -1
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.allocators: dict[str, Any] = {}

    def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
        self.profile = profile
        return profile < 2

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shapes[name] = tuple(shape)
        return len(shape) == 2 and shape[1] == 4

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return True

    def set_output_allocator(self, name: str, allocator: Any) -> bool:
        self.allocators[name] = allocator
        return True

    def infer_shapes(self) -> list[str]:
        return [name for name in ("x", "k") if name not in self.addresses]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return (-1, -1) if self.engine.runtime.trt.data_dependent else self.shapes["x"]

    def execute_async_v3(self, stream: int) -> bool:
        shape = self.shapes["x"]
        nbytes = math.prod(shape) * 4
        if "y" in self.allocators:
            self.addresses["y"] = self.allocators["y"].reallocate_output_async("y", 0, nbytes, 256, stream)
            self.allocators["y"].notify_shape("y", shape)
        self.engine.runtime.trt.copy(self.addresses["y"], self.addresses["x"], nbytes, stream)
        return self.engine.runtime.trt.works


class Runtime:
    trt: FakeTensorRT

    def __init__(self, logger: Any) -> None:
        self.engine_host_code_allowed = False

    def deserialize_cuda_engine(self, data: bytes) -> ICudaEngine | None:
        if not data.startswith(b"engine"):
            return None
        self.trt.engine = ICudaEngine(self)
        return self.trt.engine


class Refitter:
    """Puts weights into an engine: `refitted` of the package is the file that they came from."""

    trt: FakeTensorRT

    def __init__(self, engine: ICudaEngine, logger: Any) -> None:
        self.path = ""

    def refit_cuda_engine(self) -> bool:
        self.trt.refitted = self.path
        return True


class OnnxParserRefitter:
    def __init__(self, refitter: Refitter, logger: Any) -> None:
        self.refitter = refitter

    def refit_from_file(self, model: str) -> bool:
        self.refitter.path = model
        return model.endswith(".onnx")


class IOutputAllocator:
    pass


class FakeTensorRT:
    """The package. `copy(to, from, nbytes, stream)` does the engine's work."""

    TensorIOMode = TensorIOMode
    OnnxParserRefitter = OnnxParserRefitter
    IOutputAllocator = IOutputAllocator

    def __init__(self, copy: Any, *, works: bool = True, data_dependent: bool = False) -> None:
        self.copy, self.works, self.data_dependent = copy, works, data_dependent
        self.engine: ICudaEngine | None = None
        self.refitted = ""
        self.Runtime = type("Runtime", (Runtime,), {"trt": self})
        self.Refitter = type("Refitter", (Refitter,), {"trt": self})

    @staticmethod
    def nptype(dtype: DataType) -> Any:
        return dtype.value

    def native(self) -> Any:
        """What `Native` would be with this package."""
        return SimpleNamespace(trt=self, logger=None, messages=[("ERROR", "the driver says no")])


class HostCuda:
    """CUDA's part played in host memory; remembers what was done."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.living = 0

    def allocate(self, nbytes: int) -> HostMemory:
        return HostMemory(self, nbytes)

    def stream(self) -> HostStream:
        return HostStream(self)


class HostMemory:
    def __init__(self, cuda: HostCuda, nbytes: int) -> None:
        self.cuda, self.nbytes = cuda, nbytes
        self.buffer = ctypes.create_string_buffer(max(1, nbytes))
        self.address = ctypes.addressof(self.buffer)
        cuda.living += 1

    def write(self, data: np.ndarray) -> None:
        ctypes.memmove(self.address, data.ctypes.data, data.nbytes)

    def read(self, into: np.ndarray) -> None:
        ctypes.memmove(into.ctypes.data, self.address, into.nbytes)

    def free(self) -> None:
        self.cuda.living -= 1


class HostStream:
    handle = 7

    def __init__(self, cuda: HostCuda) -> None:
        self.cuda = cuda

    def synchronize(self) -> None:
        self.cuda.done.append("synchronize")

    def event(self) -> Any:
        return SimpleNamespace(since=lambda earlier: 0.5, free=lambda: None)

    def capture(self) -> HostStream:
        self.cuda.done.append("capture")
        return self

    def __enter__(self) -> HostStream:
        return self

    def __exit__(self, *_: object) -> None:
        self.cuda.done.append("captured")

    def launch(self) -> None:
        self.cuda.done.append("launch")


def host_copy(to: int, source: int, nbytes: int, stream: int) -> None:
    """The engine's work in host memory."""
    ctypes.memmove(to, source, nbytes)
