"""Runs an ONNX graph through onnxruntime on torch tensors, on the device asked for or on none."""

import os

import numpy as np
import onnx
import onnxruntime
import onnxruntime.capi.onnxruntime_pybind11_state as _ort
import torch  # before a CUDA session is made, so that CUDA and cuDNN are found
from jaxtyping import Float
from torch import Tensor

from stillroom.errors import UserError

_FATAL = 4  # onnxruntime's severity; what matters arrives as an exception

RUN_ERRORS = (_ort.Fail, _ort.InvalidArgument, _ort.RuntimeException, _ort.NotImplemented)
_LOAD_ERRORS = (*RUN_ERRORS, _ort.InvalidGraph, _ort.InvalidProtobuf, _ort.EPFail, _ort.NotFound)


class OnnxSession:
    """A graph with one input, ready to run on `device`.

    On CUDA, input and outputs stay in torch's memory, TF32 is off and convolutions are chosen by
    heuristic.
    """

    def __init__(self, model: onnx.ModelProto, device: torch.device) -> None:
        """Raises UserError where onnxruntime cannot load the graph or has no such device."""
        self.device = device
        self.provider = "CUDAExecutionProvider" if device.type == "cuda" else "CPUExecutionProvider"
        onnxruntime.set_default_logger_severity(_FATAL)
        self._session = _open(model, self.provider, device.index or 0)
        found = self._session.get_providers()[0]
        if found != self.provider:
            raise UserError(
                "onnxruntime does not run on the device that was asked for",
                found=found,
                wanted=f"{self.provider}, device {device.index or 0}",
                fix="install the onnxruntime-gpu that fits this torch's CUDA and cuDNN (where they "
                "are not found: import torch first, or call onnxruntime.preload_dlls()), or ask "
                "for cpu",
            )
        self._input = self._session.get_inputs()[0].name
        self._outputs = [output.name for output in self._session.get_outputs()]
        self._shapes: dict[tuple[int, ...], list[tuple[int, ...]]] = {}

    def run(self, image: Float[Tensor, "b 3 h w"]) -> dict[str, Float[Tensor, "..."]]:
        """Return every output by name, float32; raises one of RUN_ERRORS for what cannot be run."""
        image = image.to(self.device, torch.float32).contiguous()
        if self.device.type != "cpu":
            return self._run_bound(image)
        arrays = self._session.run(self._outputs, {self._input: image.numpy()})
        tensors = [torch.from_numpy(np.ascontiguousarray(a, dtype=np.float32)) for a in arrays]
        return dict(zip(self._outputs, tensors, strict=True))

    def _run_bound(self, image: Tensor) -> dict[str, Tensor]:
        shapes = self._shapes.get(tuple(image.shape))
        if shapes is None:
            shapes = self._shapes[tuple(image.shape)] = self._output_shapes(image)
        binding, outputs = self._bind_input(image), {}
        number = self.device.index or 0
        for name, shape in zip(self._outputs, shapes, strict=True):
            outputs[name] = torch.empty(shape, dtype=torch.float32, device=self.device)
            binding.bind_output(
                name, self.device.type, number, np.float32, shape, outputs[name].data_ptr()
            )
        self._run_and_wait(binding)
        return outputs

    def _output_shapes(self, image: Tensor) -> list[tuple[int, ...]]:
        """Run once with memory of onnxruntime's own, to learn how much to bind."""
        binding = self._bind_input(image)
        for name in self._outputs:
            binding.bind_output(name, self.device.type, self.device.index or 0)
        self._run_and_wait(binding)
        return [tuple(value.shape()) for value in binding.get_outputs()]

    def _bind_input(self, image: Tensor) -> onnxruntime.IOBinding:
        binding = self._session.io_binding()
        number, shape = self.device.index or 0, tuple(image.shape)
        binding.bind_input(
            self._input, self.device.type, number, np.float32, shape, image.data_ptr()
        )
        return binding

    def _run_and_wait(self, binding: onnxruntime.IOBinding) -> None:
        if self.device.type == "cuda":  # onnxruntime's own stream does not wait for torch's
            torch.cuda.current_stream(self.device).synchronize()
        self._session.run_with_iobinding(binding)
        binding.synchronize_outputs()


def _open(model: onnx.ModelProto, provider: str, number: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _FATAL
    threads = os.environ.get("OMP_NUM_THREADS", "")
    if threads.isdecimal() and int(threads) > 0:  # onnxruntime's own pool does not look at it
        options.intra_op_num_threads = int(threads)
    cuda = {"device_id": number, "use_tf32": 0, "cudnn_conv_algo_search": "HEURISTIC"}
    providers = [(provider, cuda)] if provider.startswith("CUDA") else [provider]
    try:
        data = model.SerializeToString()
        return onnxruntime.InferenceSession(data, options, providers=providers)
    except _LOAD_ERRORS as error:
        raise UserError(
            "onnxruntime cannot load the teacher's network", found=str(error).splitlines()[0]
        ) from None
