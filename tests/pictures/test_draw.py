"""Pictures for people show what they are said to."""

import numpy as np

from stillroom.pictures.draw import VOID_COLOUR, WRONG_COLOUR, grid, mistakes


def test_what_differs_from_the_truth_is_in_one_colour_and_void_is_not_counted():
    image = np.full((2, 2, 3), 100, np.uint8)
    truth, mask = np.array([[0, 1], [1, 255]]), np.array([[0, 1], [0, 1]])
    found = mistakes(image, mask, truth)
    assert found.tolist() == [[[50] * 3, [50] * 3], [list(WRONG_COLOUR), list(VOID_COLOUR)]]


def test_a_grid_has_captions_below_its_rows_and_a_legend_that_wraps():
    rows = [[np.full((128, 128, 3), shade, np.uint8)] for shade in (10, 200)]
    plain = np.array(grid(rows, ["t"]))
    legend = [(f"a long name {i}", (i, 255, 0)) for i in range(3)]
    found = np.array(grid(rows, ["t"], ["first", "second"], legend))
    assert found.shape[1] == plain.shape[1]
    assert found.shape[0] == plain.shape[0] + 2 * 18 + 3 * 18  # a line a row, one a long name
    assert (found[18 + 2 : 18 + 128, 10:100] == 10).all()
    assert (found[18 + 150 : 18 + 150 + 128, 10:100] == 200).all()
    for i in range(3):
        assert (found[:, :20] == (i, 255, 0)).all(-1).sum() > 100
