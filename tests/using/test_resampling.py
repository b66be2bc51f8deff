"""What logits of a small map say of a large picture; tiles of a picture are the picture."""

import numpy as np
import pytest
import torch

from stillroom.errors import UserError
from stillroom.using.resampling import logits_at, mask_at, probabilities_at, tiled


@pytest.mark.parametrize("size", [(6, 9), (40, 31), (3, 4)])
@pytest.mark.parametrize("classes", [1, 2, 5])
def test_the_mask_is_that_of_the_logits_at_that_size(classes, size):
    logits = torch.randn(classes, 6, 9, generator=torch.Generator().manual_seed(classes))
    large = logits_at(logits, size)
    wanted = (large[0] > 0).numpy() if classes == 1 else large.argmax(0).numpy()
    assert np.array_equal(mask_at(logits, size), wanted)
    assert torch.equal(large, logits) or size != (6, 9)
    shares = probabilities_at(logits, size)
    assert shares.shape == (classes, *size) and shares.min() >= 0 and shares.max() <= 1
    assert classes == 1 or torch.allclose(shares.sum(0), torch.ones(size))


@pytest.mark.parametrize("size", [(8, 12), (9, 30), (31, 50)])
def test_tiles_cover_a_picture_once_over(size):
    image = np.random.default_rng(1).integers(0, 256, (*size, 3), np.uint8)
    seen = []

    def say(tile: np.ndarray) -> torch.Tensor:
        seen.append(tile.shape)
        return torch.from_numpy(tile).permute(2, 0, 1).float()

    found = tiled(image, (8, 12), say)
    assert torch.allclose(found, torch.from_numpy(image).permute(2, 0, 1).float(), atol=1e-3)
    assert set(seen) == {(8, 12, 3)}
    across = 1 + -(-(size[1] - 12) // 9)  # steps of at most three quarters of a tile
    assert len(seen) == across * (1 + -(-(size[0] - 8) // 6))


def test_a_picture_smaller_than_a_tile_is_refused():
    with pytest.raises(UserError, match="smaller than one tile"):
        tiled(np.zeros((7, 20, 3), np.uint8), (8, 12), lambda _: torch.zeros(1, 8, 12))
