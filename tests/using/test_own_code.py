"""A user's own recipe file goes the whole way: flags, stage 2, resume, evaluation."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from stillroom.cli import recipe_from
from stillroom.errors import UserError
from stillroom.teachers.configs import RunTeacher
from stillroom.training.loop import train
from stillroom.using.evaluation import evaluate, open_data
from stillroom.using.student import load_student

HERE = Path(__file__).parent
CODE = f"{HERE / 'own_student.py'}:Small"


def words(name: str, world: Path, out: Path) -> list[str]:
    flags = {
        "data.shards": world / "shards",
        "teachers.0.path": world / "teacher",
        "run.cache": world / "cache",
        "run.out": out,
        "run.device": "cpu",
        "batch": 8,
        "micro-batch": 4,
        "epochs": 2,
        "run.evaluate-every": 1,
    }
    pairs = [(f"--{flag}", str(value)) for flag, value in flags.items()]
    return [f"{HERE / name}.py:recipe", *(word for pair in pairs for word in pair)]


def trained(name: str, world: Path, out: Path, *more: str) -> Path:
    return train(recipe_from([*words(name, world, out), *more]))


@pytest.fixture(scope="module")
def run(tiny_world, tmp_path_factory) -> Path:
    """The finished run of `own_student.py`; nobody writes into it."""
    return trained("own_student", tiny_world, tmp_path_factory.mktemp("runs"))


@pytest.mark.parametrize(
    ("name", "flags"),
    [
        ("own_student", {"--student.no-resize-logits", "--student.taps", "--terms.4.hidden"}),
        ("own_term", {"--terms.2.weight", "--terms.2.target"}),
    ],
)
def test_fields_of_ones_own_are_flags_and_nothing_warns(name, flags, capsys):
    with pytest.raises(SystemExit):
        recipe_from([f"{HERE / name}.py:recipe", "--help"])
    printed = capsys.readouterr()
    assert flags <= set(printed.out.split()) and "{fixed}" not in printed.out
    assert printed.err == ""


def test_a_term_of_ones_own_trains_a_projection_and_is_in_the_log(tiny_world, tmp_path):
    run = trained("own_term", tiny_world, tmp_path, "--terms.2.weight", "2")
    assert '"term_feature_l1"' in (run / "metrics.jsonl").read_text()
    newest = max((run / "checkpoints").iterdir())
    assert any("encoder-2>inner" in name for name in load_file(newest / "model.safetensors"))
    assert evaluate(load_student(run), open_data(load_student(run), None))["miou"] >= 0


def test_a_run_of_ones_own_student_resumes_to_the_same_weights(run, tiny_world, tmp_path):
    shutil.copytree(run, tmp_path / run.name)
    shutil.rmtree(max((tmp_path / run.name / "checkpoints").iterdir()))
    resumed = trained("own_student", tiny_world, tmp_path, "--run.resume")
    before, after = (load_file(folder / "student.safetensors") for folder in (run, resumed))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_run_folder_imports_nothing_unless_the_code_is_named_again(run):
    with pytest.raises(UserError, match=r"--code .*own_student\.py:Small"):
        load_student(run)
    student = load_student(run, CODE)
    assert student.network(torch.rand(1, 3, 32, 32)).shape == (1, 4, 32, 32)


def test_the_command_evaluates_when_the_code_is_named(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    tool = HERE.parents[1] / "tools" / "evaluate.py"
    for more, status in (([], 2), (["--code", CODE], 0)):
        command = [sys.executable, str(tool), str(tmp_path / "run"), *more]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == status, done.stderr
        assert ("mIoU" in done.stdout) == (status == 0)


def test_ones_own_student_becomes_a_teacher_when_the_code_is_named(run):
    image = torch.rand(1, 3, 32, 32)
    teacher = RunTeacher(target="own", path=str(run), taps=(("inner", "stem"),), code=CODE)
    answer = teacher.build("cpu")(image)
    assert torch.equal(answer["own"], load_student(run, CODE).network(image).detach())
    assert answer["inner"].shape == (1, 8, 8, 8)
