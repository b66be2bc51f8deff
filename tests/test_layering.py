"""The law of the house: which package may import which, how long a file and a function may be."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[1] / "src" / "stillroom"
BASE = {
    "types",
    "errors",
    "jsonfile",
    "tensorfile",
    "signals",
    "os_errors",
    "device_memory",
    "hashing",
    "user_code",
    "columns",
    "random_access",
    "progress_bar",
    "remote",
}
ALLOWED = {
    "types": {"hashing"},
    "errors": set(),
    "jsonfile": {"errors"},
    "tensorfile": {"errors", "jsonfile"},
    "signals": {"errors"},
    "os_errors": {"errors"},
    "device_memory": {"errors"},
    "hashing": set(),
    "user_code": {"errors"},
    "columns": set(),
    "random_access": {"errors"},
    "progress_bar": set(),
    "remote": {"errors", "jsonfile", "random_access"},
    "flags": {"errors"},
    "networks": BASE,
    "metrics": BASE,
    "pictures": BASE,
    "teachers": BASE | {"networks"},
    "codecs": BASE,
    "cache": BASE | {"codecs"},
    "losses": BASE,
    "students": BASE | {"networks", "losses"},
    "recipe": BASE
    | {
        "losses",
        "pictures",
        "students",
        "teachers.configs",
        "teachers.protocol",
        "recipe_optimizer",
    },
    "recipe_optimizer": BASE,
    "recipe_check": BASE | {"codecs", "losses", "pictures", "recipe", "recipe_optimizer"},
    "extraction": BASE
    | {
        "pictures",
        "teachers",
        "codecs",
        "cache",
        "metrics",
        "recipe",
        "recipe_check",
        "networks.normalise",
    },
    "checking": BASE
    | {
        "pictures",
        "codecs",
        "cache",
        "metrics",
        "recipe",
        "recipe_check",
        "teachers.configs",
        "extraction",
    },
    "training": BASE
    | {
        "pictures",
        "codecs",
        "cache",
        "students",
        "losses",
        "metrics",
        "recipe",
        "recipe_check",
        "recipe_optimizer",
        "teachers.configs",
    },
    "planning": BASE
    | {
        "pictures",
        "teachers",
        "codecs",
        "cache",
        "students",
        "losses",
        "recipe",
        "recipe_check",
        "extraction",
        "training",
    },
    "using": BASE
    | {
        "pictures",
        "cache",
        "students",
        "metrics",
        "recipe",
        "networks",
        "losses.class_weights",
    },
    "experiments": BASE | {"pictures", "students", "recipe", "teachers.configs", "training"},
    "recipes": BASE
    | {
        "recipe",
        "recipe_optimizer",
        "losses",
        "students",
        "teachers.configs",
        "teachers.own_configs",
    },
    "cli": BASE | {"flags", "os_errors", "recipe", "recipes", "teachers.files"},
    "__main__": BASE | {"cli", "cache", "pictures"},
}
# the command line may call every room, which none of them knows
ALLOWED["commands"] = {*ALLOWED}
FILES = sorted(SOURCE.rglob("*.py"))


def imports(path: Path) -> set[str]:
    """Names below stillroom that a file imports anywhere, types only included."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        found |= {n.removeprefix("stillroom.") for n in names if n.startswith("stillroom.")}
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_a_room_imports_only_what_the_house_allows(path):
    package = path.relative_to(SOURCE).parts[0].removesuffix(".py")
    if package == "__init__":
        return
    for name in imports(path):
        parts = name.split(".")
        legal = {parts[0], ".".join(parts[:2])} & (ALLOWED[package] | {package})
        assert legal, f"{package} may not import {name}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_files_and_functions_are_short_and_say_what_they_are(path):
    text = path.read_text()
    tree = ast.parse(text)
    assert text.count("\n") <= 400
    assert ast.get_docstring(tree), "no docstring"
    assert not re.search(r"^from __future__", text, re.M)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < 60, node.name


def test_nothing_of_ours_imports_pickle():
    root = SOURCE.parents[1]
    for path in [*FILES, *root.glob("tools/*.py"), *root.glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = {alias.name for alias in node.names} | {getattr(node, "module", None)}
                assert not names & {"pickle", "dill", "cloudpickle", "joblib"}, path


@pytest.mark.parametrize(
    ("package", "never"),
    [
        ("stillroom.training.loop", ("onnx", "onnxruntime", "stillroom.teachers.torch")),
        ("stillroom.extraction.extract", ("stillroom.training", "accelerate")),
        ("stillroom.cli", ("onnx", "onnxruntime", "stillroom.extraction", "stillroom.training")),
    ],
)
def test_the_stages_meet_only_in_the_cache(package, never):
    code = f"import sys, {package}; print(*[n for n in {never!r} if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
