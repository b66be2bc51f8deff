"""Drawn numbers are those of plain integers, and are spread evenly."""

import numpy as np
import torch

from stillroom.codecs.uniform import uniform

SEEDS = (0, 1, 0xFFFFFFFFFFFFFFFF, 0x0123456789ABCDEF, 0x8000000080000000)


def by_numpy(seed: int, count: int) -> np.ndarray:
    def mix(bits: np.ndarray) -> np.ndarray:
        bits = (bits ^ bits >> np.uint32(16)) * np.uint32(0x85EBCA6B)
        bits = (bits ^ bits >> np.uint32(13)) * np.uint32(0xC2B2AE35)
        return bits ^ bits >> np.uint32(16)

    index = np.arange(count, dtype=np.uint32)
    bits = mix(mix(index ^ np.uint32(seed & 0xFFFFFFFF)) ^ np.uint32(seed >> 32))
    return (2.0 * (bits >> np.uint32(9)) + 1) / 2**24


def test_the_numbers_are_those_of_numpy_to_the_bit():
    ours = uniform(SEEDS, 10_000)
    assert ours.dtype == torch.float32
    for row, seed in zip(ours, SEEDS, strict=True):
        assert np.array_equal(row.numpy().astype(np.float64), by_numpy(seed, 10_000))


def test_known_answers():
    """Worked out with Python's integers; whatever reads old caches' noise must give these."""

    def mix(x: int) -> int:
        x = (x ^ x >> 16) * 0x85EBCA6B & 0xFFFFFFFF
        x = (x ^ x >> 13) * 0xC2B2AE35 & 0xFFFFFFFF
        return x ^ x >> 16

    assert mix(1) == 0x514E28B7  # MurmurHash3's finaliser of 1, as it is published
    seed = 0x0123456789ABCDEF
    wanted = [2 * (mix(mix(i ^ 0x89ABCDEF) ^ 0x01234567) >> 9) + 1 for i in range(4)]
    assert (
        (uniform([seed], 4)[0] * 2**24).tolist() == wanted == [12501331, 16730961, 825279, 15170653]
    )


def test_no_number_is_0_or_1_and_every_tenth_has_its_share():
    drawn = uniform(SEEDS, 100_000).numpy()
    assert drawn.min() > 0 and drawn.max() < 1
    shares = np.histogram(drawn, 10, (0, 1))[0] / drawn.size
    assert np.abs(shares - 0.1).max() < 5 * (0.09 / drawn.size) ** 0.5


def test_neighbouring_indices_and_seeds_have_nothing_in_common():
    drawn = uniform([*SEEDS, 2, 3, 1 << 32, 2 << 32], 50_000).numpy() - 0.5
    for shift in (1, 2, 32, 1024):
        products = drawn[:, shift:] * drawn[:, :-shift]
        assert np.abs(products.mean(1)).max() < 5 / 12 / 50_000**0.5
    table = np.corrcoef(drawn)
    assert np.abs(table - np.eye(len(table))).max() < 5 / 50_000**0.5
