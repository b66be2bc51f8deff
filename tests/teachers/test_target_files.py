"""Targets in files: every form reads as what it holds, and nothing else is taken."""

import math
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import save_file

from stillroom.errors import StillroomError, UserError
from stillroom.teachers.own_configs import FileTeacher
from stillroom.types import Row, View

H, W = 4, 6
GREY = torch.zeros(1, 3, H, W)
MASK = np.arange(H * W, dtype=np.uint8).reshape(H, W) % 3
SOFT = (np.arange(H * W).reshape(1, H, W) / (H * W)).astype(np.float32)
PAIR = np.concatenate([SOFT, 1 - SOFT])


def row(key="a/b", **view) -> Row:
    return Row(key=key, view=View(**{"x0": 0, "y0": 0, "x1": W, "y1": H, **view}))


def save(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, array)
    elif path.suffix == ".safetensors":
        save_file({"any": array}, path)
    else:
        Image.fromarray(array).save(path)


def answer(folder: Path, array, suffix: str, kind: str, **fields) -> torch.Tensor:
    save(folder / f"a/b{suffix}", array)
    config = FileTeacher(target="t", folder=str(folder), kind=kind, suffix=suffix, **fields)
    return config.build("cpu")(GREY, rows=(row(),))["t"][0]


@pytest.mark.parametrize("suffix", [".npy", ".safetensors"])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_arrays_of_logits_and_features_are_taken_as_they_are(tmp_path, suffix, dtype):
    array = (PAIR * 7 - 3).astype(dtype)
    for kind in ("logits", "features"):
        found = answer(tmp_path / kind, array, suffix, kind)
        assert found.dtype == torch.float32 and np.array_equal(found, array.astype("float32"))
    assert np.array_equal(answer(tmp_path / "one", array[0], suffix, "logits")[0], found[0])


def test_numbers_of_a_palette_are_no_probabilities(tmp_path):
    (tmp_path / "a").mkdir()
    Image.fromarray((SOFT[0] * 255).astype(np.uint8)).convert("P").save(tmp_path / "a/b.png")
    config = FileTeacher(target="t", folder=str(tmp_path), kind="probabilities", suffix=".png")
    with pytest.raises(UserError, match="mode P instead of grey"):
        config.build("cpu")(GREY, rows=(row(),))


@pytest.mark.parametrize(("dtype", "most"), [(np.uint8, 255), (np.uint16, 65535)])
def test_grey_of_8_and_16_bits_is_a_probability(tmp_path, dtype, most):
    grey = (SOFT[0] * most).astype(dtype)
    found = answer(tmp_path, grey, ".png", "probabilities").sigmoid()
    np.testing.assert_allclose(found[0], grey / most, atol=2e-6)


def test_probabilities_of_several_classes_become_their_logarithms(tmp_path):
    found = answer(tmp_path, PAIR.clip(1e-3), ".npy", "probabilities")
    np.testing.assert_allclose(found, np.log(PAIR.clip(1e-3)), rtol=1e-5)


@pytest.mark.parametrize(("suffix", "dtype"), [(".png", "uint8"), (".npy", "int64")])
def test_a_mask_is_as_sure_as_it_is_declared_and_void_favours_no_class(tmp_path, suffix, dtype):
    mask = MASK.astype(dtype)
    mask[0, 0] = 255
    found = answer(tmp_path, mask, suffix, "mask", classes=3, confidence=0.9).softmax(0)
    wanted = torch.full((3, H, W), 0.05)
    wanted.scatter_(0, torch.from_numpy(MASK).long()[None], 0.9)
    wanted[:, 0, 0] = 1 / 3
    torch.testing.assert_close(found, wanted)


def test_a_binary_mask_is_log_odds(tmp_path):
    mask = np.array([[0, 1, 255, 0, 0, 0]] * H, np.uint8)
    found = answer(tmp_path, mask, ".png", "mask", classes=1, confidence=0.9)
    wanted = [-math.log(9), math.log(9), 0.0]
    torch.testing.assert_close(found[0, 0, :3], torch.tensor(wanted))


def test_smaller_maps_of_logits_are_brought_to_the_size_of_the_picture(tmp_path):
    small = PAIR[:, ::2, ::2].copy()
    found = answer(tmp_path, small, ".npy", "logits")
    wanted = torch.nn.functional.interpolate(torch.from_numpy(small)[None], (H, W), mode="bilinear")
    assert torch.equal(found, wanted[0])
    assert answer(tmp_path / "2", small, ".npy", "features").shape == (2, 2, 3)


@pytest.mark.parametrize(
    ("array", "suffix", "kind", "text"),
    [
        (PAIR * 3, ".npy", "probabilities", "a/b.npy, declared as probabilities"),
        (PAIR[:, :3], ".npy", "logits", "3 x 6(.|\n)*4 x 6"),
        (PAIR[0, 0], ".npy", "features", "no map of numbers(.|\n)*6 float32"),
        (PAIR[:, :0], ".npy", "features", "no map of numbers"),
        (PAIR.astype(complex), ".npy", "features", "no map of numbers"),
        (MASK[:3], ".png", "mask", "no mask of its picture"),
        (MASK.astype("float32"), ".npy", "mask", "no mask of its picture"),
        (MASK + 7, ".png", "mask", "7, 8, 9(.|\n)*0 to 2, or 255"),
        (np.zeros((H, W, 3), np.uint8), ".png", "mask", "mode RGB"),
    ],
)
def test_what_does_not_fit_is_refused_with_both_sides(tmp_path, array, suffix, kind, text):
    with pytest.raises(UserError, match=text):
        answer(tmp_path, array, suffix, kind, classes=3 if kind == "mask" else None)


class _Touch:
    """Unpickling this makes a file."""

    def __reduce__(self) -> tuple:
        return os.mknod, ("trace-of-code-that-ran",)


def _header(path: Path, shape: tuple[int, ...]) -> None:
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(
            file, {"descr": "<f4", "fortran_order": False, "shape": shape}
        )


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: np.save(path, np.array([_Touch()], object), allow_pickle=True),
        lambda path: path.write_bytes(pickle.dumps(_Touch())),
        lambda path: _header(path, (1, 1 << 20, 1 << 20)),
        lambda path: path.write_bytes(path.read_bytes()[:-1]),
        lambda path: path.write_bytes(b""),
        lambda path: _header(path, (1, H, W)) or os.truncate(path, 1 << 40),
    ],
    ids=["objects", "a pickle", "too large a header", "cut", "empty", "sparse"],
)
def test_nothing_is_unpickled_and_sizes_are_bounded(tmp_path, monkeypatch, spoil):
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "a/b.npy", SOFT)
    spoil(tmp_path / "a/b.npy")
    try:
        found = FileTeacher(target="t", folder=str(tmp_path), kind="logits").build("cpu")
        assert found(GREY, rows=(row(),))["t"].numel() == H * W
    except StillroomError as error:
        assert "a/b.npy cannot be read" in str(error)
    assert not Path("trace-of-code-that-ran").exists()


def test_rows_that_are_not_the_whole_picture_are_refused(tmp_path):
    save(tmp_path / "a/b.npy", SOFT)
    built = FileTeacher(target="t", folder=str(tmp_path), kind="logits").build("cpu")
    region = Row(key="a/b", region=0, view=row().view)
    for other in (row(x0=1), row(y1=5), row(mirrored=True), region):
        with pytest.raises(UserError, match="whole pictures only"):
            built(GREY, rows=(other,))
    with pytest.raises(UserError, match="no file for the picture c"):
        built(GREY, rows=(row("c"),))


def test_files_of_different_shapes_are_refused(tmp_path):
    save(tmp_path / "a/b.npy", SOFT)
    save(tmp_path / "c.npy", PAIR)
    built = FileTeacher(target="t", folder=str(tmp_path), kind="features").build("cpu")
    with pytest.raises(
        UserError, match=r"c\.npy has another shape(.|\n)*2 x 4 x 6(.|\n)*1 x 4 x 6"
    ):
        built(GREY.repeat(2, 1, 1, 1), rows=(row(), row("c")))


def test_the_identity_is_of_names_and_contents_and_not_of_the_place(tmp_path):
    def identity(folder: Path) -> dict:
        return FileTeacher(target="t", folder=str(folder), kind="logits").identity()

    save(tmp_path / "one/a/b.npy", SOFT)
    (tmp_path / "two").symlink_to(tmp_path / "one")
    first = identity(tmp_path / "one")
    assert identity(tmp_path / "two") == first
    (tmp_path / "one/readme.txt").write_text("another file is none of them")
    assert identity(tmp_path / "one") == first
    save(tmp_path / "one/a/b.npy", SOFT + 1)
    changed = identity(tmp_path / "one")
    save(tmp_path / "one/a/c.npy", SOFT)
    assert len({i["files_sha256"] for i in (first, changed, identity(tmp_path / "one"))}) == 3


def test_links_in_the_folder_lead_nowhere(tmp_path):
    save(tmp_path / "out/x.npy", SOFT)
    save(tmp_path / "in/c.npy", SOFT)
    (tmp_path / "in/x.npy").symlink_to(tmp_path / "out/x.npy")
    (tmp_path / "in/sub").symlink_to(tmp_path / "out")
    built = FileTeacher(target="t", folder=str(tmp_path / "in"), kind="logits").build("cpu")
    for key in ("x", "sub/x"):
        with pytest.raises(UserError, match=f"no regular file {key}"):
            built(GREY, rows=(row(key),))


@pytest.mark.parametrize(
    "fields",
    [
        {"kind": "features", "suffix": ".png"},
        {"kind": "mask"},
        {"kind": "logits", "classes": 3},
        {"kind": "mask", "classes": 0},
        {"kind": "mask", "classes": 4, "confidence": 0.25},
        {"kind": "mask", "classes": 1, "confidence": 1.0},
        {"kind": "logits", "target": "Bad"},
    ],
)
def test_impossible_fields_are_refused(fields):
    with pytest.raises(UserError):
        FileTeacher(**{"target": "t", "folder": "f", **fields})


def test_a_folder_without_a_file_is_refused_with_the_flag(tmp_path):
    config = FileTeacher(target="t", folder=str(tmp_path), kind="logits")
    for act in (config.identity, lambda: config.build("cpu")):
        with pytest.raises(UserError, match=r"holds no \.npy(.|\n)*--teachers\.N\.folder"):
            act()
