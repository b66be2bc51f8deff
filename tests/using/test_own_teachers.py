"""A teacher of one's own goes the whole way from a recipe file: flags, stage 1, stage 2, resume,
evaluation.
"""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from stillroom.cache.folder import Cache
from stillroom.checking.rerun import refuse_other_teachers, rerun
from stillroom.cli import recipe_from
from stillroom.errors import UserError
from stillroom.extraction.extract import cache_teacher
from stillroom.extraction.process import ProcessContext
from stillroom.pictures.dataset import open_pictures
from stillroom.recipe import Recipe
from stillroom.training.loop import train
from stillroom.using.evaluation import evaluate, open_data
from stillroom.using.student import load_student

HERE = Path(__file__).parent


@pytest.fixture
def recipe_of(tiny_world, tmp_path):
    """Reads a recipe file of this folder as a command would, over the small world's pictures."""

    def read(name: str, *more: str) -> Recipe:
        flags = {
            "data.shards": tiny_world / "shards",
            "run.cache": tmp_path / "cache",
            "run.out": tmp_path / "runs",
            "run.device": "cpu",
            "batch": 8,
            "micro-batch": 4,
            "epochs": 2,
            "run.evaluate-every": 1,
        }
        words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
        return recipe_from([place(name), *words, *more])

    return read


def place(name: str) -> str:
    file, _, function = name.partition(":")
    return f"{HERE / file}.py:{function or 'recipe'}"


def made(recipe: Recipe) -> Cache:
    return cache_teacher(recipe, ProcessContext())


def goes_the_whole_way(recipe_of, name: str, *more: str) -> Cache:
    """Cache, compare every row with the teacher, train, resume to the same weights, evaluate."""
    recipe = recipe_of(name, *more)
    cache = made(recipe)
    pictures = open_pictures(Path(recipe.data.shards))
    rows = [(shard, i) for shard in cache.shard_ids() for i in range(cache.shard_rows(shard))]
    compared, problems = rerun(cache, recipe, pictures, rows, "cpu")
    assert problems == [] and {c.target: c.num_rows for c in compared} == dict.fromkeys(
        cache.specs, len(rows)
    )
    run = train(recipe)
    before = load_file(run / "student.safetensors")
    shutil.rmtree(max((run / "checkpoints").iterdir()))
    after = load_file(train(recipe_of(name, *more, "--run.resume")) / "student.safetensors")
    assert all(torch.equal(before[n], after[n]) for n in before | after)
    assert evaluate(load_student(run), open_data(load_student(run), None))["miou"] >= 0
    return cache


@pytest.mark.parametrize(
    ("name", "flags"),
    [
        (
            "own_torch_teacher",
            {"--teachers.0.weights", "--teachers.0.outputs", "--teachers.0.mean"},
        ),
        (
            "timm_teacher:transformer",
            {"--teachers.0.model", "--teachers.0.taps", "--teachers.0.no-norm"},
        ),
        ("file_teacher", {"--teachers.0.confidence", "--teachers.1.folder"}),
    ],
)
def test_a_teachers_fields_are_flags_and_nothing_warns(name, flags, capsys):
    with pytest.raises(SystemExit):
        recipe_from([place(name), "--help"])
    printed = capsys.readouterr()
    assert flags <= set(printed.out.split()) and "{fixed}" not in printed.out
    assert printed.err == ""
    assert Path(place(name).rpartition(":")[0]).read_text().count("\n") <= 30


def test_a_module_of_ones_own_is_a_teacher(recipe_of):
    cache = goes_the_whole_way(recipe_of, "own_torch_teacher", "--gate", "off")
    assert cache.specs["shapes"].shape == (4, 32, 48) and cache.specs["inner"].shape == (8, 8, 12)
    teacher = cache.identity["targets"]["inner"]["teacher"]
    assert teacher["tensor"] == "stem" and len(teacher["state_dict_sha256"]) == 64


def test_views_at_a_smaller_size_go_the_whole_way_and_resume_to_the_same_weights(recipe_of):
    flags = ("--gate", "off", "--views.count", "3", "--data.size", "16", "32")
    cache = goes_the_whole_way(recipe_of, "own_torch_teacher", *flags)
    assert cache.specs["shapes"].shape == (4, 16, 32) and cache.specs["inner"].shape == (8, 4, 8)
    assert len(cache) == 3 * 24 + 8


def test_other_weights_of_ones_own_module_make_another_cache(recipe_of, tmp_path):
    cache = made(recipe_of("own_torch_teacher", "--gate", "off"))
    assert made(recipe_of("own_torch_teacher", "--gate", "off")).path == cache.path
    net = recipe_of("own_torch_teacher").teachers[0].build("cpu")
    state = {name: tensor + 1 for name, tensor in net._network.state_dict().items()}
    save_file(state, tmp_path / "net.safetensors")
    other = recipe_of(
        "own_torch_teacher", "--gate", "off", "--teachers.0.weights", f"{tmp_path}/net.safetensors"
    )
    assert made(other).path != cache.path
    with pytest.raises(UserError, match="weights_sha256"):
        refuse_other_teachers(cache, other)
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_stage_2_never_calls_the_factory(recipe_of, tmp_path):
    code = tmp_path / "mine.py"
    text = (HERE / "own_torch_teacher.py").read_text()
    trace = f"import pathlib\n    pathlib.Path({str(tmp_path / 'ran')!r}).touch()\n"
    code.write_text(f"{text}\n\ndef build():\n    {trace}    return Net()\n")
    flags = ("--gate", "off", "--teachers.0.factory", f"{code}:build")
    made(recipe_of("own_torch_teacher", *flags))
    (tmp_path / "ran").unlink()  # it was called
    train(recipe_of("own_torch_teacher", *flags, "--epochs", "1"))
    assert not (tmp_path / "ran").exists()
    code.write_text(code.read_text() + "# changed\n")
    with pytest.raises(UserError, match="factory_sha256"):
        train(recipe_of("own_torch_teacher", *flags, "--run.name", "other"))


@pytest.mark.parametrize(
    ("name", "shapes"),
    [
        ("timm_teacher:transformer", {"early": (64, 8, 12), "late": (64, 8, 12)}),
        ("timm_teacher:convolutional", {"inner": (48, 8, 12)}),
    ],
)
def test_a_timm_model_is_a_teacher_of_features(recipe_of, name, shapes):
    cache = goes_the_whole_way(recipe_of, name, "--gate", "off")
    assert {target: spec.shape for target, spec in cache.specs.items()} == shapes


@pytest.fixture
def files(tiny_world, tmp_path) -> tuple[str, ...]:
    """Flags that name files for every picture: its own mask, and its colours at a quarter."""
    pictures = open_pictures(tiny_world / "shards")
    for shard in map(pictures.open, pictures.shard_ids()):
        for i, key in enumerate(shard.keys):
            picture = shard.read(i)
            for name in ("masks", "features"):
                (tmp_path / name / key).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture.mask).save(tmp_path / "masks" / f"{key}.png")
            np.save(
                tmp_path / "features" / f"{key}.npy", picture.image[::4, ::4].transpose(2, 0, 1)
            )
    folders = (f"{tmp_path}/masks", f"{tmp_path}/features")
    return tuple(w for i, f in enumerate(folders) for w in (f"--teachers.{i}.folder", f))


def test_targets_in_files_are_a_teacher_that_the_gate_judges(recipe_of, files, capsys):
    cache = goes_the_whole_way(recipe_of, "file_teacher", *files)
    assert "quality gate, shapes: finite 1, dead_channels 0, miou 1" in capsys.readouterr().out
    assert cache.specs["shapes"].shape == (4, 32, 48) and cache.specs["inner"].shape == (3, 8, 12)
    assert (cache.specs["shapes"].stride, cache.specs["inner"].stride) == (1, 4)


def test_files_of_other_pictures_fail_the_gate(recipe_of, files, tmp_path):
    masks = sorted((tmp_path / "masks").rglob("*.png"))
    contents = [path.read_bytes() for path in masks]
    for path, data in zip(masks, contents[1:] + contents[:1], strict=True):
        path.write_bytes(data)
    with pytest.raises(UserError, match=r"failed the quality gate(.|\n)*mIoU 0\.[0-4]"):
        made(recipe_of("file_teacher", *files))


@pytest.mark.parametrize("flags", [("--views.count", "2"), ("--data.size", "16", "24")])
def test_files_know_whole_pictures_only_and_say_so_before_anything_is_made(
    recipe_of, files, tmp_path, flags
):
    with pytest.raises(UserError, match=r"whole pictures only(.|\n)*fix: .*--data\.size"):
        made(recipe_of("file_teacher", *files, "--gate", "off", *flags))
    assert not (tmp_path / "cache").exists()


def test_a_picture_without_a_file_is_named(recipe_of, files, tmp_path):
    lost = sorted((tmp_path / "features").rglob("*.npy"))[5]
    lost.unlink()
    with pytest.raises(UserError, match=f"no file for the picture {lost.stem}"):
        made(recipe_of("file_teacher", *files, "--gate", "off"))


def test_files_that_change_or_go_are_noticed_in_stage_2(recipe_of, files, tmp_path):
    made(recipe_of("file_teacher", *files, "--gate", "off"))
    mask = next((tmp_path / "masks").rglob("*.png"))
    before = mask.read_bytes()
    Image.new("L", (48, 32)).save(mask)
    with pytest.raises(UserError, match="files_sha256"):
        train(recipe_of("file_teacher", *files))
    mask.write_bytes(before)
    shutil.rmtree(tmp_path / "masks")
    gone = (*files[2:], "--teachers.0.folder", "masks", "--epochs", "1")
    assert (train(recipe_of("file_teacher", *gone)) / "student.json").exists()


def test_a_factory_on_the_command_line_that_is_not_there_is_refused(recipe_of):
    with pytest.raises(UserError, match=r"no\.py does not exist(.|\n)*--teachers\.N\.factory"):
        recipe_of("own_torch_teacher", "--teachers.0.factory", "no.py:Net")
