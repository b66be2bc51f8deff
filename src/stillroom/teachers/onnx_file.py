"""Opens ONNX files: the graph, and the external data beside it, trusted with nothing but bytes."""

import math
from collections.abc import Iterator
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError
from onnx.helper import tensor_dtype_to_np_dtype

from stillroom.errors import UserError
from stillroom.jsonfile import open_regular
from stillroom.teachers.external_data import external_files, file_inside

_MAX_BYTES = (1 << 31) - 1  # of a network in one piece, protobuf's own limit
_MAX_DIMENSIONS = 16
_MAX_SPARSE = 1 << 24  # values, zeros among them
_MOST_TIMES = 8  # a number may be written in fewer bytes than it has, one at least
_TYPES = onnx.TensorProto.DataType.keys()
_SMALL = {"UINT4": 4, "INT4": 4, "FLOAT4E2M1": 4, "UINT2": 2, "INT2": 2}  # bits; numpy has none
_BITS = {onnx.TensorProto.DataType.Value(n): v for n, v in _SMALL.items() if n in _TYPES}


def load_graph(path: Path) -> onnx.ModelProto:
    """Parse an ONNX file, leaving external data where it is.

    Weights are no longer listed as inputs. Raises UserError where it is no ONNX file, where a
    weight has not the size that it states, and as `external_files`.
    """
    external_files(path)
    try:
        model = onnx.load_model(str(path), format="protobuf", load_external_data=False)
    except DecodeError as error:
        raise UserError(f"{path} is not an ONNX file", found=str(error)) from None
    if not model.graph.node:
        raise UserError(f"{path} is not an ONNX file", found="a graph without nodes")
    for tensor in _all_tensors(model):
        _check_size(tensor)
    _forget_weight_inputs(model)
    return model


def embed(model: onnx.ModelProto, folder: Path) -> None:
    """Read the graph's external data into it, in place; raises UserError as `external_files`."""
    left = _MAX_BYTES
    for tensor in _all_tensors(model):
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        left -= _num_bytes(tensor)
        if left < 0:
            raise UserError(f"the network's weights have more than {_MAX_BYTES} bytes")
        entries = {entry.key: entry.value for entry in tensor.external_data}
        tensor.raw_data = _read(file_inside(folder, entries.get("location", "")), entries, tensor)
        del tensor.external_data[:]
        tensor.data_location = onnx.TensorProto.DEFAULT


def _num_bytes(tensor: onnx.TensorProto) -> int:
    """Return what a tensor's dimensions come to, in bytes; UserError where they are impossible."""
    try:
        bits = (
            _BITS.get(tensor.data_type) or 8 * tensor_dtype_to_np_dtype(tensor.data_type).itemsize
        )
    except KeyError:
        bits = 0  # text has no fixed size, other types do not exist
    if bits == 0 or min(tensor.dims, default=1) < 0 or len(tensor.dims) > _MAX_DIMENSIONS:
        raise UserError(
            f"the weights {tensor.name!r:.80} are none",
            found=f"type {tensor.data_type}, dimensions {list(tensor.dims)!s:.80}",
        )
    return -(-math.prod(tensor.dims) * bits // 8)


def _check_size(tensor: onnx.TensorProto) -> None:
    """Raise UserError where a tensor's values are not as many as its dimensions say."""
    if tensor.data_type == onnx.TensorProto.STRING:
        return
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        return  # compared where they are read
    wanted = _num_bytes(tensor)
    if tensor.HasField("raw_data") and len(tensor.raw_data) != wanted:
        raise _wrong_size(tensor, len(tensor.raw_data), wanted)
    if not tensor.HasField("raw_data") and wanted > _MOST_TIMES * tensor.ByteSize():
        raise _wrong_size(tensor, tensor.ByteSize(), wanted)


def _wrong_size(tensor: onnx.TensorProto, found: int, wanted: int) -> UserError:
    return UserError(
        f"the weights {tensor.name!r:.80} have another size than their dimensions",
        found=f"{found} bytes",
        wanted=f"{wanted} bytes, {'x'.join(map(str, tensor.dims))}",
        fix="export the network again",
    )


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
    if length != _num_bytes(tensor):
        raise _wrong_size(tensor, length, _num_bytes(tensor))
    with open_regular(file) as stream:
        stream.seek(offset)
        return stream.read(length)


def _all_tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Yield every tensor that has values or says where they are."""
    yield from (t for t in _tensors(model.graph) if t.data_type)
    for function in model.functions:
        yield from (t for node in function.node for t in _node_tensors(node) if t.data_type)


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from _sparse_tensors(sparse)
    for node in graph.node:
        yield from _node_tensors(node)


def _node_tensors(node: onnx.NodeProto) -> Iterator[onnx.TensorProto]:
    for attribute in node.attribute:
        yield from (attribute.t, *attribute.tensors)
        for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
            yield from _sparse_tensors(sparse)
        for graph in (attribute.g, *attribute.graphs):
            yield from _tensors(graph)


def _sparse_tensors(sparse: onnx.SparseTensorProto) -> Iterator[onnx.TensorProto]:
    if math.prod(sparse.dims) > _MAX_SPARSE:  # onnxruntime makes it dense
        raise UserError("sparse weights are too large", found=f"{list(sparse.dims)!s:.80}")
    yield from (sparse.values, sparse.indices)
