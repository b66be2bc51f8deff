"""Which pixels and cells count."""

import pytest
import torch

from stillroom.losses.functions import inside_at, labelled


@pytest.mark.parametrize(("first_padded", "is_valid"), [(4, False), (5, True)])
def test_a_cell_is_valid_when_its_centre_pixel_is_inside(first_padded: int, is_valid: bool):
    inside = torch.ones(1, 16, 8, dtype=torch.bool)
    inside[:, :, first_padded:] = False  # the centre of the cell is pixel 4
    assert inside_at(inside, 2, 1).tolist() == [[[is_valid], [is_valid]]]
    inside = torch.ones(1, 16, 8, dtype=torch.bool)
    inside[:, 8 + first_padded :] = False
    assert inside_at(inside, 2, 1).tolist() == [[[True], [is_valid]]]


def test_a_grid_of_pixels_is_the_padding_itself():
    inside = torch.rand(2, 4, 6) > 0.5
    assert torch.equal(inside_at(inside, 4, 6), inside)


def test_a_label_is_known_where_there_is_neither_void_nor_padding():
    mask = torch.tensor([[[0, 255, 1, 255]]])
    inside = torch.tensor([[[True, True, False, False]]])
    assert labelled(mask, inside).tolist() == [[[True, False, False, False]]]
