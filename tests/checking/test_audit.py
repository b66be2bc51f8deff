"""The audit knows which answers may be transformed, and stage 2 mirrors those alone."""

import math
import runpy
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState

from stillroom.cache.audit_file import AUDIT_FILE, MOST_ERROR, Equivariance, read_audit, write_audit
from stillroom.cache.folder import open_cache
from stillroom.checking.audit import run_audit, transformed, views_of
from stillroom.checking.check import check_cache
from stillroom.checking.run_check import CheckOptions, run_check
from stillroom.errors import DamageError, UserError
from stillroom.extraction.extract import cache_teacher
from stillroom.extraction.process import ProcessContext
from stillroom.jsonfile import read_json, write_json
from stillroom.losses import FeatureMSE
from stillroom.pictures.loader import image_tensor
from stillroom.recipe import Augment
from stillroom.students.definitions import UNetStudent
from stillroom.teachers.own_configs import FileTeacher
from stillroom.teachers.torch import BuiltTorchTeacher
from stillroom.training.checkpoint import save_student
from stillroom.training.find_cache import find_cache
from stillroom.types import View

ROOT = Path(__file__).resolve().parents[2]
TRANSFORMS = {
    "control", "mirror", "crop on the grid", "crop off the grid", "scale 0.75", "scale 1.5",
}  # fmt: skip


@pytest.fixture
def call(monkeypatch, capsys):
    """Run a command of ours in this process; returns status, stdout, stderr."""

    def calling(script: str, *words: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", [script, *map(str, words)])
        capsys.readouterr()
        AcceleratorState._reset_state(True)
        status = 0
        try:
            runpy.run_path(str(ROOT / script), run_name="__main__")
        except SystemExit as left:
            status = int(left.code or 0)
        out, err = capsys.readouterr()
        return status, out, err

    yield calling
    AcceleratorState._reset_state(True)


@pytest.fixture
def words_of(tiny_world, tmp_path):
    """The recipe `tiny` with a teacher of random weights, or of random symmetric ones.

    Convolutions that are symmetric in x, even halvings and copies know no left and right.
    """

    def words(symmetric: bool) -> list[str]:
        config = UNetStudent(width=4, depth=2, classes=4)
        torch.manual_seed(1)
        network = config.build()
        for module in network.modules():
            if symmetric and isinstance(module, torch.nn.Conv2d):
                module.weight.data += module.weight.data.flip(3)
        save_student(tmp_path / "teacher", network, {"network": config.architecture()})
        found = ["tiny", "--data.shards", tiny_world / "shards", "--gate", "off"]
        found += ["--teachers.0.path", tmp_path / "teacher", "--run.cache", tmp_path / "cache"]
        found += ["--run.device", "cpu", "--batch", 8, "--micro-batch", 4, "--epochs", 1]
        found += ["--student.width", 4, "--student.depth", 2, "--run.out", tmp_path / "runs"]
        return list(map(str, found))

    return words


@pytest.mark.parametrize("symmetric", [True, False])
def test_stage_2_mirrors_what_a_symmetric_network_said_and_nothing_else(
    call, words_of, tmp_path, symmetric
):
    words = words_of(symmetric)
    assert call("tools/cache_teacher.py", *words)[0] == 0
    (cache,) = (tmp_path / "cache").iterdir()
    status, _, err = call("train_student.py", *words, "--augment.mirror")
    assert status == 2 and "no audit of shapes, inner" in err
    assert f"stillroom check-cache {cache} RECIPE --audit" in err and "--views.count 4" in err
    status, out, err = call("tools/check_cache.py", cache, *words, "--audit", "6")
    assert status == 0, err
    lines = [line.split() for line in out.splitlines() if " mirror " in line]
    assert [line[0] for line in lines] == ["shapes", "inner"]
    assert [line[-2:] == ["not", "pass"] for line in lines] == [not symmetric] * 2
    assert check_cache(cache).problems == ()
    status, _, err = call("train_student.py", *words, "--augment.mirror")
    assert status == (0 if symmetric else 2), err
    if not symmetric:
        assert "--views.count 4" in err and "--audit" not in err and "shapes 0." in err


def test_a_map_is_transformed_as_its_picture_is():
    generator = torch.Generator().manual_seed(0)
    target, size = torch.randn(1, 3, 8, 12, generator=generator), (32, 48)
    views = views_of(size, (8, 12))
    assert views.keys() == TRANSFORMS
    found = {name: transformed(target, view, size) for name, view in views.items()}
    assert torch.allclose(found["control"], target, atol=1e-5)
    assert torch.allclose(found["mirror"], target.flip(3), atol=1e-5)
    # an eighth of the map, or a cell at least
    assert views["crop on the grid"] == View(x0=4, y0=4, x1=52, y1=36)
    moved = target[..., 1:, 1:]
    assert torch.allclose(found["crop on the grid"][..., :7, :11], moved, atol=1e-5)
    # half a cell further: the mean of four
    assert views["crop off the grid"] == View(x0=6, y0=6, x1=54, y1=38)
    mean = (moved[..., :-1, :] + moved[..., 1:, :]) / 2
    mean = (mean[..., :-1] + mean[..., 1:]) / 2
    assert torch.allclose(found["crop off the grid"][..., :6, :10], mean, atol=1e-5)


@pytest.mark.parametrize("transform", ["scale 0.75", "scale 1.5"])
def test_a_scaled_map_shows_the_middle_of_the_picture(transform):
    """Of a ramp, bilinear interpolation is exact: each cell says where its centre lies."""
    y, x = torch.meshgrid(torch.arange(8) + 0.5, torch.arange(12) + 0.5, indexing="ij")
    view = views_of((32, 48), (8, 12))[transform]
    scale = float(transform.split()[1])
    assert (view.x0 + view.x1, view.y0 + view.y1) == (48, 32)
    assert (view.x1 - view.x0, view.y1 - view.y0) == (48 * scale, 32 * scale)
    found = transformed(torch.stack([y, x])[None], view, (32, 48))[0, :, 2:6, 2:10]
    assert torch.allclose(found[0], 4 + scale * (y - 4)[2:6, 2:10], atol=1e-4)
    assert torch.allclose(found[1], 6 + scale * (x - 6)[2:6, 2:10], atol=1e-4)


def test_crops_lie_on_the_grid_of_the_network_and_half_a_cell_off_it():
    for size, stride in ((256, 8), (640, 1), (512, 32), (128, 16)):
        views = views_of((size, size), (size // stride,) * 2)
        on, off = views["crop on the grid"].x0, views["crop off the grid"].x0
        assert on == size // 8 and off - on == max(1, stride // 2)
    # packed larger than the teachers see it: a cell is 10 pixels wide
    assert views_of((640, 640), (64, 64))["crop on the grid"].x0 == 80
    # four cells are no whole pixels, three are
    assert views_of((96, 96), (36, 36))["crop on the grid"].x0 == 8


def test_the_figures_are_those_that_one_computes_by_hand(spoilt, spoilt_recipe, pictures):
    cache = open_cache(spoilt)
    rows = [(shard, i) for shard in cache.shard_ids()[:2] for i in (1, 6)]
    audit = run_audit(cache, spoilt_recipe, pictures, rows, "cpu")
    assert read_audit(cache) == audit and audit.rows == 4
    teacher = spoilt_recipe.teachers[0].build("cpu")
    images = [image_tensor(pictures.open(s).read(i).image)[None] for s, i in rows]
    for name, shown in (("shapes", slice(4, 28)), ("inner", slice(1, 7))):  # without the padding
        flipped = [teacher(i)[name].flip(3)[0, :, shown].numpy().astype(float) for i in images]
        answers = [teacher(i.flip(3))[name][0, :, shown].numpy().astype(float) for i in images]
        a, b = np.stack(flipped, 1), np.stack(answers, 1)  # (c, rows, y, x)
        spread = ((a - a.mean((1, 2, 3), keepdims=True)) ** 2).sum()
        found = audit.targets[name]
        assert found.keys() == TRANSFORMS
        error = math.sqrt(((a - b) ** 2).sum() / spread)
        assert found["mirror"].error == pytest.approx(error, rel=1e-3)
        cosine = (a * b).sum() / math.sqrt((a * a).sum() * (b * b).sum())
        assert found["mirror"].cosine == pytest.approx(cosine, abs=1e-5)
        assert found["control"].error < 1e-4 < MOST_ERROR < found["mirror"].error
        assert found["control"].passes and not found["mirror"].passes


@pytest.fixture
def passing(spoilt):
    """A cache with an audit in which everything passes."""
    cache = open_cache(spoilt)
    figures = {"mirror": Equivariance(error=0.01, cosine=0.9999)}
    write_audit(cache, 16, {"shapes": figures, "inner": figures})
    return cache


def test_stage_2_asks_the_audit_of_the_targets_that_it_reads(passing, spoilt_recipe, pictures):
    recipe = replace(spoilt_recipe, augment=Augment(mirror=True))
    assert find_cache(recipe, pictures, verbose=False) is not None
    audit = read_audit(passing)
    assert audit is not None
    write_audit(passing, 16, {"shapes": audit.targets["shapes"]})
    with pytest.raises(UserError, match="no audit of inner in"):
        find_cache(recipe, pictures, verbose=False)
    logits = tuple(term for term in recipe.terms if term.needs.target != "inner")
    find_cache(replace(recipe, terms=logits), pictures, verbose=False)
    just = {"mirror": Equivariance(error=MOST_ERROR * 1.01, cosine=0.999)}
    write_audit(passing, 16, {"shapes": audit.targets["shapes"], "inner": just})
    with pytest.raises(UserError, match=r"inner 0\.05") as refused:
        find_cache(recipe, pictures, verbose=False)
    assert "shapes 0" not in str(refused.value)


def test_an_audit_of_another_cache_is_not_believed(
    passing, caches, spoilt_recipe, pictures, tmp_path
):
    stranger = open_cache(shutil.copytree(caches["tar"], tmp_path / "other"))
    write_audit(stranger, 16, {"shapes": {}})
    shutil.copy(stranger.path / AUDIT_FILE, passing.path / AUDIT_FILE)
    recipe = replace(spoilt_recipe, augment=Augment(mirror=True))
    with pytest.raises(DamageError, match="another cache") as refused:
        find_cache(recipe, pictures, verbose=False)
    assert stranger.fingerprint in str(refused.value) and "--audit" in str(refused.value)
    find_cache(spoilt_recipe, pictures, verbose=False)  # nobody asks it here
    (problem,) = check_cache(passing.path).problems
    assert problem.kind == "audit" and "another cache" in problem.what


def test_a_damaged_audit_is_found_and_a_repair_takes_it_away(call, passing):
    path = passing.path / AUDIT_FILE
    body = read_json(path)
    path.write_bytes(path.read_bytes().replace(b"0.01", b"0.02"))
    status, out, _ = call("tools/check_cache.py", passing.path)
    assert status == 1 and out.startswith("audit: ") and "--repair" in out
    status, out, _ = call("tools/check_cache.py", passing.path, "--repair")
    assert status == 0 and f"repaired: {path} was removed" in out and not path.exists()
    write_json(path, body | {"rows": -1})
    assert [p.kind for p in check_cache(passing.path).problems] == ["audit"]


def test_files_are_no_answer_to_pixels_and_left_out(spoilt_recipe, pictures, tmp_path):
    for shard in pictures.shard_ids():
        for key in pictures.open(shard).keys:
            path = tmp_path / "files" / f"{key}.npy"
            path.parent.mkdir(parents=True, exist_ok=True)
            np.save(path, np.arange(12, dtype=np.float32).reshape(1, 3, 4))
    files = FileTeacher(target="drawn", folder=str(tmp_path / "files"), kind="features")
    run = replace(spoilt_recipe.run, cache=str(tmp_path / "mixed"))
    recipe = replace(spoilt_recipe, teachers=(*spoilt_recipe.teachers, files), run=run)
    cache = cache_teacher(recipe, ProcessContext())
    result = run_check(cache.path, recipe, None, CheckOptions(audit=2))
    assert result.audit is not None and result.audit.targets.keys() == {"shapes", "inner"}
    assert result.notes == ("drawn is not audited: its teacher looks at no pixels",)
    terms = (FeatureMSE(target="drawn", tap="encoder.2", hidden=8, weight=0.1),)
    with pytest.raises(UserError, match="no audit of drawn"):
        find_cache(replace(recipe, terms=terms, augment=Augment(mirror=True)), pictures, False)


@pytest.mark.parametrize(
    ("words", "expected"),
    [(["--audit"], "--audit needs the recipe"), (["--audit", "0"], "--audit 0")],
)
def test_an_audit_that_cannot_be_is_refused(call, spoilt, words, expected):
    status, _, err = call("tools/check_cache.py", spoilt, *words)
    assert status == 2 and expected in err
    assert not (spoilt / AUDIT_FILE).exists()


def test_an_answer_that_is_not_finite_is_named_and_no_audit_is_kept(
    spoilt, spoilt_recipe, pictures, monkeypatch
):
    answer = BuiltTorchTeacher.__call__

    def answering(self, image, **options):
        return {n: v / (v != v.amax()) for n, v in answer(self, image, **options).items()}

    monkeypatch.setattr(BuiltTorchTeacher, "__call__", answering)
    cache = open_cache(spoilt)
    with pytest.raises(UserError, match="not finite"):
        run_audit(cache, spoilt_recipe, pictures, [(cache.shard_ids()[0], 0)], "cpu")
    assert read_audit(cache) is None
