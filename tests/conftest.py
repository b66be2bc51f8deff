"""Shapes and types are checked at run time in every test; shared pictures are optional."""

import warnings
from pathlib import Path

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
