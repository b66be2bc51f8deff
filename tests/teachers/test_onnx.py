"""ONNX teachers say what plain onnxruntime says, whatever was fixed in their graph."""

import numpy as np
import onnx
import pytest
import torch
from torch.nn import functional

from stillroom.errors import UserError
from stillroom.networks.normalise import Normalise
from stillroom.teachers.configs import OnnxTeacher
from stillroom.teachers.onnx_session import OnnxSession
from stillroom.teachers.probabilities import logits_of


def pictures(b=3, h=32, w=32, seed=0):
    return torch.rand((b, 3, h, w), generator=torch.Generator().manual_seed(seed))


def teacher(path, **fields):
    fields = {"target": "person", "kind": "logits", "path": str(path), **fields}
    return OnnxTeacher(**fields)


def test_the_output_is_that_of_plain_onnxruntime(tmp_path, make_onnx, plain):
    path = make_onnx.save_segmenter(tmp_path / "a.onnx", classes=4)
    image = pictures()
    found = teacher(path).build("cpu")(image)
    assert list(found) == ["person"] and found["person"].dtype == torch.float32
    np.testing.assert_allclose(found["person"], plain(path, image.numpy()), atol=1e-6)


def test_an_inner_tensor_is_exposed_and_stays_on_its_grid(tmp_path, make_onnx, plain):
    path = make_onnx.save_segmenter(
        tmp_path / "a.onnx", tail="resize_to_32", batch=1, size=(32, 32)
    )
    image = pictures(2)
    built = teacher(path, kind="features", tensor="feature").build("cpu")
    wanted = np.concatenate([plain(path, i[None].numpy(), "feature") for i in image])
    assert wanted.shape == (2, 8, 16, 16)
    np.testing.assert_allclose(built(image)["person"], wanted, atol=1e-6)


def test_what_comes_after_the_tensor_is_not_run(tmp_path, make_onnx):
    path = make_onnx.save_segmenter(
        tmp_path / "a.onnx", tail="resize_to_32", batch=1, size=(32, 32)
    )
    assert teacher(path).build("cpu").input_size == (32, 32)
    built = teacher(path, tensor="feature", kind="features").build("cpu")
    assert built.input_size is None and built.batch is None
    assert built(pictures(2, 64, 96))["person"].shape == (2, 8, 32, 48)


def test_it_counts_the_weights_that_are_needed_for_its_tensors(tmp_path, make_onnx):
    path = make_onnx.save_segmenter(tmp_path / "a.onnx", classes=4)
    assert teacher(path).build("cpu").num_parameters == 8 * 27 + 4 * 8 + 4 * 4 * 4
    built = teacher(path, tensor="feature", kind="features").build("cpu")
    assert built.num_parameters == 8 * 27


@pytest.mark.parametrize(
    ("tail", "fixed"),
    [
        ("sigmoid", {}),
        ("sigmoid", {"batch": 1, "size": (32, 32)}),
        ("minus_batch_mean", {"batch": 2}),
    ],
)
def test_more_tensors_of_one_pass_are_what_teachers_of_their_own_give(
    tmp_path, make_onnx, tail, fixed
):
    path = make_onnx.save_segmenter(tmp_path / "a.onnx", tail=tail, **fixed)
    kind = "probabilities" if tail == "sigmoid" else "logits"
    tensors = (("inner", "feature"), ("last", "small"), ("raw", "output"))
    config = teacher(path, kind=kind, mean=(0.5,) * 3, tensors=tensors)
    features = dict.fromkeys(("inner", "last", "raw"), "features")
    assert config.targets == {"person": "logits", **features}
    assert config.identity()["targets"] == {"person": None, **dict(tensors)}
    image = pictures(3)
    found = config.build("cpu")(image)
    alone = {"person": teacher(path, kind=kind, mean=(0.5,) * 3)}
    for name, tensor in tensors:
        alone[name] = teacher(path, target=name, kind="features", tensor=tensor, mean=(0.5,) * 3)
    assert found.keys() == alone.keys()
    for name, other in alone.items():
        torch.testing.assert_close(found[name], other.build("cpu")(image)[name])


def test_more_tensors_are_cut_out_together_and_run_once(tmp_path, make_onnx, monkeypatch):
    path = make_onnx.save_segmenter(tmp_path / "a.onnx", tail="resize_to_32", batch=1)
    built = teacher(
        path, tensor="feature", kind="features", tensors=(("stem", "stem"), ("again", "feature"))
    ).build("cpu")
    run, shapes = OnnxSession.run, []

    def counted(session, image):
        shapes.append(tuple(image.shape))
        return run(session, image)

    monkeypatch.setattr(OnnxSession, "run", counted)
    found = built(pictures(2, 64, 96))  # what wants 32 x 32 is behind them
    assert shapes == [(2, 3, 64, 96)]
    assert {n: tuple(a.shape) for n, a in found.items()} == dict.fromkeys(
        ("person", "stem", "again"), (2, 8, 32, 48)
    )
    assert torch.equal(found["person"], found["again"])
    with pytest.raises(UserError, match="no such 4-D tensor"):
        teacher(path, tensors=(("more", "nowhere"),)).build("cpu")


def test_weights_listed_as_inputs_of_an_old_file_are_weights(tmp_path, make_onnx, plain, capfd):
    path = make_onnx.save_segmenter(
        tmp_path / "a.onnx", opset=8, ir=3, weights_as_inputs=True, batch=1, size=(32, 32)
    )
    image = pictures(1)
    found = teacher(path).build("cpu")(image)["person"]
    assert capfd.readouterr() == ("", "")
    np.testing.assert_allclose(found, plain(path, image.numpy()), atol=1e-6)


def test_a_fixed_batch_that_nothing_depends_on_is_freed(tmp_path, make_onnx, plain):
    path = make_onnx.save_segmenter(tmp_path / "a.onnx", batch=1, size=(32, 32))
    built = teacher(path).build("cpu")
    assert built.batch is None and built.input_size is None
    image = pictures(3)
    wanted = np.concatenate([plain(path, i[None].numpy()) for i in image])
    np.testing.assert_allclose(built(image)["person"], wanted, atol=1e-5)


@pytest.mark.parametrize("tail", ["reshape_to_batch_1", "minus_batch_mean"])
def test_a_batch_that_something_depends_on_stays_and_rows_go_one_at_a_time(
    tmp_path, make_onnx, plain, tail
):
    path = make_onnx.save_segmenter(tmp_path / "a.onnx", tail=tail, batch=1, size=(32, 32))
    built = teacher(path).build("cpu")
    assert built.batch == 1
    image = pictures(3)
    wanted = np.concatenate([plain(path, i[None].numpy()) for i in image])
    np.testing.assert_allclose(built(image)["person"], wanted, atol=1e-6)


def test_a_fixed_batch_is_padded_and_cut(tmp_path, make_onnx, plain):
    path = make_onnx.save_segmenter(
        tmp_path / "a.onnx", tail="minus_batch_mean", batch=2, size=(32, 32)
    )
    built = teacher(path).build("cpu")
    assert built.batch == 2
    image = pictures(3)
    found = built(image)["person"]
    assert len(found) == 3
    np.testing.assert_allclose(found[:2], plain(path, image[:2].numpy()), atol=1e-6)
    last = plain(path, image[[2, 2]].numpy())[:1]
    np.testing.assert_allclose(found[2:], last, atol=1e-6)


@pytest.mark.parametrize("tail", ["resize_to_32", "pool_of_16", "reshape_to_batch_1"])
def test_a_size_that_something_depends_on_is_refused_with_the_size_to_set(
    tmp_path, make_onnx, tail
):
    path = make_onnx.save_segmenter(tmp_path / "a.onnx", tail=tail, batch=1, size=(32, 32))
    built = teacher(path).build("cpu")
    with pytest.raises(UserError, match=r"--teachers\.N\.size 32 32"):
        built(pictures(1, 64, 64))
    with pytest.raises(UserError, match=r"--teachers\.N\.size 32 32"):
        teacher(path, size=(64, 64)).build("cpu")


def test_a_size_that_differs_resizes_the_picture_and_the_logits_back(tmp_path, make_onnx, plain):
    path = make_onnx.save_segmenter(
        tmp_path / "a.onnx", tail="resize_to_32", batch=1, size=(32, 32)
    )
    image = pictures(1, 48, 40)

    def resize(tensor, size):
        return functional.interpolate(
            tensor, size, mode="bilinear", align_corners=False, antialias=False
        )

    logits = torch.from_numpy(plain(path, resize(image, (32, 32)).numpy()))
    found = teacher(path, size=(32, 32)).build("cpu")(image)["person"]
    torch.testing.assert_close(found, resize(logits, (48, 40)), atol=1e-5, rtol=1e-5)


def test_features_keep_the_grid_of_the_resized_picture(tmp_path, make_onnx):
    path = make_onnx.save_segmenter(tmp_path / "a.onnx")
    built = teacher(path, tensor="feature", kind="features", size=(16, 24)).build("cpu")
    assert built(pictures(2, 48, 40))["person"].shape == (2, 8, 8, 12)


def test_preprocessing_reorders_then_scales_then_normalises(tmp_path, make_onnx, plain):
    path = make_onnx.save_segmenter(tmp_path / "a.onnx")
    mean, std = (100.0, 110.0, 120.0), (50.0, 60.0, 70.0)
    image = pictures(2)
    built = teacher(path, channels="BGR", scale=255.0, mean=mean, std=std).build("cpu")
    bgr = image.numpy()[:, ::-1] * np.float32(255)
    axes = (1, 3, 1, 1)
    seen = (bgr - np.float32(mean).reshape(axes)) / np.float32(std).reshape(axes)
    found = built(image)["person"]
    np.testing.assert_allclose(found, plain(path, np.ascontiguousarray(seen)), atol=1e-4)


def test_another_preprocessing_can_be_tried(tmp_path, make_onnx, plain):
    path = make_onnx.save_segmenter(tmp_path / "a.onnx")
    built = teacher(path).build("cpu")
    other = Normalise((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), 255.0)
    found = built(pictures(), preprocessing=other)["person"]
    wanted = plain(path, (pictures() * 255).numpy())
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(built(pictures())["person"], plain(path, pictures().numpy()), 1e-5)


def test_probabilities_become_the_logits_they_came_from(tmp_path, make_onnx, plain):
    path = make_onnx.save_segmenter(tmp_path / "a.onnx", tail="sigmoid")
    found = teacher(path, kind="probabilities").build("cpu")(pictures())["person"]
    logits = plain(path, pictures().numpy(), "logits")
    assert np.abs(logits).max() < 10
    np.testing.assert_allclose(found, logits, atol=2e-3)


def test_several_probabilities_become_log_probabilities(tmp_path, make_onnx, plain):
    path = make_onnx.save_segmenter(tmp_path / "a.onnx", tail="softmax", classes=3)
    found = teacher(path, kind="probabilities").build("cpu")(pictures())["person"]
    np.testing.assert_allclose(found.exp().sum(1), 1, atol=1e-5)
    wanted = np.log(np.clip(plain(path, pictures().numpy()), 2.0**-20, 1))
    np.testing.assert_allclose(found, wanted, atol=1e-4)


def test_certain_probabilities_are_finite_and_symmetric_and_fit_float16():
    logits = logits_of(torch.tensor([0.0, 0.5, 1.0]).view(1, 1, 1, 3), "a tensor").flatten()
    bound = float(np.log((1 - 2.0**-20) * 2.0**20))
    torch.testing.assert_close(logits, torch.tensor([-bound, 0.0, bound]), atol=1e-5, rtol=0)
    assert float((logits.half().float() - logits).abs().max()) <= 0.004


def test_logits_declared_as_probabilities_are_refused(tmp_path, make_onnx):
    path = make_onnx.save_segmenter(tmp_path / "a.onnx")
    with pytest.raises(UserError, match="kind logits"):
        teacher(path, kind="probabilities").build("cpu")(pictures())


def test_pictures_in_any_memory_order_give_the_same(tmp_path, make_onnx):
    path = make_onnx.save_segmenter(tmp_path / "a.onnx")
    built = teacher(path).build("cpu")
    image = pictures()
    turned = image.contiguous(memory_format=torch.channels_last)
    assert torch.equal(built(image)["person"], built(turned)["person"])


def test_a_picture_that_the_network_cannot_take_is_the_users_error(tmp_path, make_onnx, capfd):
    path = make_onnx.save_segmenter(tmp_path / "a.onnx", tail="reshape_to_batch_1", batch="N")
    built = teacher(path).build("cpu")
    with pytest.raises(UserError, match="a multiple of 32"):
        built(pictures(2))
    assert capfd.readouterr() == ("", "")


def test_a_gpu_that_is_not_there_is_refused(tmp_path, make_onnx):
    path = make_onnx.save_segmenter(tmp_path / "a.onnx")
    with pytest.raises(UserError, match="is not there"):
        teacher(path).build("cuda:97")
    with pytest.raises(UserError, match="no such device"):
        teacher(path).build("tpu")


def test_a_missing_file_is_named_with_its_flag(tmp_path):
    with pytest.raises(UserError, match=r"nowhere\.onnx(.|\n)*--teachers\.N\.path"):
        teacher(tmp_path / "nowhere.onnx").build("cpu")


@pytest.mark.shared
def test_prisma_is_plain_onnxruntime_as_logits(shared, plain):
    path = shared / "models" / "prisma_people_256.onnx"
    image = pictures(2, 256, 256)
    found = teacher(path, kind="probabilities").build("cpu")(image)["person"]
    wanted = plain(path, image.numpy())
    np.testing.assert_allclose(torch.sigmoid(found), wanted, atol=2e-6)


@pytest.mark.shared
def test_deeplab_is_freed_of_its_batch_and_keeps_its_size(shared, plain):
    path = shared / "models" / "deeplab_people_513.onnx"
    half = (0.5, 0.5, 0.5)
    built = teacher(path, mean=half, std=half, size=(513, 513)).build("cpu")
    assert built.batch is None and built.input_size == (513, 513)
    image = pictures(2, 513, 513)
    found = built(image)["person"]
    wanted = plain(path, (image[1:].numpy() - 0.5) / 0.5)
    np.testing.assert_allclose(found[1:], wanted, atol=1e-3)
    with pytest.raises(UserError, match="size 513 513"):
        teacher(path).build("cpu")(pictures(1, 256, 256))


@pytest.mark.shared
@pytest.mark.parametrize("size", [256, 416])
def test_yolox_cut_at_an_inner_tensor_is_plain_onnxruntime(shared, plain, size):
    path = shared / "models" / "yolox_nano_coco_416.onnx"
    built = teacher(path, kind="features", tensor="input.427", channels="BGR", scale=255.0).build(
        "cpu"
    )
    image = pictures(2, size, size)
    found = built(image)["person"]
    assert found.shape == (2, 128, size // 8, size // 8)
    bgr = np.ascontiguousarray(image.numpy()[1:, ::-1] * np.float32(255))
    wanted = plain(path, bgr, "input.427", resize=size != 416)
    np.testing.assert_allclose(found[1:], wanted, atol=1e-3)


def test_a_graph_that_contradicts_itself_is_the_users_error(tmp_path, make_onnx, capfd):
    path = make_onnx.save_segmenter(tmp_path / "a.onnx")
    model = onnx.load(str(path))
    model.graph.node[0].domain = "no.such.domain"
    onnx.save(model, str(path))
    with pytest.raises(UserError, match="cannot load"):
        teacher(path).build("cpu")
    assert capfd.readouterr() == ("", "")
