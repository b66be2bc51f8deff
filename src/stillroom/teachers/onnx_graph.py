"""Surgery on ONNX graphs: find a tensor, cut what comes after it, free fixed dimensions."""

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx import shape_inference

from stillroom.errors import UserError

Shape = tuple[int | str, ...]  # "?" or a name where a dimension is not fixed

_FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE)
_NEAR = 5  # names that an error lists
_FREE = ("batch", "3", "height", "width")  # the names of freed dimensions


@dataclass(frozen=True, slots=True, kw_only=True)
class PictureInput:
    """The one input of a network: `batch` and `size` (h, w) are None where they are free."""

    name: str
    batch: int | None
    size: tuple[int, int] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensor:
    """A tensor that can be taken: its shape as far as it is known, the pixels of the picture that
    one of its cells has (None where that is not known), and what makes it.
    """

    name: str
    shape: Shape
    stride: tuple[int, int] | None
    made_by: str

    @property
    def text(self) -> str:
        return _text(self.shape)


def choose_tensor(model: onnx.ModelProto, name: str | None, path: Path | str = "FILE") -> str:
    """Return the name of the tensor to take; None means the graph's only output.

    Raises UserError where there is no such tensor or it has not four dimensions; the error lists
    near names with their shapes. `path` is for the message only.
    """
    if name is None and len(model.graph.output) == 1:
        name = model.graph.output[0].name
    if name is None:
        outputs = ", ".join(output.name for output in model.graph.output)
        raise UserError(
            "the network has several outputs and the teacher names no tensor",
            found=outputs,
            fix="name one with --teachers.N.tensor NAME (any inner tensor will do)",
        )
    produced = [tensor for node in model.graph.node for tensor in node.output if tensor]
    shapes = tensor_shapes(model)
    if name in produced and len(shapes.get(name, (0, 0, 0, 0))) == 4:
        return name
    found = f"{name}, of shape {_text(shapes[name])}" if name in produced else f"{name}: no such"
    near = [tensor for tensor in tensors(model, near=name) if tensor.name != name][:_NEAR]
    raise UserError(
        "the network has no such 4-D tensor",
        found=found,
        wanted="near names: " + (", ".join(f"{t.name} ({t.text})" for t in near) or "none"),
        fix="give one with --teachers.N.tensor NAME;"
        f" stillroom inspect {path} --near {name} lists them all",
    )


def tensors(
    model: onnx.ModelProto, size: tuple[int, int] | None = None, near: str | None = None
) -> list[Tensor]:
    """Return every tensor that may have four dimensions, in the graph's order, or the names that
    are most like `near` first; shapes and strides are those for a picture of `size` (h, w).
    """
    shapes = tensor_shapes(model, 1, size) if size else tensor_shapes(model)
    found = [
        Tensor(name=name, shape=shape, stride=_stride(shape, size), made_by=node.op_type)
        for node in model.graph.node
        for name in node.output
        if name and len(shape := shapes.get(name, ())) in (0, 4)
    ]
    if near is not None:
        like = difflib.SequenceMatcher(b=near.lower(), autojunk=False)

        def unlike(tensor: Tensor) -> float:
            like.set_seq1(tensor.name.lower())
            return -like.ratio() - (near.lower() in tensor.name.lower())

        found.sort(key=unlike)
    return found


def _stride(shape: Shape, size: tuple[int, int] | None) -> tuple[int, int] | None:
    if size is None or not _is_map(shape):
        return None
    y, x = (round(side / int(cells)) for side, cells in zip(size, shape[2:], strict=True))
    return y, x


def tensor_shapes(
    model: onnx.ModelProto, batch: int | None = None, size: tuple[int, int] | None = None
) -> dict[str, Shape]:
    """Return the shapes of the graph's tensors as far as they can be inferred, weights left out.

    `batch` and `size` (h, w) replace what the picture input declares; None keeps it.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    if batch is not None and size is not None:
        copy = with_input(copy, (batch, 3, *size))
    try:
        inferred = shape_inference.infer_shapes(copy, data_prop=True).graph
    except shape_inference.InferenceError:
        inferred = copy.graph  # what the file itself declares is all that is known
    values = [*inferred.value_info, *inferred.output]
    return {v.name: _shape(v) for v in values if v.type.tensor_type.HasField("shape")}


def cut(model: onnx.ModelProto, tensors: Sequence[str]) -> onnx.ModelProto:
    """Return a graph whose outputs are `tensors` and which holds only what these need.

    Recorded shapes of inner tensors are dropped.
    """
    graph = model.graph
    nodes, needed = _needed(graph, tensors)
    result = onnx.ModelProto()
    result.CopyFrom(model)
    for field in ("node", "initializer", "sparse_initializer", "input", "output", "value_info"):
        result.graph.ClearField(field)
    result.graph.node.extend(nodes)
    result.graph.initializer.extend(w for w in graph.initializer if w.name in needed)
    result.graph.sparse_initializer.extend(
        s for s in graph.sparse_initializer if s.values.name in needed
    )
    result.graph.input.extend(i for i in graph.input if i.name in needed)
    for tensor in tensors:
        result.graph.output.add(name=tensor)  # onnxruntime infers its type
    return result


def picture_input(model: onnx.ModelProto) -> PictureInput:
    """Return the network's one input; raises UserError where it is no picture, channels first."""
    inputs = model.graph.input
    if len(inputs) != 1:
        raise UserError(
            "a teacher's network takes one picture and nothing else",
            found=", ".join(i.name for i in inputs) or "no input",
            wanted="one input",
        )
    shape = _shape(inputs[0]) if inputs[0].type.tensor_type.HasField("shape") else ("?",) * 4
    kind = inputs[0].type.tensor_type.elem_type
    if len(shape) != 4 or (isinstance(shape[1], int) and shape[1] != 3):
        raise UserError(
            "the network's input is no RGB picture with channels first",
            found=f"{inputs[0].name}, of shape {_text(shape)}",
            wanted="b x 3 x h x w",
        )
    if kind not in _FLOATS:
        raise UserError(
            "the network's input is no picture of floating-point numbers",
            found=onnx.TensorProto.DataType.Name(kind),
            wanted=", ".join(map(onnx.TensorProto.DataType.Name, _FLOATS)),
        )
    batch, _, height, width = (d if isinstance(d, int) else None for d in shape)
    if height is None or width is None:  # one fixed side alone is taken as that of a square
        height, width = height or width, width or height
    size = None if height is None or width is None else (height, width)
    return PictureInput(name=inputs[0].name, batch=batch, size=size)


def with_input(model: onnx.ModelProto, shape: Sequence[int | None]) -> onnx.ModelProto:
    """Return a copy whose picture input has this (b, 3, h, w); None is a free dimension."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    declared = result.graph.input[0].type.tensor_type.shape
    declared.ClearField("dim")
    for length, name in zip(shape, _FREE, strict=True):
        dimension = declared.dim.add()
        if length is None:
            dimension.dim_param = name
        else:
            dimension.dim_value = length
    return result


def follows_the_size(model: onnx.ModelProto, size: tuple[int, int]) -> bool:
    """Tell whether every 4-D tensor of a cut graph doubles when the picture does.

    False where a tensor keeps its size although it is no pooled single cell, where a single cell
    grows (a pooling window as large as the picture was), and where an output's shape cannot be
    inferred.
    """
    height, width = size
    before = tensor_shapes(model, 1, size)
    after = tensor_shapes(model, 1, (2 * height, 2 * width))
    outputs = [output.name for output in model.graph.output]
    if not all(_is_map(shapes.get(name, ())) for shapes in (before, after) for name in outputs):
        return False
    maps = [n for n in before if _is_map(before[n]) and _is_map(after.get(n, ()))]
    return all(_doubles(before[n][2:], after[n][2:]) for n in maps)


def _doubles(before: Sequence[int | str], after: Sequence[int | str]) -> bool:
    pairs = [(int(a), int(b)) for a, b in zip(before, after, strict=True)]
    if all(a == 1 for a, _ in pairs):
        return all(b == 1 for _, b in pairs)
    return all(abs(b - 2 * a) <= 1 + a // 4 for a, b in pairs)  # rounding of strides


def _is_map(shape: Shape) -> bool:
    return len(shape) == 4 and all(isinstance(length, int) for length in shape)


def _needed(
    graph: onnx.GraphProto, tensors: Sequence[str]
) -> tuple[list[onnx.NodeProto], set[str]]:
    """Walk backwards from tensors: the nodes to keep, in order, and every name that they read."""
    maker = {name: i for i, node in enumerate(graph.node) for name in node.output if name}
    needed, kept, waiting = set[str](), set[int](), list(tensors)
    while waiting:
        name = waiting.pop()
        if name in needed:
            continue
        needed.add(name)
        if name in maker:
            kept.add(maker[name])
            waiting.extend(_reads(graph.node[maker[name]]))
    return [graph.node[i] for i in sorted(kept)], needed


def _reads(node: onnx.NodeProto) -> Iterator[str]:
    """Yield every name that a node reads, those that its subgraphs take from outside included."""
    yield from (name for name in node.input if name)
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            yield from (output.name for output in graph.output)
            for inner in graph.node:
                yield from _reads(inner)


def _shape(value: onnx.ValueInfoProto) -> Shape:
    dimensions = value.type.tensor_type.shape.dim
    return tuple(
        d.dim_value if d.HasField("dim_value") and d.dim_value > 0 else (d.dim_param or "?")
        for d in dimensions
    )


def _text(shape: Shape) -> str:
    return "x".join(map(str, shape)) if shape else "(shape not known)"
