"""CUDA's driver interface, as much of it as running an engine takes. Used inside the child process only.

It talks to the driver's own library, which is there wherever a GPU works, rather than to a CUDA runtime,
which may not be installed. Every call is checked.
"""

from __future__ import annotations

import ctypes
import json
import sys
from ctypes import byref, c_char_p, c_float, c_int, c_size_t, c_uint64, c_void_p
from dataclasses import asdict, dataclass
from typing import Any, Final

_LIBRARY: Final = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
_CAPABILITY_MAJOR, _CAPABILITY_MINOR = 75, 76  # CUdevice_attribute
_NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING
_RELAXED = 2  # CU_STREAM_CAPTURE_MODE_RELAXED


class CudaError(RuntimeError):
    """A call of the driver failed; the message names it and says why."""


@dataclass(frozen=True)
class Gpu:
    """A GPU that CUDA can use.

    Attributes:
        name: its model.
        compute_capability: as "8.9".
        memory: bytes.
        driver: the CUDA version that the driver supports, as "13.0".
    """

    name: str
    compute_capability: str
    memory: int
    driver: str

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)


class Cuda:
    """The driver, with the primary context of one GPU made current.

    Args:
        device: number of the GPU; None makes no context.

    Raises:
        CudaError: there is no driver, or no such GPU.
    """

    def __init__(self, device: int | None = 0) -> None:
        try:
            self._library = ctypes.CDLL(_LIBRARY)
        except OSError as error:
            raise CudaError(f"there is no CUDA driver: {error}") from None
        self.call("cuInit", 0)
        self._context = c_void_p()
        if device is not None:
            self.call("cuDevicePrimaryCtxRetain", byref(self._context), self._device(device))
            self.call("cuCtxSetCurrent", self._context)

    def call(self, name: str, *arguments: Any) -> None:
        """Call a function of the driver that returns a CUresult.

        Raises:
            CudaError: it did not return CUDA_SUCCESS.
        """
        status = getattr(self._library, name)(*arguments)
        if status:
            text = c_char_p()
            self._library.cuGetErrorString(status, byref(text))
            why = text.value.decode() if text.value else f"error {status}"
            raise CudaError(f"{name}: {why}")

    def _device(self, number: int) -> c_int:
        device = c_int()
        self.call("cuDeviceGet", byref(device), number)
        return device

    def gpus(self) -> list[Gpu]:
        """The GPUs, in CUDA's order."""
        count, version = c_int(), c_int()
        self.call("cuDeviceGetCount", byref(count))
        self.call("cuDriverGetVersion", byref(version))
        driver = f"{version.value // 1000}.{version.value % 1000 // 10}"
        found = []
        for number in range(count.value):
            device = self._device(number)
            name, memory = ctypes.create_string_buffer(256), c_size_t()
            self.call("cuDeviceGetName", name, len(name), device)
            self.call("cuDeviceTotalMem_v2", byref(memory), device)
            capability = []
            for attribute in (_CAPABILITY_MAJOR, _CAPABILITY_MINOR):
                value = c_int()
                self.call("cuDeviceGetAttribute", byref(value), attribute, device)
                capability.append(str(value.value))
            found.append(Gpu(name.value.decode(), ".".join(capability), memory.value, driver))
        return found

    def allocate(self, nbytes: int) -> Memory:
        """Memory on the GPU, freed with the object."""
        return Memory(self, nbytes)

    def stream(self) -> Stream:
        """A stream of its own."""
        return Stream(self)


class Memory:
    """Bytes on the GPU.

    Attributes:
        address: where they are, as CUDA counts.
    """

    def __init__(self, cuda: Cuda, nbytes: int) -> None:
        self._cuda = cuda
        self.nbytes = nbytes
        pointer = c_uint64()
        cuda.call("cuMemAlloc_v2", byref(pointer), c_size_t(max(nbytes, 1)))
        self.address = pointer.value

    def write(self, data: Any) -> None:
        """Copy a contiguous numpy array to the GPU."""
        self._cuda.call("cuMemcpyHtoD_v2", c_uint64(self.address), c_void_p(data.ctypes.data), _size(data))

    def read(self, into: Any) -> None:
        """Fill a contiguous numpy array from the GPU."""
        self._cuda.call("cuMemcpyDtoH_v2", c_void_p(into.ctypes.data), c_uint64(self.address), _size(into))

    def free(self) -> None:
        """Give the memory back; harmless to repeat."""
        if self.address:
            self._cuda.call("cuMemFree_v2", c_uint64(self.address))
            self.address = 0


def _size(array: Any) -> c_size_t:
    return c_size_t(array.nbytes)


class Stream:
    """Work in order on the GPU.

    Attributes:
        handle: the CUstream, as an integer.
    """

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda
        self._stream = c_void_p()
        cuda.call("cuStreamCreate", byref(self._stream), _NON_BLOCKING)
        self.handle = self._stream.value or 0

    def synchronize(self) -> None:
        """Wait until all is done."""
        self._cuda.call("cuStreamSynchronize", self._stream)

    def event(self) -> Event:
        """A mark at this point of the stream."""
        event = Event(self._cuda)
        event.record(self)
        return event

    def capture(self) -> Capture:
        """Record what is enqueued in a `with` block as a CUDA graph, instead of running it."""
        return Capture(self._cuda, self)


class Event:
    """A point in time on the GPU."""

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda
        self._event = c_void_p()
        cuda.call("cuEventCreate", byref(self._event), 0)

    def record(self, stream: Stream) -> None:
        """Let it be the point that `stream` has come to."""
        self._cuda.call("cuEventRecord", self._event, c_void_p(stream.handle))

    def since(self, earlier: Event) -> float:
        """Milliseconds since another event; both must have happened."""
        elapsed = c_float()
        self._cuda.call("cuEventElapsedTime", byref(elapsed), earlier._event, self._event)
        return elapsed.value

    def free(self) -> None:
        """Give the event back."""
        self._cuda.call("cuEventDestroy_v2", self._event)


class Capture:
    """A CUDA graph: what was enqueued while it was recorded. `launch` runs all of it at once."""

    def __init__(self, cuda: Cuda, stream: Stream) -> None:
        self._cuda, self._stream = cuda, stream
        self._graph, self._executable = c_void_p(), c_void_p()

    def __enter__(self) -> Capture:
        self._cuda.call("cuStreamBeginCapture_v2", c_void_p(self._stream.handle), _RELAXED)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            self._cuda.call("cuStreamEndCapture", c_void_p(self._stream.handle), byref(self._graph))
        except CudaError:
            if kind is None:  # otherwise the block's own error says more
                raise
            return
        if kind is None:
            self._cuda.call("cuGraphInstantiateWithFlags", byref(self._executable), self._graph, c_uint64(0))

    def launch(self) -> None:
        """Enqueue the graph on the stream it was recorded from."""
        self._cuda.call("cuGraphLaunch", self._executable, c_void_p(self._stream.handle))


def gpus() -> list[Gpu]:
    """The GPUs that CUDA can use; none where there is no driver."""
    try:
        return Cuda(device=None).gpus()
    except CudaError:
        return []


if __name__ == "__main__":  # asked by a process that must not load the driver itself
    print(json.dumps([gpu.to_dict() for gpu in gpus()]))
