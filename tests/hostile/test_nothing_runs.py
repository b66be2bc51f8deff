"""Nothing that is read is ever run: no unpickling, no evaluation, no shell, no address in data."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted(
    [*(ROOT / "src").rglob("*.py"), *(ROOT / "tools").glob("*.py"), ROOT / "train_student.py"]
)
UNPICKLERS = {
    "pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "dbm",
    "code", "codeop", "jsonpickle", "yaml", "xmlrpc", "multiprocessing.managers", "pandas", "h5py",
}  # fmt: skip
NETWORKS = {
    "urllib", "http", "socketserver", "ftplib", "requests", "httpx", "aiohttp", "fsspec", "gdown",
    "huggingface_hub", "torch.hub", "webbrowser",
}  # fmt: skip
RUNNERS = {"eval", "exec", "compile", "__import__", "execfile"}
# What each of these must be called with.
STRICT = {
    "torch.load": ("weights_only", True),
    "np.load": ("allow_pickle", False),
    "numpy.load": ("allow_pickle", False),
}
NEVER = {
    "os.system", "os.popen", "os.execv", "os.execve", "os.spawnv", "torch.hub.load",
    "torch.hub.load_state_dict_from_url", "torch.jit.load", "torch.package.PackageImporter",
    "torch.serialization.add_safe_globals", "torch.serialization.safe_globals",
    "shutil.unpack_archive", "np.fromfile", "np.memmap", "mmap.mmap", "onnx.hub.load",
}  # fmt: skip
# The one module that runs code from a file: one that the user names, a recipe for instance.
RUNS_USER_CODE = ROOT / "src" / "stillroom" / "user_code.py"


def calls(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    """Every call with the dotted name of what is called, as far as it is a name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def imported(tree: ast.AST) -> set[str]:
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def is_among(name: str, modules: set[str]) -> bool:
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def offences(path: Path, text: str) -> list[str]:
    """What in a file could run or fetch what it reads."""
    tree = ast.parse(text)
    found = [n for n in imported(tree) if is_among(n, UNPICKLERS | NETWORKS)]
    for name, call in calls(tree):
        words = {word.arg: ast.unparse(word.value) for word in call.keywords}
        if name in STRICT and words.get(STRICT[name][0]) != str(STRICT[name][1]):
            found.append(f"{name} without {STRICT[name]}")
        if name in NEVER or name.endswith((".extractall", ".unsafe_load")):
            found.append(name)
        if name in RUNNERS or (name.startswith("subprocess.") and "shell" in words):
            found.append(name)
        if name.endswith("exec_module") and path != RUNS_USER_CODE:
            found.append(name)
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_file_of_ours_can_run_or_fetch_what_it_reads(path):
    assert offences(path, path.read_text()) == []


@pytest.mark.parametrize(
    "text",
    [
        "import pickle",
        "from pickle import loads",
        "import joblib",
        "import yaml",
        "import urllib.request",
        "from urllib import request",
        "from torch import hub",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "torch.load(path, weights_only=flag)",
        "np.load(path)",
        "np.load(path, allow_pickle=True)",
        "eval(text)",
        "exec(text)",
        "compile(text, 'a', 'exec')",
        "os.system(text)",
        "subprocess.run(text, shell=True)",
        "subprocess.Popen(text, shell=flag)",
        "tar.extractall(path)",
        "spec.loader.exec_module(module)",
        "np.memmap(path)",
    ],
)
def test_the_walk_would_notice(text):
    assert offences(ROOT / "src" / "x.py", text)


@pytest.mark.parametrize(
    "text", ["torch.load(path, weights_only=True)", "np.load(path, allow_pickle=False)"]
)
def test_the_walk_lets_the_safe_forms_pass(text):
    assert offences(ROOT / "src" / "x.py", text) == []


READ_ALL = """
import pickle, sys, tempfile
from pathlib import Path
sys.path.insert(0, {here!r})
import cases, world

watched = ("pickle.find_class", "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.forkpty",
           "subprocess.Popen", "socket.connect", "socket.getaddrinfo", "urllib.Request",
           "shutil.unpack_archive", "code.__new__")
folder = Path(tempfile.mkdtemp(), "world")
folder.mkdir()
world.make_world(folder)
for way in cases.WAYS:  # what is imported on the way may do as it likes
    if way is not world.pack_again:
        way(folder)

is_armed, happened = True, []

def hook(event, arguments):
    if is_armed and event in watched:
        happened.append(event)
        raise RuntimeError(event)

def refuse(*arguments, **more):
    happened.append("pickle")
    raise RuntimeError("something was unpickled")

sys.addaudithook(hook)
pickle.Unpickler, pickle._Unpickler, pickle.load, pickle.loads = [refuse] * 4
for way in cases.WAYS:
    way(folder)
is_armed, before = False, len(happened)
assert not happened, happened
is_armed = True
try:
    import _pickle
    _pickle.loads(b"cos\\nsystem\\n.")
except RuntimeError:
    print("read without unpickling; the watch is awake")
"""


def test_everything_is_read_without_unpickling_starting_or_fetching_anything(tmp_path):
    """Python itself reports such acts; torch's own restricted unpickler is written in Python."""
    code = READ_ALL.format(here=str(Path(__file__).parent))
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert "the watch is awake" in done.stdout
