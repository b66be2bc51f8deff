"""Stage 1 stores what the teacher says, whole shards only, whatever ends it."""

import errno
import gc
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import stillroom.extraction.encode as encoding
import stillroom.extraction.extract as extract
from stillroom.cache.folder import Cache, open_cache
from stillroom.cache.writer import ShardWriter
from stillroom.errors import DamageError, FailureError, Stopped, UserError
from stillroom.extraction.extract import cache_teacher
from stillroom.extraction.process import ProcessContext
from stillroom.pictures.dataset import open_pictures
from stillroom.pictures.loader import image_tensor
from stillroom.pictures.views import Views
from stillroom.recipe import Recipe
from stillroom.teachers.configs import RunTeacher
from stillroom.types import ShardId, View

SHARDS = (*(ShardId("train", number) for number in range(3)), ShardId("val", 0))


@pytest.fixture
def recipe(tiny_recipe, tmp_path) -> Recipe:
    """The recipe `tiny` with a cache of its own and two batches and a half a shard."""
    run = replace(tiny_recipe.run, cache=str(tmp_path / "cache"))
    return replace(tiny_recipe, run=run, batch=3, micro_batch=3)


def cache_of(recipe: Recipe) -> Cache:
    (folder,) = Path(recipe.run.cache).iterdir()
    return open_cache(folder)


def leftovers(cache: Cache) -> list[Path]:
    return list((cache.path / "tmp").iterdir())


def rows(cache: Cache) -> dict[str, dict[str, np.ndarray]]:
    found = {}
    for shard in cache.shard_ids():
        with cache.reader(shard) as reader:
            found |= {row.key: reader.read(i) for i, row in enumerate(reader.rows)}
    return found


def equal(one: Cache, two: Cache) -> bool:
    a, b = rows(one), rows(two)
    return a.keys() == b.keys() and all(
        np.array_equal(a[key][part], b[key][part]) for key in a for part in a[key]
    )


def threads() -> list[str]:
    gc.collect()
    ours = ("read-ahead", "compress", "publish")
    return [t.name for t in threading.enumerate() if t.name.startswith(ours)]


@pytest.fixture
def signalled(monkeypatch):
    """Makes stage 1 get a signal while it answers its n-th batch."""

    def arrange(batch: int, number: int = signal.SIGTERM) -> list[tuple[str, ...]]:
        answer, seen = extract.run_teachers, []

        def answering(teachers, pairs, device):
            seen.append(tuple(row.key for row, _ in pairs))
            if len(seen) == batch:
                os.kill(os.getpid(), number)
            return answer(teachers, pairs, device)

        monkeypatch.setattr(extract, "run_teachers", answering)
        return seen

    return arrange


def test_every_row_is_what_the_teacher_says_of_the_picture_of_that_key(recipe):
    cache = cache_teacher(recipe, ProcessContext())
    assert cache.is_complete
    teacher = recipe.teachers[0].build("cpu")
    stored, pictures = rows(cache), open_pictures(Path(recipe.data.shards))
    assert len(stored) == 32
    with cache.reader(SHARDS[0]) as reader:
        assert {row.view for row in reader.rows} == {View(x0=0, y0=0, x1=48, y1=32)}
    for shard in pictures.shard_ids():
        opened = pictures.open(shard)
        for i, key in enumerate(opened.keys):
            said = teacher(image_tensor(opened.read(i).image)[None])
            for name in ("shapes", "inner"):
                found = torch.from_numpy(stored[key][f"{name}.value"])
                assert torch.equal(found, said[name][0].half()) or torch.allclose(
                    found.float(), said[name][0], rtol=2e-3, atol=1e-3
                )


def test_batches_never_straddle_shards_and_their_size_changes_nothing_stored(recipe, signalled):
    seen = signalled(batch=-1)
    one = cache_teacher(recipe, ProcessContext())
    assert [len(keys) for keys in seen] == [3, 3, 2] * 4
    other = replace(recipe, micro_batch=8, batch=8, run=replace(recipe.run, cache=recipe.run.out))
    two = cache_teacher(other, ProcessContext())
    assert one.fingerprint == two.fingerprint
    for (_, a), (_, b) in zip(sorted(rows(one).items()), sorted(rows(two).items()), strict=True):
        assert all(np.allclose(a[part], b[part], rtol=2e-3, atol=1e-3) for part in a)


def test_statistics_and_provenance_are_kept_with_a_shard(recipe):
    cache = cache_teacher(recipe, ProcessContext())
    with cache.reader(SHARDS[1]) as reader:
        for i in range(len(reader)):
            value = reader.read(i)["shapes.value"].astype(np.float32)
            low, high = (
                getattr(reader.shard_index.statistics["shapes"], name)[i] for name in ("min", "max")
            )
            assert low == pytest.approx(value.min(), rel=1e-3)
            assert high == pytest.approx(value.max(), rel=1e-3)
            shifted = np.exp(value - value.max(0))
            wanted = (shifted / shifted.sum(0)).max(0).mean()
            assert reader.shard_index.statistics["shapes"].confidence[i] == pytest.approx(
                wanted, abs=1e-3
            )
        assert set(reader.shard_index.statistics["shapes"].finite) == {1.0}
        assert set(reader.shard_index.statistics["inner"].confidence) == {None}
        found = reader.provenance
    assert found["device"] == "cpu"
    assert found["providers"] == ["torch"]
    assert found["versions"]["torch"] == torch.__version__


def test_one_channels_confidence_is_in_the_likelier_of_two_classes():
    logits = torch.tensor([[[[3.0, -3.0]]], [[[0.0, 100.0]]]])  # b 1 1 2
    first, second = encoding._statistics(logits, "logits")
    p = 1 / (1 + np.exp(-3.0))
    assert first == pytest.approx((-3.0, 3.0, 1.0, p, 0.0)) and second.confidence == 0.75


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_one_value_that_is_not_finite_shows_in_its_rows_figures(bad):
    said = torch.zeros(2, 3, 8, 10)
    said[1, 0, 5, 5] = bad
    whole, holed = encoding._statistics(said, "features")
    assert whole == (0, 0, 1, None, 0)
    assert holed.finite == 239 / 240 and not np.isfinite(holed.high)


def test_a_shard_that_is_too_large_is_told_with_the_rows_that_fit(recipe, capsys):
    row_bytes = 2 * (4 * 32 * 48 + 16 * 8 * 12)
    small = replace(recipe, run=replace(recipe.run, shard_limit_gb=(3.5 * row_bytes) / 1e9))
    cache_teacher(small, ProcessContext())
    assert "--shard-rows 3 " in capsys.readouterr().out
    cache_teacher(replace(small, views=Views(count=3)), ProcessContext())
    assert "--shard-rows 1 " in capsys.readouterr().out  # pictures, of three rows each
    run = replace(recipe.run, cache=recipe.run.out, shard_limit_gb=8 * row_bytes / 1e9)
    cache_teacher(replace(recipe, run=run), ProcessContext())
    assert "--shard-rows" not in capsys.readouterr().out
    run = replace(recipe.run, cache=f"{recipe.run.cache}2", shard_limit_gb=0.5 * row_bytes / 1e9)
    cache_teacher(replace(recipe, run=run), ProcessContext())
    assert "--shard-rows 1 " in capsys.readouterr().out  # no shard has less than one row


def test_the_bar_counts_the_shards_and_says_how_large_a_row_is(recipe, capsys):
    cache = cache_teacher(recipe, ProcessContext())
    said = capsys.readouterr().err
    megabytes = cache.shard_bytes(SHARDS[-1]) / 8 / 1e6
    assert f"4/4 shards, {megabytes:.3g} MB/row" in said
    assert said.count("\n") == 1  # no terminal: no bar that is drawn again, a line every 30 s
    assert "\r" not in said


def test_what_a_teacher_says_of_its_weights_is_printed_once(recipe, monkeypatch, capsys):
    build = RunTeacher.build

    def reporting(config, device):
        built = build(config, device)
        built.report = "teacher.pth: 'model.' before each of 9 names was dropped"
        return built

    monkeypatch.setattr(RunTeacher, "build", reporting)
    cache_teacher(recipe, ProcessContext())
    assert capsys.readouterr().out.count("'model.' before each of 9 names") == 1


def test_told_to_stop_in_a_shard_it_leaves_no_part_of_it_and_a_rerun_goes_on(recipe, signalled):
    handler = signal.getsignal(signal.SIGTERM)
    seen = signalled(batch=5)  # the second of the second shard
    with pytest.raises(Stopped, match="train-000001 was not finished") as stopped:
        cache_teacher(recipe, ProcessContext())
    assert stopped.value.exit_code == 75
    assert len(seen) == 5
    cache = cache_of(recipe)
    assert cache.missing() == SHARDS[1:]
    assert leftovers(cache) == []
    assert threads() == []
    assert signal.getsignal(signal.SIGTERM) is handler
    assert cache_teacher(recipe, ProcessContext()).is_complete
    assert len(seen) == 5 + 9  # the first shard was not made again


def test_the_command_ends_with_75_when_it_is_told_to_stop(recipe):
    code = (
        "import os, signal, sys\n"
        "import stillroom.extraction.extract as extract\n"
        "from stillroom.cli import recipe_from, run_command\n"
        "from stillroom.extraction.process import ProcessContext\n"
        "encode, seen = extract.encode, []\n"
        "def encoding(*batch):\n"
        "    seen.append(1)\n"
        "    if len(seen) == 4: os.kill(os.getpid(), signal.SIGTERM)\n"
        "    return encode(*batch)\n"
        "extract.encode = encoding\n"
        "run_command(lambda: extract.cache_teacher(recipe_from(), ProcessContext()))\n"
    )
    words = ["tiny", "--data.shards", recipe.data.shards, "--run.cache", recipe.run.cache]
    words += ["--teachers.0.path", recipe.teachers[0].path, "--gate", "off"]
    words += ["--batch", "3", "--micro-batch", "3"]
    done = subprocess.run(
        [sys.executable, "-c", code, *words],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 75, done.stderr
    assert "told to stop" in done.stderr
    assert "Traceback" not in done.stderr
    assert cache_of(recipe).missing() == SHARDS[1:]
    assert leftovers(cache_of(recipe)) == []


@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_full_disk_is_told_in_words_and_leaves_nothing(recipe, monkeypatch, batch_size):
    append = ShardWriter.append_frames
    done = []

    def full(self, *row):
        done.append(row)
        if len(done) == 10:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        append(self, *row)

    monkeypatch.setattr(ShardWriter, "append_frames", full)
    recipe = replace(recipe, batch=batch_size, micro_batch=batch_size)
    with pytest.raises(FailureError, match=r"train-000001(.|\n)*No space left on device"):
        cache_teacher(recipe, ProcessContext())
    cache = cache_of(recipe)
    assert cache.missing() == SHARDS[1:]
    assert leftovers(cache) == []
    assert threads() == []
    monkeypatch.setattr(ShardWriter, "append_frames", append)
    assert cache_teacher(recipe, ProcessContext()).is_complete


def test_a_disk_that_is_full_at_the_very_end_of_a_shard_leaves_nothing(recipe, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(ShardWriter, "_write_shard_index", full)
    with pytest.raises(FailureError, match="No space left on device"):
        cache_teacher(recipe, ProcessContext())
    assert cache_of(recipe).missing() == SHARDS
    assert leftovers(cache_of(recipe)) == []


def contents(cache: Cache) -> dict[str, bytes]:
    """The bytes of every file of every shard but shard.json, which says when it was made."""
    paths = (path for path in cache.path.glob("*-*/**/*") if path.is_file())
    kept = {path for path in paths if path.name != "shard.json"}
    return {str(path.relative_to(cache.path)): path.read_bytes() for path in kept}


@pytest.mark.parametrize("body", ["zarr", "tar"])
def test_shards_are_bit_identical_however_many_threads_compress(recipe, monkeypatch, body):
    compress, names = ShardWriter.compress, set()

    def unevenly(self, row, parts):
        names.add(threading.current_thread().name)
        time.sleep(0.002 * (len(row.key) + int(row.key[-1])) % 3)  # not in order
        return compress(self, row, parts)

    monkeypatch.setattr(ShardWriter, "compress", unevenly)
    caches = []
    for workers in (1, 4):
        run = replace(recipe.run, cache=f"{recipe.run.cache}-{workers}", workers=workers)
        caches.append(cache_teacher(replace(recipe, run=run, body=body), ProcessContext()))
    one, four = caches
    assert len(names) == 4 and all(name.startswith("compress") for name in names)
    assert contents(one) == contents(four) and len(contents(one)) == (20 if body == "zarr" else 4)
    for shard in SHARDS:
        with one.reader(shard) as a, four.reader(shard) as b:
            for part in ("columns", "spans", "files", "statistics"):
                assert getattr(a.shard_index, part) == getattr(b.shard_index, part)


@pytest.fixture
def in_the_next(monkeypatch):
    """Makes the second shard's publication wait until the teachers answer the third's first batch,
    and then either of them raise.
    """

    def arrange(published: BaseException | None, answered: BaseException | None) -> None:
        write, answer = ShardWriter._write_shard_index, extract.run_teachers
        begun, seen = threading.Event(), []

        def writing(self, *words):
            if self._spec.shard_id == SHARDS[1]:
                assert threading.current_thread().name.startswith("publish")
                assert begun.wait(20), "the teachers waited for the publication"
                if published is not None:
                    raise published
            write(self, *words)

        def answering(teachers, pairs, device):
            seen.append(1)
            if len(seen) == 7:
                begun.set()
                if answered is not None:
                    raise answered
            return answer(teachers, pairs, device)

        monkeypatch.setattr(ShardWriter, "_write_shard_index", writing)
        monkeypatch.setattr(extract, "run_teachers", answering)

    return arrange


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    ("failure", "kind", "said"),
    [
        (FULL, FailureError, r"shard train-000001 could not be made: the disk of (.|\n)*No space"),
        (DamageError("train-000001 was not read back"), DamageError, "train-000001 was not read"),
    ],
)
def test_a_publication_that_fails_while_the_next_shard_is_made_ends_stage_1(
    recipe, in_the_next, monkeypatch, failure, kind, said
):
    in_the_next(failure, None)
    with pytest.raises(kind, match=said):
        cache_teacher(recipe, ProcessContext())
    cache = cache_of(recipe)
    assert cache.missing() == SHARDS[1:]
    assert leftovers(cache) == []
    assert threads() == []
    monkeypatch.undo()
    assert cache_teacher(recipe, ProcessContext()).is_complete


def test_what_is_being_published_is_published_though_the_next_shard_fails(recipe, in_the_next):
    in_the_next(None, UserError("the teacher cannot"))
    with pytest.raises(UserError, match="the teacher cannot"):
        cache_teacher(recipe, ProcessContext())
    assert cache_of(recipe).missing() == SHARDS[2:]
    assert leftovers(cache_of(recipe)) == []
    assert threads() == []


def test_an_interrupt_does_not_wait_for_what_is_being_published(recipe, monkeypatch):
    write, answer = ShardWriter._write_shard_index, extract.run_teachers
    begun, go_on = threading.Event(), threading.Event()

    def writing(*words):
        begun.set()
        assert go_on.wait(20)
        write(*words)

    def answering(teachers, pairs, device):
        if pairs[0][0].key in open_pictures(recipe.data.shards).open(SHARDS[1]).keys:
            assert begun.wait(20)
            raise KeyboardInterrupt
        return answer(teachers, pairs, device)

    monkeypatch.setattr(ShardWriter, "_write_shard_index", writing)
    monkeypatch.setattr(extract, "run_teachers", answering)
    with pytest.raises(KeyboardInterrupt):
        cache_teacher(recipe, ProcessContext())
    assert threads() == ["publish_0"]  # a command ends with it under way, as if killed
    go_on.set()
    next(t for t in threading.enumerate() if t.name == "publish_0").join(20)
    assert cache_of(recipe).missing() == SHARDS[1:]


def test_a_slow_disk_holds_two_shards_and_three_batches_at_most(recipe, monkeypatch):
    write, append = ShardWriter._write_shard_index, ShardWriter.append_frames
    encode, begun, done, folders, waiting = extract.encode, [], [], [], []

    def encoding(cache, pairs, targets):
        folders.append(len(leftovers(cache)))
        begun.extend(pairs)
        waiting.append(len(begun) - len(done))
        return encode(cache, pairs, targets)

    def appending(*words):
        time.sleep(0.005)
        append(*words)
        done.append(words)

    def writing(*words):
        time.sleep(0.1)
        write(*words)

    monkeypatch.setattr(extract, "encode", encoding)
    monkeypatch.setattr(ShardWriter, "append_frames", appending)
    monkeypatch.setattr(ShardWriter, "_write_shard_index", writing)
    cache_teacher(replace(recipe, batch=1, micro_batch=1), ProcessContext())
    assert max(folders) == 2
    assert max(waiting) == 3


def test_an_error_of_the_teacher_is_not_hidden_by_a_full_queue(recipe, monkeypatch):
    def broken(teachers, batch, device):
        raise UserError("the teacher cannot")

    monkeypatch.setattr(extract, "run_teachers", broken)
    with pytest.raises(UserError, match="the teacher cannot"):
        cache_teacher(recipe, ProcessContext())
    assert threads() == []


def test_a_damaged_picture_stops_stage_1_and_is_named(recipe, tiny_world, tmp_path, flip_picture):
    shutil.copytree(tiny_world / "shards", tmp_path / "shards")
    pictures = open_pictures(tmp_path / "shards")
    flip_picture(pictures.open(SHARDS[2]), 4)
    damaged = pictures.open(SHARDS[2]).keys[4]
    spoilt = replace(recipe, data=replace(recipe.data, shards=str(tmp_path / "shards")))
    with pytest.raises(DamageError, match=rf"train-000002\.tar.*{damaged}"):
        cache_teacher(spoilt, ProcessContext())
    assert cache_of(spoilt).missing() == SHARDS[2:]
    assert threads() == []


@pytest.mark.parametrize("harm", ["record", "cut", "gone"])
def test_a_damaged_shard_is_set_aside_and_made_again(recipe, capsys, harm):
    cache = cache_teacher(recipe, ProcessContext())
    before = rows(cache)
    folder = cache.path / "train-000001.zarr"
    file = folder / "shard.json"
    if harm != "record":
        file = next(path for path in folder.rglob("*") if path.is_file() and "c" in path.parts)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    if harm == "gone":
        file.unlink()
    else:
        file.write_bytes(data if harm == "record" else data[:-1])
    capsys.readouterr()
    again = cache_teacher(recipe, ProcessContext())
    assert "damaged shard was set aside" in capsys.readouterr().out
    assert again.is_complete
    after = rows(again)
    assert all(np.array_equal(before[k][p], after[k][p]) for k in before for p in before[k])
    assert len(list((cache.path / "quarantine").glob("*.json"))) == 1


def test_a_complete_cache_is_not_touched(recipe, signalled):
    cache = cache_teacher(recipe, ProcessContext())
    stamps = {path: path.stat().st_mtime_ns for path in cache.path.rglob("*") if path.is_file()}
    seen = signalled(batch=-1)
    cache_teacher(recipe, ProcessContext())
    assert seen == []
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in stamps.items())


@pytest.mark.parametrize("world", [1, 2, 3, 5])
def test_each_rank_makes_its_own_shards_first_and_then_all_that_are_missing(
    recipe, monkeypatch, world
):
    made = {}
    for rank in range(world):
        monkeypatch.setattr(
            extract,
            "_make_shard",
            lambda job, shard, *_, r=rank: made.setdefault(r, []).append(shard),
        )
        monkeypatch.setattr(Cache, "shard_bytes", lambda *_: 0)
        cache_teacher(recipe, ProcessContext(rank=rank, world=world))
    for rank, order in made.items():
        own = SHARDS[rank::world]
        assert tuple(order[: len(own)]) == own
        assert sorted(order) == list(SHARDS)  # each once
    assert sorted(s for r in made for s in SHARDS[r::world]) == list(SHARDS)


def test_two_at_once_make_every_shard_whole(recipe, tiny_recipe):
    errors = []

    def one(rank):
        try:
            cache_teacher(recipe, ProcessContext(rank=rank, world=2))
        except BaseException as error:
            errors.append(error)

    process = [threading.Thread(target=one, args=(rank,)) for rank in (0, 1)]
    for thread in process:
        thread.start()
    for thread in process:
        thread.join()
    assert errors == []
    cache = cache_of(recipe)
    assert cache.is_complete
    assert leftovers(cache) == []
    alone = replace(recipe, run=replace(recipe.run, cache=tiny_recipe.run.out))
    assert equal(cache, cache_teacher(alone, ProcessContext()))


def test_without_a_teacher_there_is_nothing_to_cache(recipe):
    terms = tuple(term for term in recipe.terms if term.needs.target is None)
    with pytest.raises(UserError, match="no teacher"):
        cache_teacher(replace(recipe, teachers=(), codec={}, terms=terms), ProcessContext())
