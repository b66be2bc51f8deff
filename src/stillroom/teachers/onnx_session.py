"""Runs an ONNX graph through onnxruntime on torch tensors, on the device asked for or on none."""

import os

import numpy as np
import onnx
import onnxruntime
import onnxruntime.capi.onnxruntime_pybind11_state as _ort
import torch
from jaxtyping import Float
from torch import Tensor

from stillroom.device_memory import is_out_of_memory
from stillroom.errors import UserError, first_line
from stillroom.teachers.onnx_cuda import (
    CUDA_PROVIDER,
    cuda_options,
    load_cuda_libraries,
    why_not_loaded,
)

_FATAL = 4  # onnxruntime's severity; what matters arrives as an exception
_TYPES: dict[str, tuple[torch.dtype, type[np.generic]]] = {  # of what we can bind
    "tensor(float)": (torch.float32, np.float32),
    "tensor(float16)": (torch.float16, np.float16),
    "tensor(double)": (torch.float64, np.float64),
    "tensor(int64)": (torch.int64, np.int64),
    "tensor(int32)": (torch.int32, np.int32),
    "tensor(int8)": (torch.int8, np.int8),
    "tensor(uint8)": (torch.uint8, np.uint8),
    "tensor(bool)": (torch.bool, np.bool_),
}

RUN_ERRORS = (_ort.Fail, _ort.InvalidArgument, _ort.RuntimeException, _ort.NotImplemented)
_LOAD_ERRORS = (*RUN_ERRORS, _ort.InvalidGraph, _ort.InvalidProtobuf, _ort.EPFail, _ort.NotFound)


class OnnxSession:
    """A graph with one input, ready to run on `device`.

    On CUDA, input and outputs stay in torch's memory. Both are of the types that the graph
    declares; pictures and answers are float32.
    """

    def __init__(self, model: onnx.ModelProto, device: torch.device) -> None:
        """Raises UserError where onnxruntime cannot load the graph or has no such device."""
        self.device = device
        self.provider = CUDA_PROVIDER if device.type == "cuda" else "CPUExecutionProvider"
        onnxruntime.set_default_logger_severity(_FATAL)
        self._session = _open(model, self.provider, device.index or 0)
        if self._session.get_providers()[0] != self.provider:  # it fell back to the CPU
            raise _no_device(why_not_loaded() or "it gave no reason", device)
        self._input = _Value(self._session.get_inputs()[0])
        self._outputs = [_Value(output) for output in self._session.get_outputs()]
        self._shapes: dict[tuple[int, ...], list[tuple[int, ...]]] = {}

    def run(self, image: Float[Tensor, "b 3 h w"]) -> dict[str, Float[Tensor, "..."]]:
        """Return every output by name, float32; raises one of RUN_ERRORS for what cannot be run."""
        if self.device.type != "cpu":
            return self._run_bound(image)
        array = image.to(self.device, self._input.dtype).contiguous().numpy()
        names = [output.name for output in self._outputs]
        arrays = self._session.run(names, {self._input.name: array})
        tensors = [torch.from_numpy(np.ascontiguousarray(a, dtype=np.float32)) for a in arrays]
        return dict(zip(names, tensors, strict=True))

    def _run_bound(self, image: Tensor) -> dict[str, Tensor]:
        image = image.to(self.device, self._input.dtype).contiguous()
        shapes = self._shapes.get(tuple(image.shape))
        if shapes is None:
            shapes = self._shapes[tuple(image.shape)] = self._output_shapes(image)
        binding, outputs = self._bind_input(image), {}
        number = self.device.index or 0
        for output, shape in zip(self._outputs, shapes, strict=True):
            memory = torch.empty(shape, dtype=output.dtype, device=self.device)
            outputs[output.name] = memory
            binding.bind_output(
                output.name, self.device.type, number, output.element, shape, memory.data_ptr()
            )
        self._run_and_wait(binding)
        return {name: memory.float() for name, memory in outputs.items()}

    def _output_shapes(self, image: Tensor) -> list[tuple[int, ...]]:
        """Run once with memory of onnxruntime's own, to learn how much to bind."""
        binding = self._bind_input(image)
        for output in self._outputs:
            binding.bind_output(output.name, self.device.type, self.device.index or 0)
        self._run_and_wait(binding)
        return [tuple(value.shape()) for value in binding.get_outputs()]

    def _bind_input(self, image: Tensor) -> onnxruntime.IOBinding:
        binding = self._session.io_binding()
        number, shape, value = self.device.index or 0, tuple(image.shape), self._input
        binding.bind_input(
            value.name, self.device.type, number, value.element, shape, image.data_ptr()
        )
        return binding

    def _run_and_wait(self, binding: onnxruntime.IOBinding) -> None:
        if self.device.type == "cuda":  # onnxruntime's own stream does not wait for torch's
            torch.cuda.current_stream(self.device).synchronize()
        self._session.run_with_iobinding(binding)
        binding.synchronize_outputs()


class _Value:
    """An input or output of a session: its name, and its type as torch and as numpy name it."""

    def __init__(self, declared: onnxruntime.NodeArg) -> None:
        self.name = declared.name
        if declared.type not in _TYPES:
            raise UserError(
                f"the tensor {self.name} of the network is of a type that is not supported",
                found=declared.type,
                wanted=", ".join(_TYPES),
            )
        self.dtype, self.element = _TYPES[declared.type]


def _open(model: onnx.ModelProto, provider: str, number: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _FATAL
    threads = os.environ.get("OMP_NUM_THREADS", "")
    if threads.isdecimal() and int(threads) > 0:  # onnxruntime's own pool does not look at it
        options.intra_op_num_threads = int(threads)
    # Threads that spin between two batches take the cores of decoding and encoding: 28 instead of
    # 22 core-ms a picture, and 12.8 instead of 7.0 while it is encoded (people-lite, two threads).
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    providers: list = [provider]
    if provider == CUDA_PROVIDER:
        load_cuda_libraries()
        providers = [(provider, cuda_options(number))]
    try:
        data = model.SerializeToString()
        return onnxruntime.InferenceSession(
            data, options, providers=providers, enable_fallback=False
        )
    except RuntimeError as error:  # what a provider says that cannot begin
        if is_out_of_memory(error) or provider != CUDA_PROVIDER:
            raise
        raise _no_device(first_line(error), torch.device("cuda", number)) from None
    except _LOAD_ERRORS as error:
        if is_out_of_memory(error):
            raise
        raise UserError(
            "onnxruntime cannot load the teacher's network", found=first_line(error)
        ) from None


def _no_device(reason: str, device: torch.device) -> UserError:
    return UserError(
        f"onnxruntime does not run on the device that was asked for, {device}",
        found=reason,
        wanted=f"{CUDA_PROVIDER}, with every library that it needs",
        fix="libcuda.so.1 comes with the driver, libcurand.so.10 with nvidia-curand, other"
        f" libraries with a torch for CUDA {onnxruntime.cuda_version or 13}, as this onnxruntime is"
        " (an onnxruntime-gpu below 1.27 is for CUDA 12); or ask for cpu",
    )
