"""Every command in README and docs is one that the command line takes; tables are the code's.

Commands are parsed by their own parsers and not run: files need not be there. Those that README
walks through are run as well (test_readme_walk.py), those of the demonstration and of
docs/reading.md likewise (test_end_to_end.py, test_reading_page.py).
"""

import functools
import re
import shlex
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path

import pytest
import tyro

from stillroom import cli
from stillroom.__main__ import COMMANDS, _formats
from stillroom.commands import evaluate, experiments
from stillroom.errors import UserError
from stillroom.recipes import RECIPES

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# what a reader puts in the place of these, where a number or a recipe is wanted
PLACEHOLDERS = {"S": "0", "W": "2", "N": "1", "RECIPE": "tiny", "FUNCTION": "tiny"}
PROGRAMS = ("stillroom", "python", "torchrun", "accelerate", "sbatch", "make")
# spans that begin like a command and are none
NO_COMMANDS = {*_formats(), "python -m stillroom"}
MODULES = {name: name.replace("-", "_") for name in COMMANDS}


def lines_of(page: Path) -> Iterator[str]:
    """Commands of a page: lines of its blocks, and spans of code that begin as a command does."""
    text, known = page.read_text(), {}
    for language, block in re.findall(r"^```(\w*)\n(.*?)^```", text, re.M | re.S):
        for line in () if language else re.sub(r"\\\n\s*", "", block).splitlines():
            if named := re.fullmatch(r'(\w+)="(.*)"', line):
                known[f"${named[1]}"] = named[2]
            elif line.split("#")[0].strip() and line[0] != ".":  # `. .venv/bin/activate`
                yield functools.reduce(lambda t, k: t.replace(k, known[k]), known, line)
    spans = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
    for span in re.findall(r"`([^`]+)`", spans):
        span = " ".join(span.split())
        is_command = re.match(
            r"stillroom (demo$|[a-z-]+ \S)|(python|torchrun|accelerate launch|sbatch) \S", span
        )
        if is_command and span not in NO_COMMANDS:
            yield span


# each once, with the first page that has it
FOUND = [*{line: (page.name, line) for page in PAGES[::-1] for line in lines_of(page)}.values()]


@pytest.fixture
def parse_only(monkeypatch):
    """Parsers only parse: commands do nothing, files and code are not looked for."""
    real = tyro.cli

    def parse(described, **options):
        if isinstance(described, type) or "default" in options:
            return real(described, **options)

        def nothing(*_, **__) -> Callable[[], None]:
            return lambda: None

        return real(functools.wraps(described)(nothing), **options)

    named = cli.named_recipe
    monkeypatch.setattr(tyro, "cli", parse)
    monkeypatch.setattr(cli, "_require_named_files", lambda *_: None)
    monkeypatch.setattr(cli, "named_recipe", lambda n: named("tiny" if ":" in n else n))


def take(name: str, words: list[str]) -> None:
    """Parse the words of one command of ours; SystemExit or UserError where it would refuse."""
    module = import_module(f"stillroom.commands.{MODULES[name]}")
    if name == "experiments":
        recipes, _, flags = experiments.parse(words)
        for recipe in recipes:
            cli.recipe_from([recipe, *flags])
    elif name == "evaluate":
        evaluate.parse(words)
        if "--teacher" in words:
            cli.recipe_from(words[words.index("--teacher") + 1 :])
    elif hasattr(module, "parser"):
        _, rest = module.parser().parse_known_args(words)
        recipe = rest[1:] if name == "check-cache" else rest
        assert rest, "no cache" if name == "check-cache" else "no recipe"
        if recipe:
            cli.recipe_from(recipe)
    elif name in ("cache", "train"):
        cli.recipe_from(words)
    else:
        sys.argv = [f"stillroom {name}", *words]
        module.run()


def command_of(script: str) -> str:
    """The command that a script of a checkout is."""
    text = (ROOT / script).read_text()
    found = re.search(r"from stillroom\.commands\.(\w+) import run", text)
    assert found, f"{script} is no command"
    return found[1].replace("_", "-")


def split_launch(words: list[str]) -> list[str]:
    """What a launcher launches; its own flags are those that the launcher's parser knows."""
    if words[0] == "accelerate":
        from accelerate.commands.launch import launch_command_parser

        own = launch_command_parser().parse_args(words[2:])
        assert (ROOT / own.config_file).is_file()
        return ["python", own.training_script, *own.training_script_args]
    from torch.distributed.run import get_args_parser

    own = get_args_parser().parse_args(words[1:])
    module = ["-m"] if own.module else []
    return ["python", *module, own.training_script, *own.training_script_args]


def check(line: str) -> None:
    words = [PLACEHOLDERS.get(word, word) for word in shlex.split(line, comments=True)]
    if words[0] in ("accelerate", "torchrun"):
        words = split_launch(words)
    if words[0] == "sbatch":
        script = next(i for i, word in enumerate(words) if word.endswith(".sbatch"))
        launched = re.search(r"(tools/\w+|train_student)\.py", (ROOT / words[script]).read_text())
        assert launched
        rest = words[script + 1 :]  # of stage 2 the run's name comes first
        words = ["python", launched[0], *rest[launched[0] == "train_student.py" :]]
    if words[:3] == ["python", "-m", "stillroom"]:
        words = ["stillroom", *words[3:]]
    if words[0] == "python" and words[1].startswith(("benchmarks/", "docs/")):
        assert (ROOT / words[1]).is_file()
    elif words[0] == "python":
        take(command_of(words[1]), words[2:])
    elif words[0] == "stillroom" and words[1] in COMMANDS:
        take(words[1], words[2:])
    elif words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.M)
    elif words[0] == "pytest":
        assert all((ROOT / word).exists() for word in words if word.startswith("tests/"))
    else:
        assert words[0] == "pip" or words[1] in ("--help", "--version"), line


@pytest.mark.parametrize(("page", "line"), FOUND, ids=lambda text: text[:60])
def test_a_command_of_the_docs_is_taken_by_its_parser(page, line, parse_only, monkeypatch):
    monkeypatch.setattr("sys.argv", ["stillroom"])
    try:
        check(line)
    except SystemExit as ended:
        assert ended.code == 0, f"{page}: {line}"  # --help


def test_a_command_that_is_wrong_would_be_noticed(parse_only, monkeypatch):
    monkeypatch.setattr("sys.argv", ["stillroom"])
    for line in (
        "stillroom train people-few --bach 8",
        "stillroom evaluate runs/x --no-such-flag",
        "stillroom evaluate runs/x --teacher people-lite --teachers.7.path FILE",
        "stillroom plan people-few --gpus many",
        "accelerate launch --no-such-flag train_student.py tiny",
        "torchrun --nproc-per-node 2 train_student.py tiny --run.devise cpu",
        "sbatch cluster/train_student.sbatch mine tiny --run.devise cpu",
    ):
        with pytest.raises((SystemExit, UserError)):
            check(line)


def test_the_pages_have_commands_of_every_kind():
    words = " ".join(line for _, line in FOUND)
    assert all(f"stillroom {name}" in words for name in COMMANDS)
    assert all(name in words for name in PROGRAMS)
    assert len(FOUND) > 60


def test_the_table_of_commands_names_every_command_and_its_script():
    text = (ROOT / "docs" / "commands.md").read_text()
    rows = re.findall(r"^\| `([a-z-]+)` \| `(\S+)` \|", text, re.M)
    assert [name for name, _ in rows] == [*COMMANDS]
    assert all(command_of(script) == name for name, script in rows)


def test_the_page_of_flags_is_what_the_parsers_say(load_module):
    page = load_module("../docs/write_flags.py").page()
    assert (ROOT / "docs" / "flags.md").read_text() == page, "python docs/write_flags.py"


@pytest.mark.parametrize("page", [p for p in PAGES if p.stem not in ("results", "log", "flags")])
def test_a_flag_that_is_named_by_itself_exists(page):
    known = set(re.findall(r"`--(\S+?)[ `]", (ROOT / "docs" / "flags.md").read_text()))
    others = {"help", "version", "debug", "codec.NAME", "teacher", "pth"}
    others |= {"gres", "time", "signal", "cpus-per-task", "partition", "requeue"}  # Slurm's
    for flag in re.findall(r"`--([a-zA-Z0-9.-]+)", page.read_text()):
        plain = re.sub(r"^(teachers|terms)\.\d+", r"\1.N", flag)
        plain = re.sub(r"(^|\.)no-", r"\1", re.sub(r"^codec\.[a-z]+$", "codec.TARGET", plain))
        assert plain in known | others, f"{page.name}: --{flag}"


def test_the_table_of_recipes_names_every_recipe():
    text = (ROOT / "docs" / "recipes.md").read_text()
    rows = re.findall(r"^\| (`[a-z0-9-]+`(?:, `[a-z0-9-]+`)*) \|", text, re.M)
    named = set()
    for row in rows:
        first, *rest = re.findall(r"`([a-z0-9-]+)`", row)
        stem = first.removesuffix("-response")
        named |= {first, *(f"{stem}{word}" if word.startswith("-") else word for word in rest)}
    assert named == {*RECIPES}


def test_links_lead_to_files_and_the_site_has_every_page():
    for page in PAGES:
        text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S)
        links = re.findall(r"\]\(([^)#: ]+)\)", text)
        assert [link for link in links if not (page.parent / link).exists()] == [], page.name
    site = re.findall(r": (\w+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.M)
    assert sorted(site) == sorted(["index.md", *(page.name for page in PAGES[1:])])


def test_figures_of_the_readme_stand_in_the_results():
    readme, results = (ROOT / "README.md").read_text(), (ROOT / "docs" / "results.md").read_text()
    table = readme[readme.index("## Measured") : readme.index("## What goes wrong")]
    figures = re.findall(r"(?<![\w.])[\d,]*\.?\d[\d,]*(?![\w.])", re.sub(r"^\|--.*", "", table))
    rows = [f for f in figures if len(f.strip(",")) > 2]
    assert len(rows) > 15
    assert not [figure for figure in rows if figure.strip(",") not in results]
