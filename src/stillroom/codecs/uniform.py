"""Numbers in (0, 1) that are a function of a seed and an index, the same bits on every device.

Integer arithmetic of 32 bits that wraps around; the mixing of bits is the finaliser of MurmurHash3
(Austin Appleby, public domain), once with each half of the seed.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int32
from torch import Tensor

_FIRST, _SECOND = 0x85EBCA6B - (1 << 32), 0xC2B2AE35 - (1 << 32)


def uniform(
    seeds: Sequence[int], count: int, device: torch.device | str = "cpu"
) -> Float[Tensor, "b {count}"]:
    """Return `count` numbers per seed of 64 bits: odd multiples of 2^-24, fp32, exact.

    Number i is (2 (h >> 9) + 1) 2^-24, h = mix(mix(i xor low half) xor high half).
    """
    low = [_signed(seed & 0xFFFFFFFF) for seed in seeds]
    high = [_signed(seed >> 32) for seed in seeds]
    index = torch.arange(count, dtype=torch.int32, device=device)
    halves = torch.tensor([low, high], dtype=torch.int32).to(device)[:, :, None]
    bits = _mix(_mix(index ^ halves[0]) ^ halves[1])
    return _shifted(bits, 9).mul_(2).add_(1).float().mul_(2.0**-24)


def _mix(bits: Int32[Tensor, "..."]) -> Int32[Tensor, "..."]:
    """Mix in place: x ^= x >> 16, x *= first, x ^= x >> 13, x *= second, x ^= x >> 16."""
    bits.bitwise_xor_(_shifted(bits, 16)).mul_(_FIRST)
    bits.bitwise_xor_(_shifted(bits, 13)).mul_(_SECOND)
    return bits.bitwise_xor_(_shifted(bits, 16))


def _shifted(bits: Int32[Tensor, "..."], by: int) -> Int32[Tensor, "..."]:
    """Shift right as if unsigned."""
    return (bits >> by).bitwise_and_((1 << 32 - by) - 1)


def _signed(half: int) -> int:
    return half - (1 << 32) if half >> 31 else half
