"""The whole command: what gets in, how it is split, what stops it, and that it appears whole."""

import io
import json
import signal
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tyro
import webdataset
from PIL import Image

from stillroom.errors import DamageError, FailureError, UserError
from stillroom.pictures import loader as loader_module
from stillroom.pictures import pack as pack_module
from stillroom.pictures.dataset import PictureSet, open_pictures
from stillroom.pictures.make import make_shards
from stillroom.types import ShardId

# WebDataset leaves closing its files to the garbage collector.
LEFT_OPEN = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def _keys(pictures: PictureSet, split: str) -> list[str]:
    return [key for shard in pictures.shard_ids(split) for key in pictures.open(shard).keys]


def _files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_voc_folder_comes_back_as_it_was(voc: Path, tmp_path: Path) -> None:
    make_shards(f"voc:{voc}", out=tmp_path / "out", shard_rows=3)
    pictures = open_pictures(tmp_path / "out")
    assert [str(shard) for shard in pictures.shard_ids()] == [
        "train-000000",
        "train-000001",
        "val-000000",
    ]
    assert len(pictures.classes) == 21 and pictures.geometry is None
    assert sorted(_keys(pictures, "train")) == [f"2007_{number:06d}" for number in range(4)]
    for shard in pictures.shard_ids():
        opened = pictures.open(shard)
        for i, key in enumerate(opened.keys):
            row = opened.read(i)
            image = Image.open(voc / "JPEGImages" / f"{key}.jpg")
            mask = Image.open(voc / "SegmentationClass" / f"{key}.png")
            assert row.key == key and row.inside == (0, 0, 30, 20)
            assert (row.image == np.array(image)).all()
            assert row.mask is not None and (row.mask == np.array(mask)).all()
            image.close()
            mask.close()


@LEFT_OPEN
def test_plain_webdataset_reads_what_our_reader_reads(folders: Callable, tmp_path: Path) -> None:
    source = folders(3)
    source.add("deep/er/x.y", 7)
    make_shards(source.text, out=tmp_path / "out", size=(16, 16), val_share=0.0)
    pictures = open_pictures(tmp_path / "out")
    opened = pictures.open(ShardId("train", 0))
    tar = str(tmp_path / "out" / "train-000000.tar")
    rows = list(webdataset.WebDataset(tar, shardshuffle=False))
    assert [row["__key__"] for row in rows] == list(opened.keys)
    for i, row in enumerate(rows):
        assert row["jpg"] == opened.read_bytes(i, "picture")
        assert row["mask.png"] == opened.read_bytes(i, "mask")
        assert ("json" in row) == (row["__key__"] == "deep/er/x=2Ey")
    assert json.loads(rows[0]["json"]) == opened.read(0).extra == {"source": "deep/er/x.y"}
    decoded = next(iter(webdataset.WebDataset(tar, shardshuffle=False).decode("pil")))
    mask = opened.read(0).mask
    assert mask is not None and (np.array(decoded["mask.png"].convert("L")) == mask).all()


def test_equal_pictures_give_equal_bytes(folders: Callable, tmp_path: Path) -> None:
    source = folders(9)
    for name in ("a", "b"):
        make_shards(source.text, out=tmp_path / name, size=(16, 24), fit="letterbox", val_share=0.3)
    assert _files(tmp_path / "a") == _files(tmp_path / "b")


def test_members_carry_no_time_and_no_owner(folders: Callable, tmp_path: Path) -> None:
    source = folders(1)
    source.add("x" * 150)
    make_shards(source.text, out=tmp_path / "out", val_share=0.0)
    with tarfile.open(tmp_path / "out" / "train-000000.tar") as tar:
        members = tar.getmembers()
    assert {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode) for m in members} == {
        (0, 0, 0, "", "", 0o644)
    }
    names = ["p00.jpg", "p00.mask.png", "x" * 150 + ".jpg", "x" * 150 + ".mask.png"]
    assert [member.name for member in members] == names


def test_correcting_a_mask_leaves_the_digest_and_a_new_picture_does_not(
    folders: Callable, tmp_path: Path
) -> None:
    source, digests, tars = folders(3), [], []
    for step in range(3):
        if step == 1:
            Image.new("L", (32, 24), 2).save(source.masks / "p00.png")
        if step == 2:
            source.add("p00", 99)
        make_shards(source.text, out=tmp_path / str(step), val_share=0.0)
        pictures = open_pictures(tmp_path / str(step))
        digests.append(pictures.digest)
        tars.append(pictures.shards[0].sha256)
    assert digests[0] == digests[1] != digests[2]
    assert len(set(tars)) == 3


def test_the_validation_share_is_stable_when_pictures_are_added(
    folders: Callable, tmp_path: Path
) -> None:
    source, held_out = folders(40), []
    for step, share in enumerate((0.3, 0.3, 0.5)):
        if step == 1:
            for number in range(40, 60):
                source.add(f"p{number:02d}", number)
        make_shards(source.text, out=tmp_path / str(step), size=(8, 8), val_share=share)
        pictures = open_pictures(tmp_path / str(step))
        train, val = _keys(pictures, "train"), set(_keys(pictures, "val"))
        assert not val & set(train) and len(val) + len(train) == (40, 60, 60)[step]
        held_out.append(val)
    old = {f"p{number:02d}" for number in range(40)}
    assert held_out[0] == held_out[1] & old
    assert held_out[1] < held_out[2]


def test_another_source_can_be_the_validation_split(
    folders: Callable, voc: Path, tmp_path: Path
) -> None:
    source = folders(3)
    make_shards(source.text, out=tmp_path / "out", val=f"voc:{voc}", classes="21")
    pictures = open_pictures(tmp_path / "out")
    assert _keys(pictures, "train") == ["p00", "p01", "p02"]
    assert _keys(pictures, "val") == ["2007_000004", "2007_000005"]


def test_unlabelled_pictures_have_no_masks(folders: Callable, tmp_path: Path) -> None:
    source = folders(2)
    make_shards(f"unlabelled:{source.images}", out=tmp_path / "out", val_share=0.0, format="png")
    pictures = open_pictures(tmp_path / "out")
    opened = pictures.open(ShardId("train", 0))
    assert not opened.has_mask(0) and opened.read(0).mask is None
    assert pictures.classes == ()


def test_0_255_masks_are_mapped_when_asked(folders: Callable, tmp_path: Path) -> None:
    source = folders(2)
    for path in source.masks.iterdir():
        values = np.array(Image.open(path))
        Image.fromarray(np.where(values == 1, 255, 0).astype(np.uint8)).save(path)
    with pytest.raises(UserError, match="0/255 masks of a binary task"):
        make_shards(source.text, out=tmp_path / "out", val_share=0.0)
    make_shards(source.text, out=tmp_path / "out", val_share=0.0, mask_values=("0:0", "255:1"))
    pictures = open_pictures(tmp_path / "out")
    mask = pictures.open(ShardId("train", 0)).read(0).mask
    assert mask is not None and set(np.unique(mask)) == {0, 1} and len(pictures.classes) == 2


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:200])


SPOILT: dict[str, Callable] = {
    r"p01\.jpg is not a readable picture": lambda s: _truncate(s.images / "p01.jpg"),
    r"p01\.png is not a readable picture": lambda s: _truncate(s.masks / "p01.png"),
    r"p01\.png is not the size of its picture": lambda s: Image.new("L", (9, 9)).save(
        s.masks / "p01.png"
    ),
    r"p01\.png has label values outside the classes\n.*77": lambda s: Image.new(
        "L", (32, 24), 77
    ).save(s.masks / "p01.png"),
    r"p01\.jpg has no mask": lambda s: (s.masks / "p01.png").unlink(),
    r"p01\.jpg is missing": lambda s: (s.images / "p01.jpg").unlink(),
    r"p01\.jpg has more than 100 megapixels": lambda s: Image.new("1", (10_000, 10_001)).save(
        s.images / "p01.jpg", "PNG"
    ),
    r"two pictures with the key p01\n.*p01\.jpg and .*p01\.png": lambda s: Image.new(
        "RGB", (32, 24)
    ).save(s.images / "p01.png"),
    r"makes no key": lambda s: s.add("x" * 201),
}


@pytest.mark.parametrize("message", SPOILT)
def test_a_bad_picture_stops_the_command_or_is_left_out_and_listed(
    folders: Callable, tmp_path: Path, capsys: pytest.CaptureFixture, message: str
) -> None:
    source, out = folders(4), tmp_path / "shards" / "out"
    SPOILT[message](source)
    with pytest.raises(UserError, match=message):
        make_shards(source.text, out=out, val_share=0.0, classes="3")
    assert list(out.parent.glob("*")) == []
    make_shards(source.text, out=out, val_share=0.0, classes="3", skip_bad=True)
    listed = capsys.readouterr().err
    assert "left out 1 bad pictures:" in listed and listed.count("\n") >= 2
    pictures = open_pictures(out)
    kept = ["p00", "p02", "p03"]
    assert [key for key in _keys(pictures, "train") if key != "p01"] == kept


def test_nothing_left_is_an_error_and_not_an_empty_set(folders: Callable, tmp_path: Path) -> None:
    source = folders(2)
    for path in source.images.iterdir():
        _truncate(path)
    with pytest.raises(UserError, match="no picture is left for the split 'train'"):
        make_shards(source.text, out=tmp_path / "out", val_share=0.0, classes="3", skip_bad=True)
    assert not (tmp_path / "out").exists()


def test_empty_splits_and_sources_are_refused(folders: Callable, voc: Path, tmp_path: Path) -> None:
    out, source = tmp_path / "out", folders(1)
    with pytest.raises(UserError, match="the split 'val' is empty"):
        make_shards(source.text, out=out)
    (voc / "ImageSets" / "Segmentation" / "val.txt").write_text("\n")
    with pytest.raises(UserError, match="the split 'val' is empty"):
        make_shards(f"voc:{voc}", out=out)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="the source holds no picture"):
        make_shards(f"unlabelled:{tmp_path / 'empty'}", out=out)


def test_flags_that_contradict_each_other_are_refused(voc: Path, tmp_path: Path) -> None:
    out, source = tmp_path / "out", f"voc:{voc}"
    with pytest.raises(UserError, match="the source's own val list exclude each other"):
        make_shards(source, out=out, val_share=0.1)
    with pytest.raises(UserError, match="--val exclude each other"):
        make_shards(source, out=out, val=source, val_share=0.1)
    with pytest.raises(UserError, match="--val-share is out of range"):
        make_shards(f"unlabelled:{voc}/JPEGImages", out=out, val_share=1.0)
    with pytest.raises(UserError, match="letterbox needs a size"):
        make_shards(source, out=out, fit="letterbox")
    with pytest.raises(UserError, match="--shard-rows"):
        make_shards(source, out=out, shard_rows=0)


def test_an_existing_folder_is_refused_and_untouched(folders: Callable, tmp_path: Path) -> None:
    source, out = folders(2), tmp_path / "out"
    make_shards(source.text, out=out, val_share=0.0)
    before = _files(out)
    with pytest.raises(UserError, match=r"exists already\n.*finished picture shards"):
        make_shards(source.text, out=out, val_share=0.0)
    assert _files(out) == before
    (tmp_path / "half").mkdir()
    with pytest.raises(UserError, match="something else"):
        make_shards(source.text, out=tmp_path / "half", val_share=0.0)


def test_a_process_killed_half_way_leaves_nothing_that_looks_finished(
    folders: Callable, tmp_path: Path
) -> None:
    source, out = folders(6), tmp_path / "shards" / "out"
    script = f"""
import os, signal
from pathlib import Path
from stillroom.pictures import make, pack
add, seen = pack._append, []
def kill_at_the_fifth(*arguments):
    seen.append(0)
    if len(seen) == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return add(*arguments)
pack._append = kill_at_the_fifth
make.make_shards({source.text!r}, out=Path({str(out)!r}), shard_rows=2, val_share=0.0)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    left = list(out.parent.iterdir())
    assert len(left) == 1 and left[0].name.startswith(".out.")
    for folder in (out, left[0]):
        with pytest.raises(UserError, match="not a finished set"):
            open_pictures(folder)
    make_shards(source.text, out=out, shard_rows=2, val_share=0.0)
    assert len(open_pictures(out).shards) == 3


def test_a_disk_that_kept_something_else_is_noticed_before_the_rename(
    folders: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fake is a disk that turns one bit of the first shard after it was written."""
    write = pack_module._write_shard

    def spoil(folder: Path, *arguments):
        info = write(folder, *arguments)
        data = bytearray((folder / f"{info.id}.tar").read_bytes())
        data[600] ^= 1
        (folder / f"{info.id}.tar").write_bytes(data)
        return info

    monkeypatch.setattr(pack_module, "_write_shard", spoil)
    with pytest.raises(DamageError, match="p00"):
        make_shards(folders(2).text, out=tmp_path / "s" / "out", val_share=0.0)
    assert list((tmp_path / "s").iterdir()) == []


def test_a_full_disk_is_one_clear_error(
    folders: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pack_module.os, "fsync", full)
    with pytest.raises(FailureError, match=r"could not write .*out: .*No space left"):
        make_shards(folders(2).text, out=tmp_path / "s" / "out", val_share=0.0)
    assert list((tmp_path / "s").iterdir()) == []


def test_the_memory_is_that_of_a_shard_whatever_the_number_of_pictures(
    folders: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At no time more prepared pictures are alive than a shard's and what threads may be ahead."""
    from stillroom.pictures import make as make_module

    begun, ended, ahead = [], [], []
    prepare, append = make_module.prepare, pack_module._append

    def begin(*arguments):
        begun.append(0)
        return prepare(*arguments)

    def end(*arguments):
        ended.append(0)
        ahead.append(len(begun) - len(ended))
        return append(*arguments)

    monkeypatch.setattr(make_module, "prepare", begin)
    monkeypatch.setattr(pack_module, "_append", end)
    monkeypatch.setattr(loader_module, "_MAX_DECODERS", 2)
    make_shards(folders(60).text, out=tmp_path / "out", val_share=0.0, shard_rows=6)
    assert len(ended) == 60 and max(ahead) <= 6 + 8


def test_a_shard_is_a_sample_of_all_pictures_and_no_stretch_of_a_film(
    folders: Callable, tmp_path: Path
) -> None:
    """Neighbouring frames in one shard would be neighbours in every window of shards too."""
    make_shards(folders(60).text, out=tmp_path / "out", val_share=0.0, shard_rows=20)
    pictures = open_pictures(tmp_path / "out")
    for shard in pictures.shard_ids():
        keys = pictures.open(shard).keys
        assert keys[0] < "p15" and keys[-1] > "p45"


def test_the_command_line_is_that_of_the_function(folders: Callable, tmp_path: Path) -> None:
    flags = "--size 8 16 --fit letterbox --format png --shard-rows 2 --val-share .3 --classes 4"
    more = "--mask-values 0:0 1:3 2:255 --skip-bad"
    words = [folders(20).text, "--out", str(tmp_path / "out"), *flags.split(), *more.split()]
    tyro.cli(make_shards, args=words)
    pictures = open_pictures(tmp_path / "out")
    assert pictures.geometry == (8, 16) and pictures.fit == "letterbox"
    assert len(pictures.classes) == 4 and max(info.rows for info in pictures.shards) == 2
    assert {info.split for info in pictures.shards} == {"train", "val"}
    key = pictures.open(ShardId("train", 0)).keys[0]
    assert (tmp_path / "out" / "train-000000.tar").read_bytes()[:7] == f"{key}.png".encode()


@pytest.mark.shared
@LEFT_OPEN
@pytest.mark.parametrize(
    ("name", "rows", "classes"), [("people", 100, 2), ("camvid11", 101, 11), ("voc21", 160, 21)]
)
def test_real_pictures_are_packed_and_labels_survive(
    shared: Path, tmp_path: Path, name: str, rows: int, classes: int
) -> None:
    """Only the validation lists, to save time: they come as both splits' source."""
    root = tmp_path / name
    (root / "ImageSets" / "Segmentation").mkdir(parents=True)
    for folder in ("JPEGImages", "SegmentationClass"):
        (root / folder).symlink_to(shared / "data" / name / folder)
    listed = (shared / "data" / name / "ImageSets" / "Segmentation" / "val.txt").read_text()
    (root / "ImageSets" / "Segmentation" / "train.txt").write_text(listed)
    (root / "classes.txt").write_bytes((shared / "data" / name / "classes.txt").read_bytes())
    make_shards(
        f"voc:{root}", out=tmp_path / "out", val_share=0.0, size=(128, 128), fit="letterbox"
    )
    pictures = open_pictures(tmp_path / "out")
    assert sum(info.rows for info in pictures.shards) == rows and len(pictures.classes) == classes
    opened = pictures.open(ShardId("train", 0))
    for i in range(0, rows, 20):
        row = opened.read(i)
        x0, y0, x1, y1 = row.inside
        with Image.open(root / "SegmentationClass" / f"{row.key}.png") as mask:
            wanted = np.array(mask.resize((x1 - x0, y1 - y0), Image.Resampling.NEAREST))
        assert row.mask is not None and (row.mask[y0:y1, x0:x1] == wanted).all()
        with Image.open(root / "JPEGImages" / f"{row.key}.jpg") as picture:
            small = picture.resize((x1 - x0, y1 - y0), Image.Resampling.BILINEAR)
        error = np.abs(row.image[y0:y1, x0:x1].astype(int) - np.array(small)).mean()
        assert error < 4, "JPEG at quality 95 without chroma subsampling stays near"
    tar = str(tmp_path / "out" / "train-000000.tar")
    streamed = list(webdataset.WebDataset(tar, shardshuffle=False))
    assert [row["__key__"] for row in streamed] == list(opened.keys)
    last = np.array(Image.open(io.BytesIO(streamed[-1]["jpg"])))
    assert (last == opened.read(len(opened) - 1).image).all()
