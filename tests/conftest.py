"""Shapes and types are checked at run time in every test; shared pictures, a GPU are optional."""

import importlib.util
import os
import tarfile
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from jaxtyping import install_import_hook

    install_import_hook("stillroom", "beartype.beartype")


def pytest_configure() -> None:
    """One thread a process: small networks are faster so, and sums have one order."""
    os.environ["OMP_NUM_THREADS"] = "1"  # of the processes that tests start
    torch.set_num_threads(1)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what is marked `gpu` where there is none."""
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("no CUDA device")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real pictures and networks that lies beside the checkout, or a skip."""
    folder = Path(__file__).resolve().parents[2] / "shared"
    if not (folder / "data").is_dir():
        pytest.skip("no shared pictures and networks beside the checkout")
    return folder


@pytest.fixture(scope="session")
def load_module() -> Callable[[str], ModuleType]:
    """Imports a file by its path below this folder (test folders are no packages)."""

    def load(path: str) -> ModuleType:
        file = Path(__file__).parent / path
        spec = importlib.util.spec_from_file_location(file.stem, file)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture(scope="session")
def make_tiny(load_module) -> ModuleType:
    """The module `make_tiny.py` beside this file."""
    return load_module("make_tiny.py")


@pytest.fixture(scope="session")
def grey_world(load_module) -> ModuleType:
    """The module `grey_world.py` beside this file."""
    return load_module("grey_world.py")


@pytest.fixture(scope="session")
def tiny_world(make_tiny, tmp_path_factory) -> Path:
    """A folder with `shards`, `teacher` and a complete `cache`; nobody writes into it."""
    return make_tiny.make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture
def tiny_recipe(make_tiny, tiny_world, tmp_path) -> Any:
    """The recipe `tiny` over that world; its runs go to `tmp_path / "runs"`."""
    return make_tiny.tiny_recipe(tiny_world, tmp_path / "runs")


@pytest.fixture(scope="session")
def flip_picture() -> Callable[[Any, int], None]:
    """Flips one bit of the picture of a row in a shard of PNG files."""

    def flip(shard: Any, row: int) -> None:
        with tarfile.open(shard.path) as tar:
            place = tar.getmember(f"{shard.keys[row]}.png").offset_data + 50
        data = bytearray(shard.path.read_bytes())
        data[place] ^= 8
        shard.path.write_bytes(data)

    return flip


@pytest.fixture
def flushed(monkeypatch) -> list[int | str]:
    """What is made durable and what gets its name, in order: the inode of each fsync, the new path
    of each rename.
    """
    seen: list[int | str] = []
    fsync, rename = os.fsync, os.rename

    def flushing(descriptor: int) -> None:
        fsync(descriptor)
        seen.append(os.fstat(descriptor).st_ino)

    def renaming(old: Any, new: Any) -> None:
        rename(old, new)
        seen.append(os.fspath(new))

    monkeypatch.setattr(os, "fsync", flushing)
    monkeypatch.setattr(os, "rename", renaming)
    return seen


@pytest.fixture
def is_durable(flushed) -> Callable[[Path], bool]:
    """Whether every file and folder below a folder was flushed before the folder got its name, and
    the folder above it afterwards.
    """

    def is_durable(folder: Path) -> bool:
        moment = flushed.index(str(folder))
        inodes = {path.stat().st_ino for path in (folder, *folder.rglob("*"))}
        return inodes <= {*flushed[:moment]} and folder.parent.stat().st_ino in flushed[moment:]

    return is_durable
