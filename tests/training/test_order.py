"""The order of rows is arithmetic: a permutation per pass, the same on every machine and at every
world size.
"""

import itertools
import re

import pytest

from stillroom.errors import UserError
from stillroom.hashing import keyed_hash
from stillroom.recipes import RECIPES
from stillroom.training.order import (
    MicroBatchSchedule,
    Order,
    WindowOrder,
    make_schedule,
    permuted,
)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 64, 100, 1000, 4097])
@pytest.mark.parametrize("key", [0, 7, 2**63 + 5])
def test_each_pass_is_a_permutation(size, key):
    assert sorted(permuted(i, size, key) for i in range(size)) == list(range(size))


def test_known_answers_hold_on_every_machine():
    assert keyed_hash("order", 0, 0) == 10081411686772375997
    order = Order(rows=10, seed=3)
    assert [order.at(p)[1] for p in range(12)] == [7, 5, 9, 1, 3, 4, 0, 8, 6, 2, 0, 3]
    assert [order.at(p)[0] for p in range(12)] == [0] * 10 + [1] * 2


def test_passes_and_seeds_differ():
    passes = [
        [Order(rows=50, seed=s).at(50 * n + i)[1] for i in range(50)]
        for s in (0, 1)
        for n in (0, 1)
    ]
    assert len({tuple(p) for p in passes}) == 4


def test_neighbours_do_not_stay_neighbours():
    order = Order(rows=1000, seed=0)
    rows = [order.at(p)[1] for p in range(1000)]
    close = sum(abs(a - b) <= 2 for a, b in itertools.pairwise(rows))
    assert close < 15  # about 4 expected of a random permutation


ROWS = (5, 3, 0, 7, 4, 2, 6)


@pytest.mark.parametrize("window", [1, 3, 7, 64])
def test_rows_are_shuffled_within_windows_of_shards_that_differ_by_pass(window):
    order, total = WindowOrder(shard_rows=ROWS, window=window, seed=1), sum(ROWS)
    shard_of = [shard for shard, rows in enumerate(ROWS) for _ in range(rows)]
    seen = []
    for number in range(3):
        found = [order.at(total * number + i) for i in range(total)]
        assert {n for n, _ in found} == {number}
        rows = [row for _, row in found]
        assert sorted(rows) == list(range(total))
        seen.append(tuple(rows))
        position = total * number
        while position < total * (number + 1):
            end = order.next_window(position)
            of_window, shards = order.shards_at(position)
            there = {shard_of[order.at(p)[1]] for p in range(position, end)}
            assert of_window[0] == number and there == {s for s in shards if ROWS[s]}
            position = end
    assert len(set(seen)) == 3


def test_a_window_of_all_shards_of_many_rows_mixes_them():
    order = WindowOrder(shard_rows=(500, 500), window=2, seed=0)
    rows = [order.at(p)[1] for p in range(1000)]
    assert sum(abs(a - b) <= 2 for a, b in itertools.pairwise(rows)) < 15


def test_known_answers_of_windows_hold_on_every_machine():
    order = WindowOrder(shard_rows=(2, 3, 1), window=2, seed=3)
    assert [order.at(p)[1] for p in range(8)] == [5, 3, 4, 2, 0, 1, 1, 5]


@pytest.mark.parametrize("world", [1, 2, 4])
def test_ranks_together_hold_every_micro_batch_once_with_the_same_rows(world):
    deals = [MicroBatchSchedule(batch=16, micro_batch=4, rank=r, world=world) for r in range(world)]
    dealt = sorted(m for schedule in deals for m in schedule.micro_batches())
    assert dealt == [0, 1, 2, 3]
    assert [list(deals[0].positions(5, m)) for m in range(4)] == [
        list(range(80 + 4 * m, 84 + 4 * m)) for m in range(4)
    ]


@pytest.mark.parametrize("world", [2, 3, 8])
@pytest.mark.parametrize("recipe", [make() for make in RECIPES.values()], ids=RECIPES)
def test_a_world_that_does_not_fit_is_told_the_flags_that_do(recipe, world):
    num_micros = recipe.batch // recipe.micro_batch
    assert num_micros % world, "choose worlds that do not fit"
    with pytest.raises(UserError) as refused:
        make_schedule(recipe.batch, recipe.micro_batch, 0, world)
    for flag, number in re.findall(r"--(micro-batch|batch) ([0-9]+)", refused.value.fix):
        sizes = {"batch": recipe.batch, "micro-batch": recipe.micro_batch, flag: int(number)}
        assert make_schedule(sizes["batch"], sizes["micro-batch"], 0, world).world == world
    assert "--batch" in refused.value.fix
    assert "--micro-batch" in refused.value.fix or recipe.batch % world


def test_the_legal_worlds_are_listed():
    with pytest.raises(UserError, match="wanted: 1, 2, 3, 6 processes") as refused:
        make_schedule(24, 4, 0, 4)
    assert refused.value.fix.startswith("--micro-batch 3, or --batch 32")  # never a larger one
