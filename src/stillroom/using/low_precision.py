"""ONNX files in half precision and in int8: inputs and outputs stay float32, metadata is kept."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx


def to_fp16(path: Path, out: Path) -> None:
    """Write the network with weights and arithmetic in half precision, half the size."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    model = onnx.load(path)
    half = convert_float_to_float16(model, keep_io_types=True)
    nodes = {node.name: node for node in half.graph.node}  # a shared weight is cast once a use
    del half.graph.node[:]
    half.graph.node.extend(nodes.values())
    onnx.save(_like(model, half), out)


def to_int8(path: Path, out: Path, inputs: Iterator[dict[str, Any]]) -> None:
    """Write the network statically quantised, its ranges taken from `inputs` (arrays by name).

    Weights have one scale a channel: with one a tensor a MobileNet's mIoU fell from .945 to .383.
    They use 7 bits, since processors without VNNI saturate at 8.
    """
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.calibrate import CalibrationDataReader

    class Reader(CalibrationDataReader):
        def get_next(self) -> Any:
            return next(inputs, None)

    logging.disable(logging.WARNING)  # of vectors without an axis 1, rightly left alone
    try:
        quantize_static(
            path,
            out,
            Reader(),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
    finally:
        logging.disable(logging.NOTSET)
    onnx.save(_like(onnx.load(path), onnx.load(out)), out)


def _like(model: onnx.ModelProto, changed: onnx.ModelProto) -> onnx.ModelProto:
    """Return a changed network with the metadata of what it was made from."""
    props = {prop.key: prop.value for prop in model.metadata_props}
    onnx.helper.set_model_props(changed, props)
    return changed
