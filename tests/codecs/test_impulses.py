"""Packed impulses are bytes that a loop of ten lines reads back."""

import pytest
import torch

from stillroom.codecs.impulses import pack_impulses, unpack_impulses


def by_loop(packed: list[int], count: int) -> list[int]:
    values, place = [0] * count, 0
    for byte in packed:
        if byte == 255:
            place += 127
        elif byte > 0:
            place += (byte - 1) >> 1
            values[place] += -1 if (byte - 1) & 1 else 1
    return values


@pytest.mark.parametrize("share", [0.0, 0.001, 0.01, 0.3, 1.0])
def test_values_come_back_and_a_loop_reads_them(share: float):
    generator = torch.Generator().manual_seed(int(1000 * share))
    kept = torch.rand(5000, generator=generator) < share
    values = torch.randint(-3, 4, (5000,), generator=generator) * kept
    packed = pack_impulses(values, 12_000)
    assert packed is not None and packed.dtype == torch.uint8 and packed.shape == (12_000,)
    assert torch.equal(unpack_impulses(packed[None], 5000)[0].long(), values)
    assert by_loop(packed.tolist(), 5000) == values.tolist()


@pytest.mark.parametrize("gap", [1, 126, 127, 128, 253, 254, 255, 381, 1000])
def test_every_way_to_the_next_unit_is_found(gap: int):
    values = torch.zeros(2100, dtype=torch.int32)
    values[[0, gap, 2 * gap]] = torch.tensor([1, -1, 2], dtype=torch.int32)
    packed = pack_impulses(values, 100)
    assert packed is not None
    assert torch.equal(unpack_impulses(packed[None], 2100)[0].int(), values)


def test_the_bytes_of_a_small_case():
    """0 0 -1 2, then 130 zeros, then 1: by hand."""
    values = torch.zeros(135, dtype=torch.int32)
    values[2], values[3], values[134] = -1, 2, 1
    packed = pack_impulses(values, 8)
    assert packed is not None
    assert packed.tolist() == [6, 3, 1, 255, 9, 0, 0, 0]


def test_what_takes_more_than_the_room_is_not_packed():
    values = torch.tensor([5, 0, -3, 0])
    assert pack_impulses(values, 7) is None
    packed = pack_impulses(values, 8)
    assert packed is not None and torch.equal(unpack_impulses(packed[None], 4)[0].long(), values)
    far = torch.zeros(1000, dtype=torch.int32)
    far[999] = 1
    assert pack_impulses(far, 7) is None and pack_impulses(far, 8) is not None
    assert pack_impulses(torch.full((4,), 2**30), 1000) is None


def test_rows_of_a_batch_do_not_touch_one_another():
    values = torch.tensor([[0, 1, 0, 0], [0, 0, 0, 0], [-2, 0, 0, 1]])
    packed = torch.stack([p for row in values if (p := pack_impulses(row, 6)) is not None])
    assert torch.equal(unpack_impulses(packed, 4).long(), values)


def test_bytes_of_a_stranger_write_nothing_outside():
    packed = torch.randint(0, 256, (3, 4000), dtype=torch.uint8)
    values = unpack_impulses(packed, 50)
    assert values.shape == (3, 50) and bool(values.isfinite().all())
