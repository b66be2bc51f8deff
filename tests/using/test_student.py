"""A student is used in three lines: a picture of any size in, logits or a mask of that size out."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import stillroom
from stillroom.errors import UserError
from stillroom.using.student import load_student

PICTURE = np.random.default_rng(0).integers(0, 256, (50, 100, 3), np.uint8)


def by_hand(network: torch.nn.Module, image: np.ndarray) -> torch.Tensor:
    """50 x 100 px within 32 x 48: 24 rows of picture, 4 of grey above and below."""
    canvas = np.full((32, 48, 3), 128, np.uint8)
    canvas[4:28] = np.array(Image.fromarray(image).resize((48, 24), Image.Resampling.BILINEAR))
    with torch.no_grad():
        logits = network(torch.from_numpy(canvas / 255).float().permute(2, 0, 1)[None])
    cut = logits[:, :, 4:28]
    return torch.nn.functional.interpolate(cut, (50, 100), mode="bilinear")[0]


def test_a_letterboxed_picture_gets_logits_of_its_own_size_without_the_padding(used_run):
    student = stillroom.load_student(used_run)
    wanted = by_hand(student.network, PICTURE)
    assert torch.allclose(student.logits(PICTURE), wanted, atol=1e-5)
    assert student.mask(PICTURE).shape == (50, 100)
    assert np.mean(student.mask(PICTURE) == wanted.argmax(0).numpy()) > 0.999


def test_floats_are_the_same_picture_and_other_numbers_are_none(used_run):
    student = stillroom.load_student(str(used_run))
    assert np.array_equal(student.mask(PICTURE / np.float32(255)), student.mask(PICTURE))
    for wrong in (PICTURE.astype(np.float32), PICTURE.astype(np.int64), PICTURE / 255 - 0.5):
        with pytest.raises(UserError, match=r"float in \[0, 1\]"):
            student.mask(wrong)


def test_a_network_of_boxes_says_that_it_wants_them(used_run):
    student = load_student(used_run)
    student.network.needs_boxes = True
    with pytest.raises(UserError, match="boxes"):
        student.mask(PICTURE)


def test_importing_stillroom_imports_no_torch():
    code = "import sys, stillroom; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
