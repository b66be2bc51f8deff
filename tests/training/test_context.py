"""What the ranks tell one another, and what one says when another is gone."""

import pytest
import torch
from accelerate import Accelerator

from stillroom.errors import FailureError
from stillroom.training.setup import prepare


def test_a_rank_that_is_gone_is_told_in_words_with_the_first_line_of_the_cause(
    tiny_recipe, monkeypatch
):
    def gone(_: torch.Tensor) -> None:
        raise RuntimeError("Connection closed by peer\nand a page of addresses")

    context = prepare(tiny_recipe)
    monkeypatch.setattr(Accelerator, "num_processes", 2)
    monkeypatch.setattr(torch.distributed, "all_reduce", gone)
    with pytest.raises(FailureError, match="another process of this run has ended") as told:
        context.any(True)
    assert told.value.found == "Connection closed by peer"


@pytest.mark.parametrize("kind", [torch.OutOfMemoryError, torch.AcceleratorError])
def test_an_error_of_this_rank_s_own_device_is_not_another_s_end(tiny_recipe, monkeypatch, kind):
    def failing(_: torch.Tensor) -> None:
        raise kind("of this device")

    context = prepare(tiny_recipe)
    monkeypatch.setattr(Accelerator, "num_processes", 2)
    monkeypatch.setattr(torch.distributed, "all_reduce", failing)
    with pytest.raises(kind, match="of this device"):
        context.any(True)
