"""Graph surgery keeps what a tensor needs, drops the rest, and names what it cannot find."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper

from stillroom.errors import UserError
from stillroom.teachers.onnx_file import load_graph
from stillroom.teachers.onnx_graph import (
    choose_tensor,
    cut,
    follows_the_size,
    picture_input,
    tensor_shapes,
    tensors,
    with_input,
)

FLOAT = onnx.TensorProto.FLOAT


def input_model(*shapes, kind=FLOAT):
    """A graph that adds its inputs; its shapes are all that matters."""
    names = [f"in{i}" for i in range(len(shapes))]
    values = [helper.make_tensor_value_info(n, kind, s) for n, s in zip(names, shapes, strict=True)]
    output = helper.make_tensor_value_info("out", kind, None)
    graph = helper.make_graph([helper.make_node("Sum", names, ["out"])], "g", values, [output])
    return helper.make_model(graph)


def test_an_unknown_name_lists_a_few_near_names_with_shapes_and_where_all_are_listed(
    tmp_path, make_onnx
):
    path = make_onnx.save_segmenter(tmp_path / "a.onnx", batch=1, size=(32, 32), classes=2)
    with pytest.raises(UserError) as caught:
        choose_tensor(load_graph(path), "featur", path)
    assert caught.value.wanted.startswith("near names: feature (1x8x16x16), ")
    assert f"stillroom inspect {path} --near featur" in caught.value.fix
    assert len(str(caught.value).splitlines()) == 4


def test_every_map_is_listed_with_shape_stride_and_maker_or_the_nearest_names_first(
    tmp_path, make_onnx
):
    path = make_onnx.save_segmenter(tmp_path / "a.onnx", batch=1, size=(32, 32), classes=2)
    found = tensors(load_graph(path), (32, 32))
    assert [(t.name, t.text, t.stride) for t in found] == [
        ("stem", "1x8x16x16", (2, 2)),
        ("feature", "1x8x16x16", (2, 2)),
        ("small", "1x2x16x16", (2, 2)),
        ("logits", "1x2x32x32", (1, 1)),
        ("output", "1x2x32x32", (1, 1)),
    ]
    assert found[0].made_by == "Conv"
    near = tensors(load_graph(path), (64, 64), near="LOGIT")
    assert near[0].name == "logits" and near[0].text == "1x2x64x64"


def test_a_tensor_without_four_dimensions_is_refused_even_as_the_only_output():
    model = input_model([1, 3, 8])
    for name in ("out", None):
        with pytest.raises(UserError, match="out, of shape 1x3x8"):
            choose_tensor(model, name)


def test_several_outputs_need_a_name():
    model = input_model([1, 3, 8, 8])
    model.graph.output.append(helper.make_tensor_value_info("in0", FLOAT, None))
    with pytest.raises(UserError, match="out, in0"):
        choose_tensor(model, None)


def test_weights_and_inputs_are_no_tensors_to_take(tmp_path, make_onnx):
    model = load_graph(make_onnx.save_segmenter(tmp_path / "a.onnx"))
    for name in ("image", "stem_w", ""):
        with pytest.raises(UserError, match="no such"):
            choose_tensor(model, name)


def test_a_cut_graph_holds_only_what_the_tensor_needs(tmp_path, make_onnx):
    path = make_onnx.save_segmenter(tmp_path / "a.onnx", weights_as_inputs=True)
    model = cut(load_graph(path), ["feature"])
    assert [node.op_type for node in model.graph.node] == ["Conv", "Relu"]
    assert [weight.name for weight in model.graph.initializer] == ["stem_w"]
    assert [value.name for value in model.graph.input] == ["image"]
    assert [value.name for value in model.graph.output] == ["feature"]


def test_what_only_a_subgraph_reads_is_kept(tmp_path, make_onnx, plain):
    path = make_onnx.save_segmenter(tmp_path / "a.onnx", tail="if")
    model = cut(load_graph(path), ["output"])
    assert {weight.name for weight in model.graph.initializer} == {
        "stem_w",
        "small_w",
        "up_w",
        "yes",
    }
    image = np.random.default_rng(0).random((1, 3, 32, 32), np.float32)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    np.testing.assert_array_equal(session.run(None, {"image": image})[0], plain(path, image))


def test_the_given_graph_is_left_as_it_was(tmp_path, make_onnx):
    model = load_graph(make_onnx.save_segmenter(tmp_path / "a.onnx", batch=1, size=(32, 32)))
    before = model.SerializeToString(deterministic=True)
    follows_the_size(cut(model, ["logits"]), (32, 32))
    with_input(model, (None, 3, None, None))
    assert model.SerializeToString(deterministic=True) == before


@pytest.mark.parametrize(
    ("tail", "follows"),
    [
        ("logits", True),
        ("softmax", True),
        ("resize_to_32", False),
        ("global_pool", True),
        ("pool_of_16", False),
        ("pool_of_16_averaged", False),
        ("reshape_to_batch_1", False),
    ],
)
def test_a_graph_follows_the_size_when_nothing_depends_on_it(tmp_path, make_onnx, tail, follows):
    path = make_onnx.save_segmenter(tmp_path / "a.onnx", tail=tail, batch=1, size=(32, 32))
    assert follows_the_size(cut(load_graph(path), ["output"]), (32, 32)) is follows


def test_shapes_are_given_for_the_size_that_is_asked(tmp_path, make_onnx):
    model = load_graph(make_onnx.save_segmenter(tmp_path / "a.onnx"))
    assert tensor_shapes(model)["feature"][:2] == ("N", 8)
    assert tensor_shapes(model, 2, (64, 32))["feature"] == (2, 8, 32, 16)


def test_the_picture_input_says_what_is_fixed():
    found = picture_input(input_model([1, 3, 8, 16]))
    assert (found.name, found.batch, found.size) == ("in0", 1, (8, 16))
    found = picture_input(input_model(["N", "C", "H", "W"]))
    assert (found.batch, found.size) == (None, None)
    assert picture_input(input_model([None, 3, None, 16])).size == (16, 16)


@pytest.mark.parametrize(
    "model",
    [
        input_model([1, 8, 8, 3]),
        input_model([1, 3, 8]),
        input_model([1, 3, 8, 8], [1, 3, 8, 8]),
        input_model([1, 3, 8, 8], kind=onnx.TensorProto.UINT8),
        input_model([1, 3, 8, 8], kind=onnx.TensorProto.BFLOAT16),
    ],
    ids=["channels last", "three dimensions", "two inputs", "bytes", "bfloat16"],
)
def test_an_input_that_is_no_picture_is_refused(model):
    with pytest.raises(UserError):
        picture_input(model)
