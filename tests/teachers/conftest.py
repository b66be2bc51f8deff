"""The maker of tiny ONNX networks, and a plain onnxruntime to compare with."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import onnxruntime
import pytest


@pytest.fixture(scope="session")
def make_onnx() -> ModuleType:
    """The module `make_onnx.py` beside this file (test folders are no packages)."""
    spec = importlib.util.spec_from_file_location(
        "make_onnx", Path(__file__).with_name("make_onnx.py")
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def plain() -> Callable[..., np.ndarray]:
    """Run a whole ONNX file in plain onnxruntime; `tensor` is exposed as one more output.

    With `resize`, the declared size of the picture is overwritten by that of `image`.
    """

    def run(
        path: Path, image: np.ndarray, tensor: str | None = None, resize: bool = False
    ) -> np.ndarray:
        model = onnx.load(str(path))
        if resize:
            for dim, length in zip(
                model.graph.input[0].type.tensor_type.shape.dim, image.shape, strict=True
            ):
                dim.dim_value = length
            model.graph.ClearField("value_info")
            for output in model.graph.output:
                output.type.tensor_type.ClearField("shape")
        if tensor is not None:
            model.graph.output.append(onnx.ValueInfoProto(name=tensor))
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        wanted = tensor or session.get_outputs()[0].name
        return session.run([wanted], {session.get_inputs()[0].name: image})[0]

    return run
