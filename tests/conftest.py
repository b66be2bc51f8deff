"""Shapes and types are checked at run time in every test; shared pictures are optional."""

import importlib.util
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from jaxtyping import install_import_hook

    install_import_hook("stillroom", "beartype.beartype")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real pictures and networks that lies beside the checkout, or a skip."""
    folder = Path(__file__).resolve().parents[2] / "shared"
    if not (folder / "data").is_dir():
        pytest.skip("no shared pictures and networks beside the checkout")
    return folder


@pytest.fixture(scope="session")
def make_tiny() -> ModuleType:
    """The module `make_tiny.py` beside this file (test folders are no packages)."""
    spec = importlib.util.spec_from_file_location(
        "make_tiny", Path(__file__).with_name("make_tiny.py")
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def tiny_world(make_tiny, tmp_path_factory) -> Path:
    """A folder with `shards`, `teacher` and a complete `cache`; nobody writes into it."""
    return make_tiny.make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture
def tiny_recipe(make_tiny, tiny_world, tmp_path) -> Any:
    """The recipe `tiny` over that world; its runs go to `tmp_path / "runs"`."""
    return make_tiny.tiny_recipe(tiny_world, tmp_path / "runs")


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Small networks are faster so, and sums have one order."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
