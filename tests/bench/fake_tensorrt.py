"""Modules with the names that TensorRT's Python package really has, in 10.x and in 11.x, and nothing else: what is gone
in 11 is not there. Engines run in ONNX Runtime, so that what TensorRT would be given is a graph that works.

Names: NVIDIA's Python API reference of 10.3 and 11.4, and "Removed Python APIs and Replacements" of 11.
"""

from __future__ import annotations

import ctypes
import enum
from types import ModuleType
from typing import Any

import numpy as np
import onnxruntime


class Driver:
    """The CUDA driver's functions on host memory."""

    def __init__(self) -> None:
        self.memory: dict[int, Any] = {}

        def allocate(pointer: Any, size: int) -> int:
            block = ctypes.create_string_buffer(size)
            self.memory[ctypes.addressof(block)] = block
            pointer._obj.value = ctypes.addressof(block)
            return 0

        def free(address: int) -> int:
            return 0 if self.memory.pop(address, None) is not None else 1

        def upload(address: int, source: int, size: int) -> int:
            ctypes.memmove(address, source, size)
            return 0

        def create(pointer: Any, flags: int) -> int:
            pointer._obj.value = 7
            return 0

        self.cuMemAlloc_v2, self.cuMemFree_v2, self.cuMemcpyHtoD_v2 = allocate, free, upload
        self.cuStreamCreate = create
        self.cuInit = lambda flags: 0
        self.cuDeviceGet = lambda pointer, number: 0
        self.cuDevicePrimaryCtxRetain = lambda pointer, device: 0
        self.cuCtxSetCurrent = lambda context: 0
        self.cuStreamSynchronize = lambda stream: 0


def tensorrt(version: str) -> ModuleType:
    """The module; what was asked of it is kept in `asked`."""
    old = version.startswith("10.")
    module: Any = ModuleType("tensorrt")
    module.__version__ = version
    asked: dict[str, list[Any]] = {"networks": [], "builds": []}
    module.asked = asked

    class Logger:
        WARNING = 2

        def __init__(self, severity: int) -> None: ...

    class NetworkDefinitionCreationFlag(enum.IntEnum):
        EXPLICIT_BATCH = 0
        STRONGLY_TYPED = 1

    class ProfilingVerbosity(enum.Enum):
        LAYER_NAMES_ONLY = 0
        NONE = 1
        DETAILED = 2

    class TensorIOMode(enum.Enum):
        NONE = 0
        INPUT = 1
        OUTPUT = 2

    class IProfiler:
        pass

    class HostMemory(bytes):
        pass

    class TimingCache:
        def __init__(self, data: bytes) -> None:
            self.data = data

        def serialize(self) -> HostMemory:
            return HostMemory(self.data + b"+")

    class BuilderConfig:
        profiling_verbosity = ProfilingVerbosity.LAYER_NAMES_ONLY
        cache: TimingCache

        def create_timing_cache(self, data: bytes) -> TimingCache:
            return TimingCache(data)

        def set_timing_cache(self, cache: TimingCache, ignore_mismatch: bool) -> bool:
            self.cache = cache
            return True

        def get_timing_cache(self) -> TimingCache:
            return self.cache

    class NetworkDefinition:
        path = ""

    class OnnxParser:
        def __init__(self, network: NetworkDefinition, logger: Logger) -> None:
            self.network, self.error = network, ""

        def parse_from_file(self, path: str) -> bool:
            try:
                onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
            except Exception as error:
                self.error = str(error)
                return False
            self.network.path = path
            return True

        @property
        def num_errors(self) -> int:
            return 1 if self.error else 0

        def get_error(self, index: int) -> str:
            return self.error

    class Builder:
        def __init__(self, logger: Logger) -> None: ...

        def create_network(self, flags: int = 0) -> NetworkDefinition:
            asked["networks"].append(flags)
            return NetworkDefinition()

        def create_builder_config(self) -> BuilderConfig:
            return BuilderConfig()

        def build_serialized_network(self, network: NetworkDefinition, config: BuilderConfig) -> HostMemory:
            asked["builds"].append(network.path)
            return HostMemory(network.path.encode())

    class ExecutionContext:
        def __init__(self, session: Any) -> None:
            self.session, self.profiler = session, None
            self.addresses: dict[str, int] = {}

        def set_tensor_address(self, name: str, address: int) -> bool:
            self.addresses[name] = address
            return True

        def execute_async_v3(self, stream_handle: int) -> bool:
            kinds = {"tensor(int64)": np.int64, "tensor(float16)": np.float16, "tensor(float)": np.float32}
            entry, leave = self.session.get_inputs()[0], self.session.get_outputs()[0]
            kind = np.dtype(kinds[entry.type])
            data = ctypes.string_at(self.addresses[entry.name], kind.itemsize * int(np.prod(entry.shape)))
            (out,) = self.session.run(None, {entry.name: np.frombuffer(data, kind).reshape(entry.shape)})
            assert np.isfinite(out).all()
            ctypes.memmove(self.addresses[leave.name], out.ctypes.data, out.nbytes)
            if self.profiler is not None:
                self.profiler.report_layer_time("0.qkv/matmul1 + 0.qkv/add2", 0.25)
                self.profiler.report_layer_time("{ForeignNode[0.scores/matmul9...0.norm/layernormalization21]}", 0.5)
            return True

    class CudaEngine:
        def __init__(self, path: str) -> None:
            self.session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
            self.names = [one.name for one in (*self.session.get_inputs(), *self.session.get_outputs())]

        @property
        def num_io_tensors(self) -> int:
            return len(self.names)

        def get_tensor_name(self, index: int) -> str:
            return self.names[index]

        def create_execution_context(self) -> ExecutionContext:
            return ExecutionContext(self.session)

    class Runtime:
        def __init__(self, logger: Logger) -> None: ...

        def deserialize_cuda_engine(self, plan: bytes) -> CudaEngine | None:
            return CudaEngine(plan.decode()) if plan else None

    names = {
        "Logger": Logger,
        "ProfilingVerbosity": ProfilingVerbosity,
        "TensorIOMode": TensorIOMode,
        "IProfiler": IProfiler,
        "OnnxParser": OnnxParser,
        "Builder": Builder,
        "Runtime": Runtime,
    }
    for name, value in names.items():
        setattr(module, name, value)
    if old:
        module.NetworkDefinitionCreationFlag = NetworkDefinitionCreationFlag
        module.BuilderFlag = enum.Enum("BuilderFlag", ["FP16", "INT8", "TF32", "OBEY_PRECISION_CONSTRAINTS"])
        module.IInt8EntropyCalibrator2 = type("IInt8EntropyCalibrator2", (), {})
    else:
        module.BuilderFlag = enum.Enum("BuilderFlag", ["TF32", "REFIT"])
    return module
