"""A rank that hangs is named by those that wait for it; other errors stay as they are."""

import pytest
import torch
from accelerate import Accelerator

from stillroom.errors import FailureError
from stillroom.training import missing_ranks
from stillroom.training.missing_ranks import name_missing_ranks
from stillroom.training.progress import Progress
from stillroom.training.setup import prepare

TIMED_OUT = "[gloo/transport/tcp/unbound_buffer.cc:133] Timed out waiting 30000ms for recv"
CLOSED = "[gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:7"


@pytest.fixture
def context(tiny_recipe, monkeypatch):
    """Rank 0 of three of which rank 2 waits in vain as well."""
    context, store = prepare(tiny_recipe), torch.distributed.HashStore()
    store.set("waits in vain/2", "")
    monkeypatch.setattr(Accelerator, "num_processes", 3)
    monkeypatch.setattr(missing_ranks, "_PATIENCE_S", 0.2)
    monkeypatch.setattr(missing_ranks, "_get_default_store", lambda: store)
    return context


def told(context, error: Exception, step: int = 3) -> Exception:
    """What comes of an error after so many steps."""
    with (
        pytest.raises(type(error) if step < 0 else FailureError) as raised,
        Progress(context, step) as progress,
        name_missing_ranks(context, progress),
    ):
        progress.step()
        raise error
    return raised.value


def test_the_rank_that_says_nothing_is_named_with_the_step(context):
    error = told(context, RuntimeError(f"{TIMED_OUT}\nand a stack"))
    assert error.what == "rank 1 did not answer for 600 s (--run.timeout-s), at step 5 of 6"
    assert error.found == TIMED_OUT


def test_a_rank_that_sees_another_s_end_says_that_it_is_alive(context):
    store = missing_ranks._get_default_store()
    told(context, RuntimeError(CLOSED))
    assert store.check(["waits in vain/0"])


def test_an_error_that_was_told_in_words_gets_the_step_and_names_nobody_where_one_is_gone(context):
    words = FailureError("another process of this run has ended")
    words.__cause__ = RuntimeError(CLOSED)
    error = told(context, words)
    assert error.what == "another process of this run has ended or hangs, at step 5 of 6"


@pytest.mark.parametrize("error", [RuntimeError("sizes differ"), FailureError("not finite")])
def test_an_error_of_this_rank_stays_what_it_is(context, error):
    assert told(context, error, step=-1) is error
