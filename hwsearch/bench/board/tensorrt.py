"""TensorRT on a board, by its Python package: 10.x and 11.x with the same calls.

The precision of every layer stands in the graph, and the network is strongly typed, so that nothing is needed that
TensorRT 11 has dropped (`BuilderFlag.FP16` and `INT8`, calibrators, `layer.precision`). Buffers are allocated through
the CUDA driver, which is on every board that has TensorRT. Inputs lie in device memory: a pass is computation alone.
"""

from __future__ import annotations

import ctypes
import importlib
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .files import write_whole
from .onnxruntime import example_input
from .turns import Passes

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

BYTES = {"float32": 4, "float16": 2, "int64": 8}
PASSES = 10  # with every layer timed


class Cuda:
    """The few calls of the CUDA driver that a buffer and a stream need.

    Args:
        library: of the driver.

    Raises:
        RuntimeError: there is no driver, or a call fails.
    """

    def __init__(self, library: Any = None) -> None:
        try:
            self._driver = library or ctypes.CDLL("libcuda.so.1")
        except OSError as error:
            raise RuntimeError(f"the CUDA driver cannot be loaded: {error}") from error
        pointer, size = ctypes.c_void_p, ctypes.c_size_t
        device_pointer = ctypes.c_uint64
        for name, arguments in (
            ("cuInit", [ctypes.c_uint]),
            ("cuDeviceGet", [pointer, ctypes.c_int]),
            ("cuDevicePrimaryCtxRetain", [pointer, ctypes.c_int]),
            ("cuCtxSetCurrent", [pointer]),
            ("cuMemAlloc_v2", [pointer, size]),
            ("cuMemFree_v2", [device_pointer]),
            ("cuMemcpyHtoD_v2", [device_pointer, pointer, size]),
            ("cuStreamCreate", [pointer, ctypes.c_uint]),
            ("cuStreamSynchronize", [pointer]),
        ):
            getattr(self._driver, name).argtypes = arguments
        device, context, stream = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_void_p()
        self._call("cuInit", 0)
        self._call("cuDeviceGet", ctypes.byref(device), 0)
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
        self._call("cuCtxSetCurrent", context)
        self._call("cuStreamCreate", ctypes.byref(stream), 0)
        self._stream = stream
        self.stream = int(stream.value or 0)

    def _call(self, name: str, *arguments: Any) -> None:
        status = getattr(self._driver, name)(*arguments)
        if status:
            raise RuntimeError(f"the CUDA driver's {name} failed with status {status}")

    def buffer(self, size: int) -> int:
        """The address of new device memory of `size` bytes."""
        address = ctypes.c_uint64()
        self._call("cuMemAlloc_v2", ctypes.byref(address), max(size, 1))
        return int(address.value)

    def free(self, address: int) -> None:
        """Give back what `buffer` gave."""
        self._call("cuMemFree_v2", address)

    def upload(self, address: int, array: Any) -> None:
        """Copy an array to device memory."""
        self._call("cuMemcpyHtoD_v2", address, array.ctypes.data, array.nbytes)

    def synchronise(self) -> None:
        """Wait for everything on the stream."""
        self._call("cuStreamSynchronize", self._stream)


class TensorRT:
    """The installed TensorRT.

    Args:
        work: folder for engines and the timing cache, which a second run finds again.
        cuda: the driver.

    Raises:
        ImportError: it is not installed.
        RuntimeError: it has no driver.
    """

    def __init__(self, work: Path, cuda: Callable[[], Any] = Cuda) -> None:
        self._trt: Any = importlib.import_module("tensorrt")
        self.version = str(self._trt.__version__)
        self.cuda, self._work = cuda(), work
        self._logger = self._trt.Logger(self._trt.Logger.WARNING)
        self._runtime = self._trt.Runtime(self._logger)

    def prepare(self, graph: Path, point: Mapping[str, Any], beside: bool = True) -> Model:
        """A graph that is ready to run."""
        plan = self._work / f"{graph.stem}-{self.version}.plan"
        if not plan.is_file():
            write_whole(plan, self._build(graph))
        engine = self._runtime.deserialize_cuda_engine(plan.read_bytes())
        if engine is None:
            plan.unlink()
            raise RuntimeError(f"TensorRT cannot read the engine of {graph.name}; run again to build it anew")
        return Model(self, engine, point, beside)

    def _build(self, graph: Path) -> bytes:
        trt = self._trt
        builder = trt.Builder(self._logger)
        flags = getattr(trt, "NetworkDefinitionCreationFlag", None)
        typed = getattr(flags, "STRONGLY_TYPED", None)  # 11.x: always on
        network = builder.create_network(0 if typed is None else 1 << int(typed))
        parser = trt.OnnxParser(network, self._logger)
        if not parser.parse_from_file(str(graph)):
            errors = "; ".join(str(parser.get_error(i)) for i in range(parser.num_errors))
            raise RuntimeError(f"TensorRT cannot read {graph.name}: {errors}")
        config = builder.create_builder_config()
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
        kept = self._work / f"timing-{self.version}.cache"
        cache = config.create_timing_cache(kept.read_bytes() if kept.is_file() else b"")
        config.set_timing_cache(cache, False)
        plan = builder.build_serialized_network(network, config)
        if plan is None:
            raise RuntimeError(f"TensorRT cannot build {graph.name}")
        write_whole(kept, bytes(config.get_timing_cache().serialize()))
        return bytes(plan)

    def layer_times(self) -> Any:
        """A profiler that keeps what every layer took, in milliseconds by its name, as `times`."""
        trt = self._trt

        class Layers(trt.IProfiler):  # type: ignore[misc, name-defined]
            def __init__(self) -> None:
                trt.IProfiler.__init__(self)
                self.times: dict[str, list[float]] = {}

            def report_layer_time(self, layer_name: str, ms: float) -> None:
                self.times.setdefault(str(layer_name), []).append(float(ms))

        return Layers()


class Model(Passes):
    """An engine with its buffers."""

    def __init__(self, runtime: TensorRT, engine: Any, point: Mapping[str, Any], beside: bool) -> None:
        super().__init__(self._pass)
        self._runtime, self._engine, self._profiling = runtime, engine, beside
        cuda = runtime.cuda
        inputs = example_input(point)
        out = point["output"]
        sizes = {name: array.nbytes for name, array in inputs.items()}
        sizes[out["name"]] = BYTES[out["kind"]] * math.prod(out["shape"])
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        if sorted(names) != sorted(sizes):
            raise RuntimeError(f"an engine has the tensors {names}, its graph {sorted(sizes)}")
        self._buffers: dict[str, int] = {}
        try:
            for name, size in sizes.items():
                self._buffers[name] = cuda.buffer(size)
            for name, array in inputs.items():
                cuda.upload(self._buffers[name], array)
            self._context = self._new_context()
        except Exception:
            self.close()
            raise

    def _new_context(self) -> Any:
        context = self._engine.create_execution_context()
        if context is None:
            raise RuntimeError("TensorRT has no memory for an execution context; ask for smaller batches of models")
        for name, address in self._buffers.items():
            if not context.set_tensor_address(name, address):
                raise RuntimeError(f"TensorRT refuses the address of {name}")
        return context

    def _pass(self) -> None:
        if not self._context.execute_async_v3(self._runtime.cuda.stream):
            raise RuntimeError("TensorRT cannot run an engine")
        self._runtime.cuda.synchronise()

    def finish(self) -> dict[str, Any]:
        """Milliseconds of every layer, in a context of its own, since the profiler slows whole passes."""
        if not self._profiling:
            return {}
        layers, self._context = self._runtime.layer_times(), None
        context = self._new_context()
        context.profiler = layers
        for _ in range(PASSES + 1):
            context.execute_async_v3(self._runtime.cuda.stream)
            self._runtime.cuda.synchronise()
        found = {name: times[len(times) // (PASSES + 1) :] for name, times in layers.times.items()}
        return {"layers": found} if found else {}

    def close(self) -> None:
        """Give its device memory back."""
        self._context = None
        while self._buffers:
            self._runtime.cuda.free(self._buffers.popitem()[1])
