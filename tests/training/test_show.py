"""The grid of a validation shows pictures of the whole split, each beside its masks."""

import numpy as np
from PIL import Image

from stillroom.training.setup import prepare
from stillroom.training.show import draw_grid


def test_four_pictures_spread_over_the_split_are_shown_with_truth_teacher_and_student(
    tiny_recipe, tmp_path
):
    context = prepare(tiny_recipe)
    assert context.validation is not None and len(context.validation) == 8
    draw_grid(context, context.validation, tmp_path / "grid.png")
    with Image.open(tmp_path / "grid.png") as grid:
        found = np.array(grid)
    tiles = 18 + 4 * 68 + 4  # of 64 x 96 and 4 between them
    assert found.shape == (tiles + 18, 4 * 100 + 4, 3)
    legend = {tuple(colour) for colour in found[tiles:].reshape(-1, 3).tolist()}
    assert {tuple(c) for c in context.pictures.palette} < legend  # each class has its swatch
    for place, row in enumerate((0, 2, 4, 6)):
        top = 18 + place * 68
        image = context.validation.read(row)[1]["image"]
        assert np.array_equal(found[top : top + 64 : 2, 4:100:2], image)
