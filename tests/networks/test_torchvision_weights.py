"""Weights that torchvision offers come from torch's local cache, or the error says what to do."""

from pathlib import Path
from urllib.error import URLError

import pytest
import torch

from stillroom.errors import UserError
from stillroom.networks.torchvision_weights import fetch

NAME = "MobileNet_V3_Large_Weights.IMAGENET1K_V1"


@pytest.fixture
def checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


def test_a_file_of_the_local_cache_needs_no_connection(checkpoints: Path):
    torch.save({"a": torch.ones(2)}, checkpoints / "mobilenet_v3_large-8738ca79.pth")
    assert torch.equal(fetch(NAME, "none")["a"], torch.ones(2))


@pytest.mark.parametrize("error", [URLError("no route"), RuntimeError("invalid hash value")])
def test_what_cannot_be_fetched_is_refused_with_the_way_out(
    checkpoints: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
):
    def fail(*args: object, **options: object) -> None:
        raise error

    monkeypatch.setattr("torch.hub.download_url_to_file", fail)
    with pytest.raises(UserError, match=rf"{NAME} could not be downloaded(.|\n)*name a file") as e:
        fetch(NAME, "name a file")
    assert str(error) in str(e.value)
