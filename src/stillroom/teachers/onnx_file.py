"""Opens ONNX files: the graph, and the external data beside it, which lies nowhere else."""

from collections.abc import Iterator
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError, Message
from onnx.external_data_helper import (
    ExternalDataInfo,
    load_external_data_for_model,
    uses_external_data,
)

from stillroom.errors import UserError, first_line
from stillroom.teachers.files import file_inside

_MAX_BYTES = (1 << 31) - 1  # of a network in one piece, protobuf's own limit


def load_graph(path: Path) -> onnx.ModelProto:
    """Parse an ONNX file, leaving external data where it is; UserError where it is none.

    Weights are no longer listed as inputs.
    """
    try:
        model = onnx.load_model(str(path), format="protobuf", load_external_data=False)
    except DecodeError as error:
        raise UserError(f"{path} is not an ONNX file", found=str(error)) from None
    if not model.graph.node:
        raise UserError(f"{path} is not an ONNX file", found="a graph without nodes")
    _forget_weight_inputs(model.graph)
    model.ir_version = max(model.ir_version, 4)  # before 4, weights had to be inputs
    return model


def external_names(model: onnx.ModelProto) -> set[str]:
    """Return the names, relative to the ONNX file, of the files that hold its external data."""
    return {
        next((e.value for e in tensor.external_data if e.key == "location"), "")
        for tensor in _external(model)
    }


def embed(model: onnx.ModelProto, folder: Path) -> None:
    """Read the graph's external data into it, in place.

    Raises UserError where a file of it lies outside `folder`, is not there, or is too short.
    """
    sizes = {name: file_inside(folder, name).stat().st_size for name in external_names(model)}
    try:
        infos = [ExternalDataInfo(tensor) for tensor in _external(model)]
        num_bytes = sum(info.length or sizes[info.location] for info in infos)
        if num_bytes <= _MAX_BYTES:
            load_external_data_for_model(model, str(folder))
    except (ValueError, OverflowError, OSError, onnx.checker.ValidationError) as error:
        raise UserError(
            f"the network's weights in {', '.join(sorted(sizes))} cannot be read",
            found=first_line(error),
            fix="copy the file again from where the network came from",
        ) from None
    if num_bytes > _MAX_BYTES:
        raise UserError(
            "the network's weights are too large for one graph",
            found=f"{num_bytes} bytes",
            wanted=f"at most {_MAX_BYTES}",
        )


def _external(message: Message) -> Iterator[onnx.TensorProto]:
    """Yield every external tensor, wherever in a model it is."""
    if isinstance(message, onnx.TensorProto):
        yield from [message] if uses_external_data(message) else []
        return
    for field, value in message.ListFields():
        if field.message_type is not None:
            for inner in [value] if isinstance(value, Message) else value:
                yield from _external(inner)


def _forget_weight_inputs(graph: onnx.GraphProto) -> None:
    weights = {w.name for w in graph.initializer}
    weights |= {s.values.name for s in graph.sparse_initializer}
    pictures = [i for i in graph.input if i.name not in weights]
    graph.ClearField("input")
    graph.input.extend(pictures)
