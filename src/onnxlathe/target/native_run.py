"""Running an engine, inside the child process: the handler `run` of `worker.py`.

Polygraphy has a runner, too; it wants a CUDA runtime library, which neither package brings along, and does
not measure. Here is the same on the driver's own interface (`cuda.py`).
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Final

from onnxlathe.target.cuda import Cuda, CudaError, Memory
from onnxlathe.target.native import Native, Trouble

_WARM_UP: Final = 0.2  # seconds
_MEASURED: Final = 1.0
_FEWEST, _MOST = 10, 1000  # runs


def run(
    native: Native,
    engine: str,
    plugins: list[str],
    feeds: list[dict[str, Any]],
    timed: int | None = None,
    refit: str | None = None,
) -> dict[str, Any]:
    """Run the engine in the file `engine` on each feed, and measure how long one of them takes.

    Args:
        native: the package.
        engine: a serialized engine.
        plugins: libraries of plugins to load first.
        feeds: each with `inputs` and `outputs` (files of `verify.store`, read and written) and the number of
            its `profile`.
        timed: index of the feed to measure with; None to measure nothing.
        refit: the model whose weights an engine without any gets first.

    Returns:
        `latencies`: by `graph` (whether a CUDA graph was used) the milliseconds of each run.

    Raises:
        Trouble: the engine cannot be run here.
    """
    from onnxlathe.target.native_build import load_plugin
    from onnxlathe.verify import store

    for plugin in plugins:
        load_plugin(native, plugin)
    try:
        runner = Runner(native, Path(engine).read_bytes(), Cuda())
        if refit is not None:
            runner.refit(refit)
        for feed in feeds:
            with store.Stored(Path(feed["inputs"])) as stored:
                outputs = runner.infer(dict(stored), feed["profile"])
            store.write(Path(feed["outputs"]), outputs)
        latencies = []
        if timed is not None:
            with store.Stored(Path(feeds[timed]["inputs"])) as stored:
                inputs = dict(stored)
            for graph in (False, True):
                latencies.append(
                    {"graph": graph, **runner.measure(inputs, feeds[timed]["profile"], graph=graph)}
                )
    except CudaError as error:
        raise Trouble(f"the engine cannot be run: {error}") from None
    return {"latencies": latencies}


class Runner:
    """An engine on a GPU.

    Args:
        native: the package.
        serialized: the engine.
        cuda: the driver.

    Raises:
        Trouble: this GPU or version cannot run it.
    """

    def __init__(self, native: Native, serialized: bytes, cuda: Any) -> None:
        self.trt, self._native, self.cuda = native.trt, native, cuda
        self._runtime = native.trt.Runtime(native.logger)
        self._runtime.engine_host_code_allowed = True  # we have built it ourselves
        native.messages.clear()
        self.engine = self._runtime.deserialize_cuda_engine(serialized)
        if self.engine is None:
            raise Trouble(f"the engine cannot be run on this GPU: {_last(native)}")
        self.stream = cuda.stream()
        self._memory: dict[str, Memory] = {}
        self._host: dict[str, Any] = {}
        names = [self.engine.get_tensor_name(i) for i in range(self.engine.num_io_tensors)]
        inputs = [n for n in names if self.engine.get_tensor_mode(n) == self.trt.TensorIOMode.INPUT]
        self.inputs, self.outputs = inputs, [n for n in names if n not in inputs]

    def refit(self, model: str) -> None:
        """Put in the weights of the ONNX file `model`."""
        refitter = self.trt.Refitter(self.engine, self._native.logger)
        parser = self.trt.OnnxParserRefitter(refitter, self._native.logger)
        if not (parser.refit_from_file(model) and refitter.refit_cuda_engine()):
            raise Trouble(f"the engine does not take the model's weights: {_last(self._native)}")

    def context(self, *, graph: bool = False) -> Any:
        """An execution context; TensorRT for RTX makes CUDA graphs by itself where it is told to."""
        if graph and hasattr(self.trt, "CudaGraphStrategy"):
            config = self.engine.create_runtime_config()
            config.cuda_graph_strategy = self.trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
            context = self.engine.create_execution_context(config)
        else:
            context = self.engine.create_execution_context()
        if context is None:
            raise Trouble(f"the engine cannot be run on this GPU: {_last(self._native)}")
        return context

    def infer(self, feed: dict[str, Any], profile: int) -> dict[str, Any]:
        """Outputs by name, for inputs by name."""
        import numpy as np

        context = self.context()
        allocators = self._prepare(context, feed, profile)
        self._enqueue(context)
        self.stream.synchronize()
        outputs = {}
        for name in self.outputs:
            allocator = allocators.get(name)
            shape = allocator.shape if allocator else tuple(context.get_tensor_shape(name))
            array = np.empty(shape, _dtype(self.trt, self.engine.get_tensor_dtype(name)))
            if name in self._host:
                array = self._host[name].reshape(shape).copy()
            elif array.nbytes:
                (allocator.memory if allocator else self._memory[name]).read(array)
            outputs[name] = array
        return outputs

    def measure(self, feed: dict[str, Any], profile: int, *, graph: bool) -> dict[str, Any]:
        """Milliseconds of single runs with inputs and outputs on the GPU, and runs a second in a row."""
        context = self.context(graph=graph)
        if self._prepare(context, feed, profile):
            return {"milliseconds": [], "throughput": 0.0}  # sizes that are found out while it runs
        self._enqueue(context)  # allocates, and compiles: neither may be recorded
        self.stream.synchronize()

        def launch() -> None:
            self._enqueue(context)

        if graph and not hasattr(self.trt, "CudaGraphStrategy"):
            with self.stream.capture() as recorded:
                self._enqueue(context)
            launch = recorded.launch
        return self._time(launch)

    def _time(self, launch: Any) -> dict[str, Any]:
        end = time.perf_counter() + _WARM_UP
        while time.perf_counter() < end:
            launch()
            self.stream.synchronize()
        milliseconds: list[float] = []
        end = time.perf_counter() + _MEASURED
        while len(milliseconds) < _MOST and (len(milliseconds) < _FEWEST or time.perf_counter() < end):
            before = self.stream.event()
            launch()
            after = self.stream.event()
            self.stream.synchronize()
            milliseconds.append(after.since(before))
            before.free()
            after.free()
        started = time.perf_counter()
        for _ in milliseconds:
            launch()
        self.stream.synchronize()
        return {
            "milliseconds": milliseconds,
            "throughput": len(milliseconds) / (time.perf_counter() - started),
        }

    def _enqueue(self, context: Any) -> None:
        if not context.execute_async_v3(self.stream.handle):
            raise Trouble(f"the engine failed: {_last(self._native)}")

    def _prepare(self, context: Any, feed: dict[str, Any], profile: int) -> dict[str, Any]:
        """Set shapes and addresses; returns the allocators of outputs whose size is not known before."""
        import numpy as np

        for memory in self._memory.values():
            memory.free()
        self._memory.clear()
        self._host.clear()
        if not context.set_optimization_profile_async(profile, self.stream.handle):
            raise Trouble(f"the engine has no profile {profile}: {_last(self._native)}")
        self.stream.synchronize()
        for name in self.inputs:
            dtype = _dtype(self.trt, self.engine.get_tensor_dtype(name))
            array = np.ascontiguousarray(feed[name], dtype).reshape(np.shape(feed[name]))
            if self.engine.is_shape_inference_io(name):
                self._on_host(context, name, array)
                continue
            if not context.set_input_shape(name, array.shape):
                raise Trouble(f"the engine does not take the shape {array.shape} for input {name!r}")
            self._on_device(context, name, array.nbytes).write(array)
        missing = context.infer_shapes()
        if missing:
            raise Trouble(f"the engine cannot tell its shapes without {', '.join(missing)}")
        allocators: dict[str, Any] = {}
        for name in self.outputs:
            dtype = _dtype(self.trt, self.engine.get_tensor_dtype(name))
            shape = tuple(context.get_tensor_shape(name))
            if self.engine.is_shape_inference_io(name):
                self._on_host(context, name, np.empty(shape, dtype))
            elif any(size < 0 for size in shape):
                allocators[name] = _allocator(self.trt, self.cuda)
                context.set_output_allocator(name, allocators[name])
            else:
                self._on_device(context, name, int(np.prod(shape, dtype=np.int64)) * dtype.itemsize)
        return allocators

    def _on_host(self, context: Any, name: str, array: Any) -> None:
        self._host[name] = array
        context.set_tensor_address(name, array.ctypes.data)

    def _on_device(self, context: Any, name: str, nbytes: int) -> Memory:
        memory: Memory = self.cuda.allocate(nbytes)
        self._memory[name] = memory
        context.set_tensor_address(name, memory.address)
        return memory


def _allocator(trt: Any, cuda: Any) -> Any:
    """Memory for an output whose size shows while the engine runs."""

    class Allocator(trt.IOutputAllocator):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IOutputAllocator.__init__(self)
            self.memory: Any = None
            self.shape: tuple[int, ...] = ()

        def reallocate_output_async(self, name: str, memory: int, size: int, align: int, stream: int) -> int:
            if self.memory is None or self.memory.nbytes < size:
                if self.memory is not None:
                    self.memory.free()
                self.memory = cuda.allocate(size)
            return int(self.memory.address)

        def notify_shape(self, name: str, shape: Any) -> None:
            self.shape = tuple(shape)

    return Allocator()


def _dtype(trt: Any, dtype: Any) -> Any:
    """TensorRT's element type as numpy's; those that numpy lacks are ml_dtypes'."""
    import numpy as np

    exotic = {"BF16": "bfloat16", "FP8": "float8_e4m3fn", "INT4": "int4", "FP4": "float4_e2m1fn"}
    if dtype.name in exotic:
        import ml_dtypes

        return np.dtype(getattr(ml_dtypes, exotic[dtype.name]))
    return np.dtype(trt.nptype(dtype))


def _last(native: Native) -> str:
    said = [text.strip() for severity, text in native.messages if severity != "WARNING"]
    return "; ".join(dict.fromkeys(said[-3:])) or "the library does not say why"
