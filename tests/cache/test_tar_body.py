"""The tar body is a plain WebDataset tar, written as the page of the format says."""

import io
import struct
import tarfile
from pathlib import Path

import numpy as np
import pytest
import webdataset
from numcodecs import zstd  # pyright: ignore[reportAttributeAccessIssue]
from PIL import Image

from stillroom.cache import Cache, claim_cache
from stillroom.errors import DamageError
from stillroom.pictures.make import make_shards
from stillroom.types import Row, ShardId, View

TRAIN = ShardId("train", 0)
LEFT_OPEN = pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # by webdataset
Members = list[tuple[tarfile.TarInfo, bytes]]


@pytest.fixture
def body() -> str:
    return "tar"


def stream(path: Path) -> list[dict]:
    """What a plain WebDataset pipeline gives: samples with every part decoded."""

    def decoded(sample: dict) -> dict:
        return {
            name: np.frombuffer(zstd.decompress(value), "<f2") if name.endswith(".zst") else value
            for name, value in sample.items()
        }

    return list(webdataset.WebDataset(str(path), shardshuffle=False).map(decoded))


def members_of(path: Path) -> Members:
    with tarfile.open(path) as tar:
        return [(member, tar.extractfile(member).read()) for member in tar]


@pytest.fixture
def varied(tmp_path: Path, make) -> Cache:
    """A cache with regions, views, a folder, an escaped dot and a name too long for ustar."""
    shards = [{"split": "train", "number": 0, "rows": 8, "pictures": "cd" * 32}]
    identity = make.identity(
        pictures={"digest": "ef" * 32, "shards": shards},
        views={"class": "Views", "count": 2, "regions": False},
    )
    cache = claim_cache(tmp_path, "varied", identity)
    cache.publish_fitted({})
    views = [View(number=number, x0=0, y0=0, x1=40, y1=32) for number in (0, 1)]
    places = [("deep/er/x=2Ey", None), ("deep/er/x=2Ey", 3), ("p", None), ("q" * 150, None)]
    with cache.writer(TRAIN) as writer:
        for i, (place, view) in enumerate((place, view) for place in places for view in views):
            said = make.values(cache, TRAIN, i)
            row = Row(key=place[0], region=place[1], view=view)
            writer.append(row, said, make.statistics(said), pixels=0)
        assert writer.publish({})
    return cache


@LEFT_OPEN
def test_a_plain_webdataset_pipeline_streams_every_row_and_part(varied: Cache, make):
    samples = stream(make.file(varied, TRAIN, "mask.value"))
    first = "deep/er/x=2Ey"
    assert [sample["__key__"] for sample in samples] == [
        first, f"{first}=v1", f"{first}=r3", f"{first}=r3=v1",
        "p", "p=v1", "q" * 150, "q" * 150 + "=v1",
    ]  # fmt: skip
    reader = varied.reader(TRAIN)
    for i, sample in enumerate(samples):
        parts = {name.removesuffix(".zst"): v for name, v in sample.items() if name[0] != "_"}
        ours = reader.read(i)
        assert parts.keys() == ours.keys() == {"detector.value", "mask.value"}
        assert all(np.array_equal(parts[name], ours[name].ravel()) for name in ours)


@LEFT_OPEN
def test_its_samples_have_the_names_of_those_of_the_picture_tar(tmp_path: Path, make):
    source = tmp_path / "source"
    (source / "deep").mkdir(parents=True)
    for number, name in enumerate(("a", "b.c", "deep/d", "e" * 120)):
        Image.new("RGB", (40, 32), (number, 0, 0)).save(source / f"{name}.png")
    make_shards(
        f"unlabelled:{source}", out=tmp_path / "shards", size=(32, 40), format="png", val_share=0.0
    )
    shards = [{"split": "train", "number": 0, "rows": 4, "pictures": "cd" * 32}]
    identity = make.identity(
        pictures={"digest": "ef" * 32, "shards": shards},
        views={"class": "Views", "count": 1, "regions": False},
    )
    cache = claim_cache(tmp_path, "joined", identity)
    cache.publish_fitted({})
    with cache.writer(TRAIN) as writer:
        for i, key in enumerate(("a", "b=2Ec", "deep/d", "e" * 120)):
            said = make.values(cache, TRAIN, i)
            row = Row(key=key, view=View(x0=0, y0=0, x1=40, y1=32))
            writer.append(row, said, make.statistics(said), pixels=0)
        assert writer.publish({})
    pictures = stream(tmp_path / "shards" / "train-000000.tar")
    targets = stream(make.file(cache, TRAIN, "mask.value"))
    for i, (picture, target) in enumerate(zip(pictures, targets, strict=True)):
        assert picture["__key__"] == target["__key__"]
        assert Image.open(io.BytesIO(picture["png"])).getpixel((0, 0)) == (i, 0, 0)
        said = make.values(cache, TRAIN, i)["mask.value"]
        assert np.array_equal(target["mask.value.zst"], said.ravel())


def test_tarfile_writes_the_same_bytes_of_the_same_members(varied: Cache, make):
    path, reference = make.file(varied, TRAIN, "mask.value"), io.BytesIO()
    with tarfile.open(fileobj=reference, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for found, payload in members_of(path):
            assert found.isreg() and found.mode == 0o644
            assert (found.mtime, found.uid, found.gid, found.uname, found.gname) == (
                0,
                0,
                0,
                "",
                "",
            )
            member = tarfile.TarInfo(found.name)
            member.size = len(payload)
            tar.addfile(member, io.BytesIO(payload))
        end = tar.offset
    data = path.read_bytes()
    assert len(data) == end + 1024 and data == reference.getvalue()[: end + 1024]


def header(name: str, size: int, mode: bytes = b"0000644\0", kind: bytes = b"0") -> bytes:
    """A header block as the table of docs/format.md says."""
    block = bytearray(512)
    block[0:100] = name.encode()[:100].ljust(100, b"\0")
    block[100:124] = mode + b"0000000\0" * 2
    block[124:148] = f"{size:011o}\0{0:011o}\0".encode()
    block[156:157], block[257:265] = kind, b"ustar\x0000"
    block[148:156] = f"{sum(block) + 8 * 32:06o}\0 ".encode()
    return bytes(block)


def test_the_page_of_the_format_says_every_byte(varied: Cache, make):
    path = make.file(varied, TRAIN, "mask.value")
    wanted = b""
    with varied.reader(TRAIN) as reader:
        for i, row in enumerate(reader.rows):
            for part in ("detector.value", "mask.value"):
                span = reader.shard_index.spans[part]
                view = "=v1" if row.view.number else ""
                region = "" if row.region is None else f"=r{row.region}"
                name = f"{row.key}{region}{view}.{part}.zst"
                if len(name) > 100:
                    shard_index = f" path={name}\n"
                    length = len(shard_index) + len(str(len(shard_index) + 3))
                    payload = f"{length}{shard_index}".encode()
                    wanted += header("././@PaxHeader", len(payload), b"0000000\0", b"x")
                    wanted += payload.ljust(512, b"\0")
                wanted += header(name, span.size[i])
                assert span.offset[i] == len(wanted)
                frame = path.read_bytes()[span.offset[i] : span.offset[i] + span.size[i]]
                wanted += frame + bytes(-len(frame) % 512)
    assert path.read_bytes() == wanted + bytes(1024)


def test_a_tar_cut_between_two_members_looks_whole_to_others_and_is_refused_here(
    cache: Cache, make
):
    path = make.file(cache, TRAIN, "mask.value")
    with cache.reader(TRAIN) as reader:
        cut = reader.shard_index.spans["detector.value"].offset[3] - 512
    path.write_bytes(path.read_bytes()[:cut])
    assert len(members_of(path)) == 6  # without a word
    with pytest.raises(DamageError, match="another size"):
        cache.reader(TRAIN)


def test_a_name_of_a_part_says_how_to_read_it_without_us(cache: Cache, make):
    """Raw float16 in a zstd frame that states its size."""
    member, payload = members_of(make.file(cache, TRAIN, "mask.value"))[1]
    assert member.name == "train-000000/000.mask.value.zst"
    assert struct.unpack("<I", payload[:4]) == (0xFD2FB528,)
    value = np.frombuffer(zstd.decompress(payload), "<f2").reshape(1, 4, 5)
    assert np.array_equal(value, make.values(cache, TRAIN, 0)["mask.value"])
