"""Opens ONNX files: the graph, and the external data beside it, trusted with nothing but bytes."""

from collections.abc import Iterator
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError

from stillroom.errors import UserError
from stillroom.teachers.external_data import file_inside


def load_graph(path: Path) -> onnx.ModelProto:
    """Parse an ONNX file, leaving external data where it is.

    Weights are no longer listed as inputs. Raises UserError where it is no ONNX file.
    """
    try:
        model = onnx.load_model(str(path), format="protobuf", load_external_data=False)
    except DecodeError as error:
        raise UserError(f"{path} is not an ONNX file", found=str(error)) from None
    if not model.graph.node:
        raise UserError(f"{path} is not an ONNX file", found="a graph without nodes")
    _forget_weight_inputs(model)
    return model


def embed(model: onnx.ModelProto, folder: Path) -> None:
    """Read the graph's external data into it, in place; raises UserError as `external_files`."""
    for tensor in _external_tensors(model):
        entries = {entry.key: entry.value for entry in tensor.external_data}
        tensor.raw_data = _read(file_inside(folder, entries.get("location", "")), entries, tensor)
        del tensor.external_data[:]
        tensor.data_location = onnx.TensorProto.DEFAULT


def _forget_weight_inputs(model: onnx.ModelProto) -> None:
    graph = model.graph
    weights = {w.name for w in graph.initializer} | {
        s.values.name for s in graph.sparse_initializer
    }
    pictures = [i for i in graph.input if i.name not in weights]
    graph.ClearField("input")
    graph.input.extend(pictures)
    model.ir_version = max(model.ir_version, 4)  # before 4, weights had to be inputs


def _read(file: Path, entries: dict[str, str], tensor: onnx.TensorProto) -> bytes:
    size = file.stat().st_size
    try:
        offset = int(entries.get("offset", "0"))
        length = int(entries.get("length", str(size - offset)))
    except ValueError:
        offset, length = -1, -1
    if min(offset, length) < 0 or offset + length > size:
        raise UserError(
            f"{file} is too short: the weights {tensor.name} are not all there",
            found=f"{size} bytes",
            wanted=f"bytes {entries.get('offset', 0)} + {entries.get('length', '?')}",
            fix="copy the file again from where the network came from",
        )
    with file.open("rb") as stream:
        stream.seek(offset)
        return stream.read(length)


def _external_tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    yield from (t for t in _tensors(model.graph) if t.data_location == onnx.TensorProto.EXTERNAL)
    for function in model.functions:
        yield from (
            t
            for node in function.node
            for t in _node_tensors(node)
            if t.data_location == onnx.TensorProto.EXTERNAL
        )


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        yield from _node_tensors(node)


def _node_tensors(node: onnx.NodeProto) -> Iterator[onnx.TensorProto]:
    for attribute in node.attribute:
        yield from (attribute.t, *attribute.tensors)
        for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
            yield from (sparse.values, sparse.indices)
        for graph in (attribute.g, *attribute.graphs):
            yield from _tensors(graph)
