"""One command for everything: `stillroom NAME`, installed or from a checkout."""

import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from stillroom.__main__ import COMMANDS, main

ROOT = Path(__file__).resolve().parents[1]


def said(monkeypatch, capsys, *words: str) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["stillroom", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    printed = capsys.readouterr()
    return int(ended.value.code), printed.out, printed.err


def test_every_command_has_a_module_and_a_script_of_a_checkout():
    scripts = [*(ROOT / "tools").glob("*.py"), ROOT / "train_student.py"]
    texts = [path.read_text() for path in scripts]
    for name in COMMANDS:
        module = f"stillroom.commands.{name.replace('-', '_')}"
        assert callable(import_module(module).run)
        assert any(f"from {module} import run" in text for text in texts), name
    assert len(scripts) == len(COMMANDS)


def test_help_names_them_all_and_version_the_formats(monkeypatch, capsys):
    status, out, _ = said(monkeypatch, capsys, "--help")
    assert status == 0 and all(name in out for name in COMMANDS)
    status, out, _ = said(monkeypatch, capsys, "--version")
    assert status == 0 and "stillroom pictures 1, stillroom cache 1" in out


def test_a_wrong_name_is_answered_with_the_nearest(monkeypatch, capsys):
    status, _, err = said(monkeypatch, capsys, "evalute")
    assert status == 2 and "no command 'evalute'" in err and "fix:    stillroom evaluate" in err
    status, out, err = said(monkeypatch, capsys)
    assert status == 2 and "which command?" in err and "check-data" in out


def test_a_commands_own_words_and_errors_are_its_own(monkeypatch, capsys, tmp_path):
    status, _, err = said(monkeypatch, capsys, "evaluate", f"{tmp_path / 'no-run'}")
    assert status == 2 and "is not a finished run" in err and "Traceback" not in err


@pytest.mark.timeout(240)
def test_a_wheel_installed_alone_works_from_an_empty_folder(tmp_path):
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    source = tmp_path / "source"
    source.mkdir()
    for name in ("src", "pyproject.toml", "README.md", "LICENSE"):
        (source / name).symlink_to(ROOT / name)
    built = [*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", tmp_path, source]
    subprocess.run(built, check=True)
    (wheel,) = tmp_path.glob("stillroom-*.whl")
    site, empty = tmp_path / "site", tmp_path / "empty"
    subprocess.run([*pip, "install", "--no-deps", "--target", site, wheel], check=True)
    empty.mkdir()

    def run(*words: str) -> str:
        environment = {**os.environ, "PYTHONPATH": str(site)}
        found = subprocess.run(
            [sys.executable, "-m", "stillroom", *words],
            cwd=empty,
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        return found.stdout

    assert (site / "bin" / "stillroom").is_file()
    code = "import stillroom; print(stillroom.__file__)"
    where = subprocess.run(
        [sys.executable, "-c", code],
        cwd=empty,
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert where.stdout.startswith(str(site))
    assert "stillroom cache 1" in run("--version")
    assert "usage" in run("train", "--help") and "RECIPE" in run("train", "--help")
    data = {path.name for path in (site / "stillroom").rglob("*.*") if path.suffix != ".py"}
    assert {"page.css", "page.js"} <= data
