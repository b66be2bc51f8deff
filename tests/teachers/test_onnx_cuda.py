"""Of the CUDA provider, what can be known without a GPU: its options, its libraries, its reasons.

Libraries are looked for in fresh processes: what one of them has loaded, the loader finds again.
"""

import json
import mmap
import os
import shutil
import subprocess
import sys
from pathlib import Path

import onnxruntime
import pytest
import torch

from stillroom.teachers.onnx_cuda import CUDA_PROVIDER, cuda_options, why_not_loaded

PROVIDER = Path(onnxruntime.__file__).parent / "capi" / "libonnxruntime_providers_cuda.so"
IS_CUDA_BUILD = CUDA_PROVIDER in onnxruntime.get_available_providers() and PROVIDER.is_file()
NEEDS_CUDA_BUILD = pytest.mark.skipif(
    not IS_CUDA_BUILD, reason="the installed onnxruntime has no CUDA provider"
)
VERSIONS = (torch.version.cuda, onnxruntime.cuda_version)
MAJORS = [(version or "none").split(".")[0] for version in VERSIONS]
NEEDS_ONE_CUDA = pytest.mark.skipif(
    not IS_CUDA_BUILD or MAJORS[0] != MAJORS[1],
    reason=f"torch is for CUDA {MAJORS[0]}, onnxruntime for {MAJORS[1]}",
)
LOOK = """
import ctypes, json
import stillroom.teachers.onnx_session
from stillroom.teachers.onnx_cuda import load_cuda_libraries, why_not_loaded

def found(name):
    try:
        ctypes.CDLL(name)
    except OSError:
        return False
    return True

load_cuda_libraries()
names = ("libcuda.so.1", "libcurand.so.10", "libcudnn.so.9")
print(json.dumps({"reason": why_not_loaded(), **{name: found(name) for name in names}}))
"""
OPEN = """
import sys
import torch
from stillroom.errors import UserError
from stillroom.teachers.onnx_file import load_graph
from stillroom.teachers.onnx_session import OnnxSession
from pathlib import Path

try:
    OnnxSession(load_graph(Path(sys.argv[1])), torch.device("cuda", 0))
except UserError as error:
    print(error.found)
"""


def run(code: str, *words: str, folder: Path | None = None) -> str:
    """Run code in a fresh process, with one more folder of libraries; returns what it printed."""
    before = os.environ.get("LD_LIBRARY_PATH", "")
    paths = {"LD_LIBRARY_PATH": f"{folder}:{before}"} if folder else {}
    done = subprocess.run(
        [sys.executable, "-c", code, *words],
        env={**os.environ, **paths},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    return done.stdout


@pytest.fixture
def driver(tmp_path) -> Path:
    """A folder with a libcuda.so.1 in which every function fails, as where there is no device."""
    compiler, nm = shutil.which("cc"), shutil.which("nm")
    if compiler is None or nm is None:
        pytest.skip("no C compiler to stand in for the driver")
    listed = subprocess.run(
        [nm, "-D", "--undefined-only", PROVIDER], capture_output=True, text=True, check=True
    )
    names = {line.split()[-1].split("@")[0] for line in listed.stdout.splitlines()}
    functions = [
        f"int {n}(void) {{ return 100; }}" for n in names if n[:2] == "cu" and n[2].isupper()
    ]
    source = tmp_path / "libcuda.c"
    source.write_text("\n".join(functions))
    library = tmp_path / "libcuda.so.1"
    flags = ["-shared", "-fPIC", f"-Wl,-soname,{library.name}"]
    subprocess.run([compiler, *flags, "-o", library, source], check=True)
    return tmp_path


@NEEDS_CUDA_BUILD
def test_every_cuda_option_is_one_that_the_provider_knows():
    words = [str(part) for option in cuda_options(0).items() for part in option]
    with (
        PROVIDER.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as library,
    ):
        for word in words:
            assert word == "0" or library.find(b"\0" + word.encode() + b"\0") >= 0, word


def test_sessions_share_the_device_with_torch_and_keep_to_float32():
    options = cuda_options(3)
    assert (options["device_id"], options["use_tf32"]) == (3, 0)
    assert options["arena_extend_strategy"] == "kSameAsRequested"


@NEEDS_ONE_CUDA
def test_with_the_declared_packages_only_the_drivers_library_can_be_missing():
    found = json.loads(run(LOOK))
    assert found["libcurand.so.10"] and found["libcudnn.so.9"]
    if found["libcuda.so.1"]:
        assert found["reason"] is None
    else:
        assert found["reason"].startswith("libcuda.so.1:")


@NEEDS_ONE_CUDA
def test_with_the_drivers_library_the_provider_loads(driver):
    found = json.loads(run(LOOK, folder=driver))
    assert found["libcuda.so.1"] and found["reason"] is None


@NEEDS_ONE_CUDA
def test_what_the_runtime_says_of_a_driver_that_does_not_work_is_quoted(
    driver, tmp_path, make_onnx
):
    path = make_onnx.save_segmenter(tmp_path / "a.onnx")
    assert "CUDA failure" in run(OPEN, str(path), folder=driver)


@pytest.mark.skipif(IS_CUDA_BUILD, reason="the installed onnxruntime has a CUDA provider")
def test_an_onnxruntime_without_cuda_says_so():
    assert "without CUDA" in (why_not_loaded() or "")
