"""The rows of a step are a function of the seed, joined by key; damage is found and counted."""

import gc
import shutil
import threading
import time
import weakref
from contextlib import closing
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

import stillroom.training.stream as stream
from stillroom.cache import Cache, find_caches
from stillroom.errors import DamageError, UserError
from stillroom.extraction.extract import cache_teacher
from stillroom.extraction.process import ProcessContext
from stillroom.hashing import keyed_hash
from stillroom.pictures.dataset import PictureSet, open_pictures
from stillroom.pictures.keys import is_label_used
from stillroom.pictures.loader import image_tensor
from stillroom.recipe import Augment
from stillroom.training.batches import to_batch
from stillroom.training.order import MicroBatchSchedule, Order
from stillroom.training.stream import RowDataset, training_batches, validation_batches

TARGETS = ("shapes", "inner")


@pytest.fixture(scope="module")
def pictures(tiny_world) -> PictureSet:
    return open_pictures(tiny_world / "shards")


@pytest.fixture(scope="module")
def cache(tiny_world) -> Cache:
    return find_caches(tiny_world / "cache")[0]


@pytest.fixture(scope="module")
def dataset(pictures, cache) -> RowDataset:
    return RowDataset(pictures, "train", cache=cache, targets=TARGETS)


def batches(dataset, *, world=1, rank=0, workers=2, steps=range(6), batch=8, micro=4, **more):
    """Micro-batches by (step, number), as one rank gets them."""
    more = {"augment": Augment(photometric=0.3), "seed": 0} | more
    schedule = MicroBatchSchedule(batch=batch, micro_batch=micro, rank=rank, world=world)
    order = Order(rows=len(dataset), seed=more["seed"])
    jobs = [(step, number) for step in steps for number in schedule.micro_batches()]
    stream = training_batches(dataset, order, schedule, steps, workers=workers, pin=False, **more)
    return dict(zip(jobs, stream, strict=True))


def same(one, two) -> bool:
    tensors = [(one.image, two.image), (one.mask, two.mask), (one.inside, two.inside)]
    tensors += [(one.parts[name], two.parts[name]) for name in one.parts]
    return one.keys == two.keys and all(torch.equal(a, b) for a, b in tensors)


def by_key(found) -> dict[str, torch.Tensor]:
    return {key: b.image[i] for b in found.values() for i, key in enumerate(b.keys)}


def test_every_row_holds_what_the_teacher_says_of_that_picture(dataset, cache, tiny_recipe):
    teacher = tiny_recipe.teachers[0].build("cpu")
    for row in range(len(dataset)):
        _, arrays = dataset.read(row)
        said = teacher(image_tensor(arrays["image"])[None])
        for name in TARGETS:
            stored = torch.from_numpy(arrays[f"{name}.value"]).float()
            assert torch.allclose(stored, said[name][0], rtol=2e-3, atol=2e-3)


def test_a_teacher_shard_in_another_order_is_joined_by_key(pictures, cache):
    class Reversed:
        """A reader that numbers its rows from the end; `index` alone knows."""

        def __init__(self, reader):
            self.reader, self.rows = reader, list(reader.rows)[::-1]
            self.pixels, self.provenance = reader.pixels[::-1], reader.provenance
            self.num_bytes = reader.num_bytes  # all rows are alike

        def index(self, key, region, view):
            return len(self.reader) - 1 - self.reader.index(key, region, view)

        def read(self, i, parts):
            return self.reader.read(len(self.reader) - 1 - i, parts=parts)

    plain = RowDataset(pictures, "train", cache=cache, targets=TARGETS)
    other = RowDataset(pictures, "train", cache=cache, targets=TARGETS)
    other._target_shard = lambda shard: Reversed(cache.reader(shard))
    for row in (0, 5, 13):
        a, b = plain.read(row)[1], other.read(row)[1]
        assert all(np.array_equal(a[name], b[name]) for name in a)


def test_a_picture_that_no_teacher_saw_is_an_error_that_names_it(pictures, cache, monkeypatch):
    dataset = RowDataset(pictures, "train", cache=cache, targets=TARGETS)
    opened = pictures.open(dataset.places.at(0)[0])
    monkeypatch.setattr(opened, "keys", ("stranger", *opened.keys[1:]))
    with pytest.raises(UserError, match="stranger"):
        dataset.read(0)


def test_label_share_hides_labels_by_key_alone(pictures, cache):
    whole = RowDataset(pictures, "train", cache=cache, targets=TARGETS)
    half = RowDataset(pictures, "train", cache=cache, targets=TARGETS, label_share=0.5)
    labelled = RowDataset(pictures, "train", label_share=0.5, labelled_only=True)
    shown = set()
    for row in range(len(whole)):
        (key, a), (key_2, b) = whole.read(row), half.read(row)
        assert key == key_2
        hidden = bool((b["mask"] == 255).all()) and not bool((a["mask"] == 255).all())
        assert hidden == (keyed_hash("label", key) >= 2**63)
        assert hidden or np.array_equal(a["mask"], b["mask"])
        assert np.array_equal(a["shapes.value"], b["shapes.value"])  # what was said stays
        shown |= set() if hidden else {key}
    assert {labelled.read(row)[0] for row in range(len(labelled))} == shown
    assert 0 < len(shown) < len(whole)


def test_label_share_is_a_share_and_a_smaller_one_lies_within_a_larger():
    def used(share):
        return {key for key in map(str, range(4000)) if is_label_used(key, share)}

    small, large, every, none = used(0.05), used(0.5), used(1.0), used(0.0)
    assert len(small) == pytest.approx(200, abs=45)  # three standard deviations
    assert len(large) == pytest.approx(2000, abs=95)
    assert small < large < every
    assert (len(every), len(none)) == (4000, 0)


def test_no_label_at_all_is_refused_where_labels_are_all_there_is(pictures):
    with pytest.raises(UserError, match="label-share"):
        RowDataset(pictures, "train", label_share=0.0, labelled_only=True)


def test_the_rows_of_a_step_depend_neither_on_workers_nor_on_ranks(dataset):
    alone = batches(dataset, workers=1)
    assert all(same(b, alone[job]) for job, b in batches(dataset, workers=4).items())
    process = [batches(dataset, world=2, rank=rank) for rank in (0, 1)]
    assert process[0].keys() | process[1].keys() == alone.keys()
    assert not process[0].keys() & process[1].keys()
    assert all(same(b, alone[job]) for rank in process for job, b in rank.items())


def test_from_every_step_of_three_epochs_a_resume_reads_what_would_have_come(dataset):
    steps = 3 * len(dataset) // 8
    alone = batches(dataset, steps=range(steps))
    assert steps == 9 and len({key for b in alone.values() for key in b.keys}) == len(dataset)
    for first in range(1, steps):
        tail = batches(dataset, steps=range(first, steps))
        assert tail.keys() == {job for job in alone if job[0] >= first}
        assert all(same(b, alone[job]) for job, b in tail.items())


def test_one_pass_holds_every_row_once(dataset):
    first = [key for b in batches(dataset, steps=range(3)).values() for key in b.keys]
    assert len(first) == len(set(first)) == len(dataset)


def test_light_is_a_function_of_seed_pass_and_key(dataset):
    one, two = batches(dataset, steps=range(3)), batches(dataset, steps=range(3, 6))
    other_place = batches(dataset, steps=range(6), batch=4, micro=1)
    first = by_key({job: b for job, b in other_place.items() if job[0] < 6})
    assert by_key(one).keys() == by_key(two).keys() == first.keys()
    for key, image in by_key(one).items():
        assert torch.equal(image, first[key])  # the same pass, other micro-batches
        assert not torch.equal(image, by_key(two)[key])  # the next pass
    again = by_key(batches(dataset, steps=range(3), seed=1))
    assert all(not torch.equal(image, again[key]) for key, image in by_key(one).items())


def test_light_changes_pictures_and_nothing_else(dataset):
    lit, plain = batches(dataset), batches(dataset, augment=Augment())
    for job, batch in plain.items():
        assert not torch.equal(batch.image, lit[job].image)
        assert torch.equal(batch.mask, lit[job].mask)
        assert all(torch.equal(batch.parts[name], lit[job].parts[name]) for name in batch.parts)


@pytest.mark.parametrize(
    "augment",
    [
        Augment(hsv=(0.1, 0.7, 0.3)),
        Augment(gamma=0.3),
        Augment(blur=1.0),
        Augment(noise=0.1),
        Augment(jpeg=20),
    ],
)
def test_every_change_of_light_reaches_the_pictures_alone(dataset, augment):
    changed, plain = (batches(dataset, augment=a, steps=range(2)) for a in (augment, Augment()))
    for job, batch in plain.items():
        assert not any(map(torch.equal, batch.image, changed[job].image))
        assert torch.equal(batch.mask, changed[job].mask)
        assert torch.equal(batch.parts["inner.value"], changed[job].parts["inner.value"])


def test_a_share_of_the_pictures_is_degraded_by_each_of_blur_noise_and_jpeg(dataset):
    plain = batches(dataset, augment=Augment())

    def changed(**more) -> float:
        found = batches(dataset, augment=Augment(**more))
        pairs = [(found[job].image, batch.image) for job, batch in plain.items()]
        return torch.cat([(new != old).flatten(1).any(1) for new, old in pairs]).double().mean()

    for degradation in ({"blur": 2.0}, {"noise": 0.2}, {"jpeg": 20}):
        assert changed(**degradation) > 0.9  # one whose strength is drawn near 0 stays
        assert 0.2 < changed(**degradation, degraded=0.5) < 0.8
        assert changed(**degradation, degraded=0.0) == 0
    assert changed(gamma=0.5, degraded=0.0) > 0.9


def test_half_of_the_pictures_are_mirrored_with_mask_and_padding(pictures):
    dataset = RowDataset(pictures, "train")
    plain, mirrored = (batches(dataset, augment=Augment(mirror=m)) for m in (False, True))
    turned = 0
    for job, a in plain.items():
        b = mirrored[job]
        for i in range(len(a.keys)):
            turn = not torch.equal(a.image[i], b.image[i])
            turned += turn
            assert torch.equal(a.image[i].flip(1) if turn else a.image[i], b.image[i])
            assert torch.equal(a.mask[i].flip(1) if turn else a.mask[i], b.mask[i])
            assert torch.equal(a.inside[i].flip(1) if turn else a.inside[i], b.inside[i])
    assert 12 < turned < 36  # of 48


@pytest.fixture(scope="module", params=["float16", "stochastic:1.0"])
def coded(request, make_tiny, tiny_world, tmp_path_factory) -> Cache:
    """A cache whose features are kept as they are, and one of noise that was drawn in its order."""
    recipe = make_tiny.tiny_recipe(tiny_world, tmp_path_factory.mktemp("runs"))
    run = replace(recipe.run, cache=str(tmp_path_factory.mktemp("coded")))
    codec = {"shapes": "float16", "inner": request.param}
    return cache_teacher(replace(recipe, run=run, codec=codec), ProcessContext())


def test_targets_of_mirrored_pictures_are_those_of_the_others_mirrored(pictures, coded):
    dataset = RowDataset(pictures, "train", cache=coded, targets=TARGETS)
    plain, mirrored = (batches(dataset, augment=Augment(mirror=m)) for m in (False, True))
    turned = 0
    for job, host in plain.items():
        a, b = (to_batch(h, torch.device("cpu"), coded) for h in (host, mirrored[job]))
        for i in range(len(a.keys)):
            turn = not torch.equal(a.image[i], b.image[i])
            turned += turn
            for name, target in a.targets.items():
                assert torch.equal(target[i].flip(2) if turn else target[i], b.targets[name][i])
        assert all(torch.equal(a.noise[name], b.noise[name]) for name in a.noise)
    assert 12 < turned < 36  # of 48


def test_what_is_mirrored_depends_neither_on_workers_nor_on_ranks(dataset):
    alone = batches(dataset, augment=Augment(mirror=True), workers=1)
    ranks = [batches(dataset, augment=Augment(mirror=True), world=2, rank=r) for r in (0, 1)]
    for job, batch in (ranks[0] | ranks[1]).items():
        assert same(batch, alone[job]) and torch.equal(batch.mirrored, alone[job].mirrored)


def test_the_box_of_a_mirrored_picture_is_mirrored_with_it(pictures, monkeypatch):
    seen = stream.picture_of
    monkeypatch.setattr(
        stream, "picture_of", lambda *words: replace(seen(*words), box=(4.0, 2.0, 10.0, 8.0))
    )
    dataset = RowDataset(pictures, "train")
    plain, mirrored = (batches(dataset, augment=Augment(mirror=m)) for m in (False, True))
    found = {
        (not torch.equal(a.image[i], b.image[i]), *b.boxes[i].tolist())
        for a, b in zip(plain.values(), mirrored.values(), strict=True)
        for i in range(len(a.keys))
    }
    assert found == {(False, 4, 2, 10, 8), (True, 38, 2, 44, 8)}  # of 48 pixels


def test_a_batch_is_rgb_in_0_1_with_void_and_padding_marked(dataset, cache):
    host = batches(dataset, augment=Augment(), steps=range(1))[0, 0]
    batch = to_batch(host, torch.device("cpu"), cache)
    assert torch.equal((batch.image * 255).round().byte().permute(0, 2, 3, 1), host.image)
    assert batch.mask.dtype == torch.int64
    assert (batch.mask[~batch.inside] == 255).all()
    assert not batch.inside[:, :4].any()  # letterboxed above
    assert batch.inside[:, 4:28].all()
    assert {t.dtype for t in batch.targets.values()} == {torch.float32}
    assert torch.equal(batch.targets["inner"], host.parts["inner.value"].float())


@pytest.mark.parametrize("world", [1, 2, 3])
def test_ranks_validate_every_row_once(pictures, world):
    dataset = RowDataset(pictures, "val")
    found = [
        key
        for rank in range(world)
        for host in validation_batches(dataset, 3, rank, world, workers=1, pin=False)
        for key in host.keys
    ]
    assert sorted(found) == [dataset.read(row)[0] for row in range(len(dataset))]


def spoilt(tiny_world: Path, folder: Path, rows: tuple[int, ...]) -> RowDataset:
    """A copy of the pictures in which these rows of the first shard have one bit flipped."""
    shutil.copytree(tiny_world / "shards", folder)
    pictures = open_pictures(folder)
    shard = pictures.open(pictures.shard_ids("train")[0])
    data = bytearray(shard.path.read_bytes())
    for row in rows:
        data[shard._spans["picture"][row, 0] + 40] ^= 16
    shard.path.write_bytes(data)
    return RowDataset(open_pictures(folder), "train")


def first_keys(tiny_world: Path) -> tuple[str, ...]:
    pictures = open_pictures(tiny_world / "shards")
    return pictures.open(pictures.shard_ids("train")[0]).keys


def test_a_damaged_row_is_named_and_no_other_takes_its_place(tiny_world, tmp_path):
    dataset = spoilt(tiny_world, tmp_path / "shards", (2,))
    with pytest.raises(DamageError, match=rf"train-000000\.tar.*{first_keys(tiny_world)[2]}"):
        batches(dataset, steps=range(3))
    assert dataset.substituted == 0


def test_a_damaged_row_is_substituted_by_the_next_and_counted(tiny_world, tmp_path):
    dataset = spoilt(tiny_world, tmp_path / "shards", (2,))
    keys = [
        key
        for b in batches(dataset, steps=range(3), may_substitute=True).values()
        for key in b.keys
    ]
    assert (dataset.substituted, dataset.read_rows) == (1, 24)
    first = first_keys(tiny_world)
    assert keys.count(first[3]) == 2
    assert first[2] not in keys


def test_more_than_one_damaged_row_in_a_thousand_stops(tiny_world, tmp_path):
    dataset = spoilt(tiny_world, tmp_path / "shards", (2, 3))
    with pytest.raises(DamageError):
        dataset.read_or_substitute(2, 0, True)
    dataset.read_rows, dataset.substituted = 2998, 0
    whole = first_keys(tiny_world)[4]
    assert dataset.read_or_substitute(2, 0, True)[0] == whole  # 2 of 2999
    assert dataset.read_or_substitute(3, 0, True)[0] == whole  # 3 of 3000
    with pytest.raises(DamageError):
        dataset.read_or_substitute(3, 0, True)  # 4 of 3001


@pytest.mark.parametrize(("allowed", "most"), [(100, 11), (9, 9), (1, 8)])
def test_all_that_a_stream_holds_is_within_its_bound(dataset, monkeypatch, allowed, most):
    """In micro-batches, of which a step has 3; 8 are two steps and what 2 threads stack."""
    collate, lock, held, peak = stream.collate, threading.Lock(), [0], [0]

    def count(change: int) -> None:
        with lock:
            held[0] += change
            peak[0] = max(peak[0], held[0])

    def collating(rows, pin):
        count(2)  # as rows, and as tensors
        time.sleep(0.005)
        found = collate(rows, pin)
        weakref.finalize(found.image, count, -1)
        count(-1)
        return found

    monkeypatch.setattr(stream, "collate", collating)
    monkeypatch.setattr(stream, "_HELD_BYTES", allowed * 2 * dataset.row_bytes)
    schedule = MicroBatchSchedule(batch=6, micro_batch=2, rank=0, world=1)
    order, more = Order(rows=len(dataset), seed=0), {"augment": Augment(), "seed": 0}
    found = training_batches(dataset, order, schedule, range(6), workers=2, pin=False, **more)
    with closing(found):
        for _ in range(6):
            step = list(islice(found, 3))
            time.sleep(0.05)
            del step
    assert 3 < peak[0] <= most
    assert held[0] == 0


def test_a_stream_that_is_closed_leaves_no_thread(dataset):
    schedule, order = (
        MicroBatchSchedule(batch=8, micro_batch=4, rank=0, world=1),
        Order(rows=len(dataset), seed=0),
    )
    stream = training_batches(
        dataset, order, schedule, range(10**6), augment=Augment(), seed=0, workers=3, pin=False
    )
    next(stream)
    assert any(t.name.startswith("read-ahead") for t in threading.enumerate())
    stream.close()
    gc.collect()
    assert not any(t.name.startswith("read-ahead") for t in threading.enumerate())
