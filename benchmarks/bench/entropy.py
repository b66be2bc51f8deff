"""The entropy of what a codec keeps: order 0, with one model per channel of each part."""

import torch
from torch import Tensor

from stillroom.codecs.impulses import unpack_impulses


def symbols_of(parts: dict[str, Tensor], count: int) -> list[Tensor]:
    """The whole numbers that a row's parts say, (c n) each."""
    found = []
    for name, part in parts.items():
        if name == "impulse":
            cells = part.shape[2] * part.shape[3]
            found.append(unpack_impulses(part.flatten(1), count).view(-1, cells).int())
        elif part.dtype in (torch.float16, torch.float32):
            found.append(part[0].flatten(1).half().view(torch.int16).int())
        else:
            found.append(part[0].flatten(1).int())
    return found


def per_channel(symbols: Tensor) -> float:
    """Bits of all symbols (b c n), each channel with its own frequencies."""
    bits = 0.0
    for channel in symbols.transpose(0, 1).flatten(1):
        _, counts = channel.unique(return_counts=True)
        shares = counts.double() / counts.sum()
        bits -= float((counts * shares.log2()).sum())
    return bits
