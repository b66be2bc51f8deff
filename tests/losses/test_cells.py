"""Which pixels and cells count, and maps brought to another grid."""

import pytest
import torch
from torch.nn import functional

from stillroom.losses import FeatureCosine, FeatureMSE, SoftKL
from stillroom.losses.cells import at_centres, inside_at, labelled, resized
from stillroom.types import Batch


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


def test_a_cell_of_a_grid_that_does_not_divide_the_picture_has_the_pixel_at_its_centre():
    pixels = torch.arange(80).view(1, 8, 10)
    rows, columns = (1, 4, 6), (1, 3, 6, 8)  # (i + 1/2) 8/3 and (i + 1/2) 10/4, rounded down
    wanted = [[10 * row + column for column in columns] for row in rows]
    assert at_centres(pixels, 3, 4).tolist() == [wanted]


@pytest.mark.parametrize("size", [(4, 6), (16, 24), (5, 7)])
def test_without_padding_a_map_is_resized_as_torch_does(size):
    values = torch.randn(2, 3, 8, 12)
    wanted = functional.interpolate(values, size, mode="bilinear", align_corners=False)
    found = resized(values, torch.ones(2, 32, 48, dtype=torch.bool), size)
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize(
    ("size", "kernel"), [((2, 2), (4, 6)), ((8, 3), (1, 4)), ((1, 1), (8, 12))]
)
def test_a_map_shrunk_by_whole_factors_is_averaged_as_stage_1_averages_a_tap(size, kernel):
    values = torch.randn(2, 3, 8, 12)
    found = resized(values, torch.ones(2, 32, 48, dtype=torch.bool), size)
    torch.testing.assert_close(found, functional.avg_pool2d(values, kernel))


def test_padding_has_no_share_in_an_average():
    inside = torch.ones(1, 4, 8, dtype=torch.bool)
    inside[:, :, 5:] = False  # the fifth column shows a pixel of the picture
    values = torch.tensor([[[1.0, 2.0, 3.0, 4.0, 8.0, float("nan"), float("inf"), 9.0]] * 4])[None]
    assert resized(values, inside, (1, 2)).tolist() == [[[[2.5, 8.0]]]]


def test_a_map_of_the_grid_is_itself():
    values = torch.randn(2, 3, 8, 12)
    assert resized(values, torch.ones(2, 32, 48, dtype=torch.bool), (8, 12)) is values


def test_padding_has_no_share_in_a_resized_map():
    inside = torch.ones(1, 4, 8, dtype=torch.bool)
    inside[:, :, 4:] = False
    values = torch.tensor([[[[1.0, 3.0, float("inf"), float("nan")]]]])
    found = resized(values, inside, (1, 8))  # cells of two pixels, the last two padding
    assert found[0, 0, 0, :4].tolist() == pytest.approx([1.0, 1.5, 2.5, 3.0])
    assert found.isfinite().all()


def picture(output: torch.Tensor, target: torch.Tensor, rows: int = 32) -> Batch:
    inside = torch.zeros(len(output), 32, 48, dtype=torch.bool)
    inside[:, :rows] = True
    return Batch(
        keys=tuple("abcdef"[: len(output)]),
        image=torch.zeros(len(output), 3, 32, 48),
        mask=torch.zeros(len(output), 32, 48, dtype=torch.long),
        inside=inside,
        targets={"said": target},
    )


CASES = [
    (FeatureMSE, "feature_mse", lambda s, t: (s - t).square().mean(1)),
    (FeatureCosine, "feature_cosine", lambda s, t: 1 - functional.cosine_similarity(s, t, dim=1)),
]


@pytest.mark.parametrize("align", ["teacher", "student"])
@pytest.mark.parametrize(("term", "name", "loss"), CASES, ids=[case[1] for case in CASES])
@pytest.mark.parametrize("grids", [((4, 6), (8, 12)), ((8, 12), (4, 6)), ((8, 12), (5, 7))])
def test_a_term_compares_on_the_grid_that_it_names(align, term, name, loss, grids):
    draw = torch.Generator().manual_seed(2)
    output, target = (
        torch.randn(2, 3, *grid, generator=draw, dtype=torch.float64) for grid in grids
    )
    leaf = output.clone().requires_grad_()
    pair = [leaf, target]
    moved = 0 if align == "teacher" else 1
    size = grids[1 - moved]
    pair[moved] = functional.interpolate(pair[moved], size, mode="bilinear", align_corners=False)
    wanted = loss(*pair).mean()
    wanted.backward()
    ours = output.float().requires_grad_()
    made = term(target="said", tap="encoder.1", align=align)
    batch = picture(output, target.float())
    mean = made.total({"encoder.1>said": ours}, batch, 0.0) / made.count(batch)
    mean.backward()
    assert mean.item() == pytest.approx(wanted.item(), rel=1e-5)
    assert (ours.grad - leaf.grad).abs().max() < 1e-6
    assert leaf.grad.any()


@pytest.mark.parametrize("align", ["teacher", "student"])
def test_padding_might_as_well_be_cut_off(align):
    output, target = torch.randn(1, 3, 4, 6), torch.randn(1, 3, 8, 12)
    term = FeatureMSE(target="said", tap="encoder.1", align=align)
    batch = picture(output, target, rows=8)  # a quarter of the picture
    total = term.total({"encoder.1>said": output}, batch, 0.0)
    pair = [output[:, :, :1], target[:, :, :2]]
    moved, size = (0, (2, 12)) if align == "teacher" else (1, (1, 6))
    pair[moved] = functional.interpolate(pair[moved], size, mode="bilinear", align_corners=False)
    assert term.count(batch) == 24  # cells of the target, on either grid
    assert (total / 24).item() == pytest.approx(functional.mse_loss(*pair).item(), rel=1e-5)


def test_class_weights_add_up_to_their_count_on_the_students_grid():
    draw = torch.Generator().manual_seed(2)
    logits, said = (torch.randn(1, 3, *g, generator=draw) for g in ((4, 6), (8, 12)))
    batch, weights = picture(logits, said), (0.5, 1.0, 4.0)
    term = SoftKL(target="said", align="student", class_weights=weights)
    small = functional.interpolate(said, (4, 6), mode="bilinear", align_corners=False)
    kl = functional.kl_div(
        logits.log_softmax(1), small.log_softmax(1), log_target=True, reduction="none"
    ).sum(1)
    by_class = torch.tensor(weights)[small.argmax(1)]
    wanted = (kl * by_class).sum() / by_class.sum()
    found = term.total({"logits": logits}, batch, 0.0) / term.count(batch)
    assert found.item() == pytest.approx(wanted.item(), rel=1e-5)


def test_noise_of_a_target_is_taken_off_a_squared_error_on_its_own_grid_only():
    output, target = torch.randn(1, 3, 4, 6), torch.randn(1, 3, 4, 6)
    batch = picture(output, target)
    outputs = {"encoder.1>said": output}
    term = FeatureMSE(target="said", tap="encoder.1", align="student")
    before = term.total(outputs, batch, 0.0)
    batch.noise = {"said": torch.tensor([0.25])}
    assert term.total(outputs, batch, 0.0).item() == pytest.approx(before.item() - 24 * 0.25)
    batch.targets["said"] = torch.zeros(1, 3, 8, 12)
    assert term.total(outputs, batch, 0.0).item() == pytest.approx(
        4 * output.square().mean(1).sum().item()
    )
