"""What a new user does wrong on the way through README is answered with one clear paragraph, which
stands in mistakes.txt word by word, and with the status of a mistake or a failure.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from stillroom.__main__ import main
from stillroom.recipes import RECIPES

TABLE = (Path(__file__).parent / "mistakes.txt").read_text()
# what a person did, the command, its status, and all that stands on stderr
MISTAKES = re.findall(r"^# (.+)\n\$ (.+)\n\[(\d)\]\n((?:.+\n)+)", TABLE, re.M)
# what a command that fails has written by then
REPORTS = {"looked", "predicted"}


@pytest.fixture(scope="module")
def world(load_module, tmp_path_factory):
    """The module mistakes_world.py; its folder is the working folder."""
    made = load_module("mistakes_world.py")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("user"))
        made.make_world(load_module("teachers/make_onnx.py"))
        yield made


def there() -> set[Path]:
    return {path for path in Path().rglob("*") if path.parts[0] not in REPORTS}


def plain(text: str) -> str:
    """Without what is another at each run, or with each recipe."""
    text = re.sub(r"(tiny-)[0-9a-f]{8}|[0-9a-f]{12}(?=\.\.\.)", r"\1HASH", text)
    return text.replace(", ".join(RECIPES), "RECIPES")


@pytest.mark.parametrize(
    ("what", "command", "status", "text"), MISTAKES, ids=[row[0] for row in MISTAKES]
)
def test_a_mistake_is_answered_word_by_word_and_leaves_nothing(
    world, what, command, status, text, monkeypatch, capsys
):
    before = there()
    monkeypatch.setattr(sys, "argv", ["stillroom", *world.words_of(command)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert plain(capsys.readouterr().err) == text
    assert ended.value.code == int(status)
    assert there() == before


def test_the_table_has_the_likeliest_of_every_command():
    assert len(MISTAKES) == TABLE.count("\n$ ") > 60
    commands = {command.split()[0] for _, command, _, _ in MISTAKES}
    assert commands >= {"check-data", "shards", "plan", "cache", "check-cache", "train"}
    assert commands >= {"evaluate", "compare", "experiments", "predict", "export", "inspect"}


@pytest.mark.parametrize("buffered", ["", "1"])
def test_a_command_whose_reader_has_gone_ends_silently(tmp_path, buffered):
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "stillroom", "--help"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONUNBUFFERED": buffered},
        stdout=writer,
        stderr=subprocess.PIPE,
        check=False,
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")
