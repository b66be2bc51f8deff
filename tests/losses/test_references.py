"""Every term against the formula written once more, in float64, over the valid cells one by one:
mean and gradient; and numbers worked by hand.
"""

import math
from collections.abc import Callable
from itertools import chain

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from stillroom.losses import (
    BinaryCrossEntropy,
    CauchySchwarz,
    ChannelKL,
    CrossEntropy,
    Dice,
    FeatureCosine,
    FeatureMSE,
    Focal,
    HeadAgreement,
    LogitCosine,
    LogitMSE,
    SoftKL,
    Temperature,
    Term,
)
from stillroom.types import IGNORE, Batch

WEIGHTS = (0.5, 2.0, 1.0, 3.0)
TWO = Temperature(start=2.0)
Vectors = list[Tensor]  # one (c,) a valid cell


def batch_of(k: int, grid: tuple[int, int] = (8, 12)) -> tuple[Tensor, Batch]:
    """An output (b k y x) in float64 and a batch of 8 x 12 px with void and padding."""
    g = torch.Generator().manual_seed(5)
    mask = torch.randint(0, max(k, 2), (3, 8, 12), generator=g)
    mask[0, :2, :5], mask[1] = IGNORE, IGNORE
    inside = torch.ones(3, 8, 12, dtype=torch.bool)
    inside[2, :, 8:] = False
    said = 2 * torch.randn(3, k, *grid, generator=g)
    batch = Batch(
        keys=("a", "b", "c"),
        image=torch.zeros(3, 3, 8, 12),
        mask=mask,
        inside=inside,
        targets={"said": said},
    )
    return 2 * torch.randn(3, k, *grid, generator=g, dtype=torch.float64), batch


def cells(value: Tensor, batch: Batch) -> list[Vectors]:
    """Of each picture the vectors of the cells whose centre is no padding."""
    stride = batch.inside.shape[1] // value.shape[2]
    return [
        [
            picture[:, y, x]
            for y in range(value.shape[2])
            for x in range(value.shape[3])
            if inside[y * stride + stride // 2, x * stride + stride // 2]
        ]
        for picture, inside in zip(value, batch.inside, strict=True)
    ]


def labelled(value: Tensor, batch: Batch) -> list[list[tuple[Tensor, int]]]:
    """Of each picture the (vector, label) of the pixels that have one."""
    return [
        [
            (picture[:, y, x], int(mask[y, x]))
            for y in range(8)
            for x in range(12)
            if inside[y, x] and mask[y, x] != IGNORE
        ]
        for picture, mask, inside in zip(value, batch.mask, batch.inside, strict=True)
    ]


def over_pixels(loss: Callable, weigh: Callable = lambda v, y: 1.0) -> Callable:
    def mean(value: Tensor, batch: Batch) -> Tensor:
        pairs = list(chain.from_iterable(labelled(value, batch)))
        return sum(loss(v, y) for v, y in pairs) / sum(weigh(v, y) for v, y in pairs)

    return mean


def over_cells(loss: Callable, weigh: Callable = lambda t: 1.0) -> Callable:
    def mean(value: Tensor, batch: Batch) -> Tensor:
        maps = value, batch.targets["said"].double()
        pairs = list(zip(*(chain.from_iterable(cells(m, batch)) for m in maps), strict=True))
        return sum(weigh(t) * loss(s, t) for s, t in pairs) / sum(weigh(t) for _, t in pairs)

    return mean


def over_pictures(loss: Callable) -> Callable:
    def mean(value: Tensor, batch: Batch) -> Tensor:
        said = cells(batch.targets["said"].double(), batch)
        pairs = [
            (torch.stack(s), torch.stack(t)) for s, t in zip(cells(value, batch), said, strict=True)
        ]
        return sum(loss(s, t) for s, t in pairs) / len(pairs)

    return mean


def ce(v: Tensor, y: int) -> Tensor:
    return -(v.exp()[y] / v.exp().sum()).log()


def bce(v: Tensor, y: int) -> Tensor:
    truth = torch.tensor([float(y == 1)] if len(v) == 1 else [float(y == c) for c in range(len(v))])
    p = 1 / (1 + (-v).exp())
    return -(truth * p.log() + (1 - truth) * (1 - p).log()).mean()


def focal(alpha: float, gamma: float) -> Callable:
    def loss(v: Tensor, y: int) -> Tensor:
        if len(v) == 1:
            p = 1 / (1 + (-v[0]).exp())
            p, factor = (p, alpha) if y == 1 else (1 - p, 1 - alpha)
        else:
            p, factor = v.exp()[y] / v.exp().sum(), alpha
        return -factor * (1 - p) ** gamma * p.log()

    return loss


def dice(value: Tensor, batch: Batch) -> Tensor:
    found = []
    for picture in labelled(value, batch):
        scores = []
        for c in {y for _, y in picture}:
            p = [(v.exp() / v.exp().sum())[c] for v, _ in picture]
            overlap = sum(q for q, (_, y) in zip(p, picture, strict=True) if y == c)
            size = sum(y == c for _, y in picture)
            scores.append(1 - (2 * overlap + 1e-5) / (sum(p) + size + 1e-5))
        if scores:
            found.append(sum(scores) / len(scores))
    return sum(found) / len(found)


def kl(t: float) -> Callable:
    def loss(student: Tensor, teacher: Tensor) -> Tensor:
        if len(student) == 1:
            student, teacher = (torch.cat([v, torch.zeros(1)]) for v in (student, teacher))
        p, q = ((v / t).exp() / (v / t).exp().sum() for v in (teacher, student))
        return t**2 * (p * (p / q).log()).sum()

    return loss


def channel_kl(student: Tensor, teacher: Tensor) -> Tensor:
    p, q = ((v / 4).exp() / (v / 4).exp().sum(0) for v in (teacher, student))
    return 16 * (p * (p / q).log()).sum(0).mean()


def cosine(s: Tensor, t: Tensor) -> Tensor:
    s, t = s.flatten(), t.flatten()
    return 1 - (s * t).sum() / (s.square().sum().sqrt() * t.square().sum().sqrt())


def cauchy_schwarz(temperature: float) -> Callable:
    def loss(s: Tensor, t: Tensor) -> Tensor:
        s, t = ((v / temperature).exp() / (v / temperature).exp().sum() for v in (s, t))
        return -((s * t).sum() ** 2 / ((s * s).sum() * (t * t).sum())).log()

    return loss


def mse(s: Tensor, t: Tensor) -> Tensor:
    return (s - t).square().mean()


def weight_of(t: Tensor) -> float:
    return WEIGHTS[int(t.argmax())]


TAP = {"target": "said", "tap": "encoder.1"}
LOGITS = {"target": "said"}
FEATURE_GRID, FULL = (2, 3), (8, 12)
CASES: list[tuple[Term, int, tuple[int, int], Callable]] = [
    (CrossEntropy(), 4, FULL, over_pixels(ce)),
    (
        CrossEntropy(class_weights=WEIGHTS),
        4,
        FULL,
        over_pixels(lambda v, y: WEIGHTS[y] * ce(v, y), lambda v, y: WEIGHTS[y]),
    ),
    (BinaryCrossEntropy(), 1, FULL, over_pixels(bce)),
    (BinaryCrossEntropy(), 4, FULL, over_pixels(bce)),
    (Focal(), 4, FULL, over_pixels(focal(0.5, 2.0))),
    (Focal(alpha=0.25, gamma=1.5), 4, FULL, over_pixels(focal(0.25, 1.5))),
    (Focal(alpha=0.25), 1, FULL, over_pixels(focal(0.25, 2.0))),
    (Dice(), 4, FULL, dice),
    (SoftKL(temperature=TWO, **LOGITS), 4, FULL, over_cells(kl(2.0))),
    (SoftKL(temperature=TWO, **LOGITS), 1, FULL, over_cells(kl(2.0))),
    (SoftKL(class_weights=WEIGHTS, **LOGITS), 4, FULL, over_cells(kl(1.0), weight_of)),
    (LogitMSE(**LOGITS), 4, FULL, over_cells(mse)),
    (LogitCosine(**LOGITS), 4, FULL, over_cells(cosine)),
    (LogitCosine(flatten=True, **LOGITS), 4, FULL, over_pictures(cosine)),
    (LogitCosine(flatten=True, **LOGITS), 1, FULL, over_pictures(cosine)),
    (FeatureMSE(**TAP), 6, FEATURE_GRID, over_cells(mse)),
    (FeatureCosine(**TAP), 6, FEATURE_GRID, over_cells(cosine)),
    (FeatureCosine(flatten=True, **TAP), 6, FEATURE_GRID, over_pictures(cosine)),
    (CauchySchwarz(**TAP), 6, FEATURE_GRID, over_cells(cauchy_schwarz(1.0))),
    (CauchySchwarz(temperature=2.0, **LOGITS), 4, FULL, over_cells(cauchy_schwarz(2.0))),
    (CauchySchwarz(kind="cosine", **TAP), 6, FEATURE_GRID, over_cells(cosine)),
    (ChannelKL(**TAP), 6, FEATURE_GRID, over_pictures(channel_kl)),
    (ChannelKL(**LOGITS), 4, FULL, over_pictures(channel_kl)),
]


@pytest.mark.parametrize(
    ("term", "k", "grid", "reference"),
    CASES,
    ids=[f"{case[0].label}-{case[1]}-{i}" for i, case in enumerate(CASES)],
)
def test_mean_and_gradient_are_those_of_the_formula(term, k, grid, reference):
    value, batch = batch_of(k, grid)
    exact = value.clone().requires_grad_()
    wanted = reference(exact, batch)
    wanted.backward()
    ours = value.float().requires_grad_()
    mean = term.total({term.needs.output: ours}, batch, 0.0) / term.count(batch)
    mean.backward()
    assert mean.item() == pytest.approx(wanted.item(), rel=1e-5)
    assert (ours.grad - exact.grad).abs().max() < 1e-5 * max(1.0, exact.grad.abs().max())
    assert exact.grad.any()


def test_dice_of_chosen_channels_counts_them_whether_they_are_in_the_mask_or_not():
    value, batch = batch_of(4)
    batch.mask[batch.mask == 1] = 2
    found = []
    for picture in labelled(value, batch):
        p = sum((v.exp() / v.exp().sum())[1] for v, _ in picture)
        found += [1 - 1e-5 / (p + 1e-5)] if picture else []
    term = Dice(only=(1,))
    mean = term.total({"logits": value.float()}, batch, 0.0) / term.count(batch)
    assert mean.item() == pytest.approx((sum(found) / len(found)).item(), rel=1e-5)


def test_agreement_is_the_squared_difference_of_probabilities_added_up():
    logits, batch = batch_of(3)
    head = torch.randn(3, 2, 8, 12, dtype=torch.float64)
    batch.mask[batch.mask == 3] = 0
    squares = []
    for own, other in zip(labelled(head, batch), labelled(logits, batch), strict=True):
        for (h, _), (v, _) in zip(own, other, strict=True):
            p, q = h.exp() / h.exp().sum(), v.exp() / v.exp().sum()
            squares.append((p[1] - q[1] - q[2]) ** 2)
    term = HeadAgreement(output="bg_fg", relabel=(0, 1, 1))
    leaves = {"bg_fg": head.float().requires_grad_(), "logits": logits.float().requires_grad_()}
    mean = term.total(leaves, batch, 0.0) / term.count(batch)
    mean.backward()
    assert mean.item() == pytest.approx((sum(squares) / len(squares)).item(), rel=1e-5)
    assert all(leaf.grad.any() for leaf in leaves.values())


def test_the_labels_class_weighs_a_pixel_where_there_is_one():
    value, batch = batch_of(4)
    term = SoftKL(target="said", class_weights=WEIGHTS, class_of="labels")
    total = weights = 0.0
    for picture in range(3):
        for y in range(8):
            for x in range(12):
                if batch.inside[picture, y, x]:
                    said = batch.targets["said"][picture, :, y, x].double()
                    label = int(batch.mask[picture, y, x])
                    weight = WEIGHTS[int(said.argmax()) if label == IGNORE else label]
                    total += weight * kl(1.0)(value[picture, :, y, x], said)
                    weights += weight
    assert term.count(batch) == weights
    ours = term.total({"logits": value.float()}, batch, 0.0)
    assert ours.item() == pytest.approx(total.item(), rel=1e-5)


def two_by_two(output: list, said: list, mask: list | None = None) -> tuple[Tensor, Batch]:
    """One picture of 2 x 2 px; output and said are (c 2 2)."""
    value, target = torch.tensor([output]), torch.tensor([said])
    labels = torch.tensor([mask or [[IGNORE] * 2] * 2])
    inside = torch.ones(1, 2, 2, dtype=torch.bool)
    image = torch.zeros(1, 3, 2, 2)
    targets = {"said": target}
    return value, Batch(keys=("a",), image=image, mask=labels, inside=inside, targets=targets)


def test_cauchy_schwarz_worked_by_hand():
    third = math.log(3.0)  # softmax (3/4, 1/4)
    value, batch = two_by_two(
        [[[third, 0.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, third]]],
        [[[third, 0.0], [third, third]], [[0.0, 0.0], [0.0, 0.0]]],
    )
    # (s, t) = equal, equal, (1/2, 1/2) and (3/4, 1/4), (1/4, 3/4) and (3/4, 1/4)
    half = -math.log(0.5**2 / (0.5 * 0.625))
    swapped = -math.log((0.375 / 0.625) ** 2)
    total = CauchySchwarz(target="said").total({"logits": value}, batch, 0.0)
    assert total.item() == pytest.approx(half + swapped, rel=1e-6)


def test_cauchy_schwarz_is_minus_two_logarithms_of_the_cosine_and_finite_far_apart():
    value, batch = two_by_two(
        [[[400.0] * 2] * 2, [[0.0] * 2] * 2], [[[0.0] * 2] * 2, [[9.0] * 2] * 2]
    )
    leaf = value.requires_grad_()
    total = CauchySchwarz(target="said").total({"logits": leaf}, batch, 0.0)
    total.backward()
    assert total.item() == pytest.approx(4 * 2 * 9.0, rel=1e-4)  # s.t = exp(-9) but for 1e-4
    assert leaf.grad.isfinite().all()


def test_channel_kl_worked_by_hand():
    third = 4 * math.log(3.0)  # at temperature 4 a cell of weight 3 among three of weight 1
    value, batch = two_by_two([[[0.0, 0.0], [0.0, 0.0]]], [[[third, 0.0], [0.0, 0.0]]])
    by_hand = 16 * (0.5 * math.log(0.5 / 0.25) + 3 / 6 * math.log((1 / 6) / 0.25))
    total = ChannelKL(target="said").total({"logits": value}, batch, 0.0)
    assert total.item() == pytest.approx(by_hand, rel=1e-5)


def test_focal_worked_by_hand():
    third = math.log(3.0)
    value, batch = two_by_two(
        [[[third, third], [0.0, 0.0]]], [[[0.0] * 2] * 2], [[1, 0], [1, IGNORE]]
    )
    # p of the truth: 3/4 of a positive, 1/4 of a negative, 1/2 of a positive
    by_hand = -0.25 * (1 / 16 * math.log(0.75) + 1 / 4 * math.log(0.5))
    by_hand -= 0.75 * 9 / 16 * math.log(0.25)
    total = Focal(alpha=0.25).total({"logits": value}, batch, 0.0)
    assert total.item() == pytest.approx(by_hand, rel=1e-6)


def test_focal_of_one_channel_is_that_of_torchvision():
    ops = pytest.importorskip("torchvision.ops")
    value, batch = batch_of(1)
    valid = batch.inside & (batch.mask != IGNORE)
    wanted = ops.sigmoid_focal_loss(
        value[:, 0][valid], batch.mask[valid].double(), alpha=0.25, gamma=2, reduction="sum"
    )
    ours = Focal(alpha=0.25).total({"logits": value.float()}, batch, 0.0)
    assert ours.item() == pytest.approx(wanted.item(), rel=1e-5)


def test_focal_with_gamma_0_is_half_the_cross_entropy():
    value, batch = batch_of(4)
    outputs = {"logits": value.float()}
    wanted = CrossEntropy().total(outputs, batch, 0.0) / 2
    assert Focal(gamma=0.0).total(outputs, batch, 0.0).item() == pytest.approx(wanted.item())


def test_a_certain_focal_pixel_has_no_infinite_gradient():
    value, batch = two_by_two(
        [[[200.0] * 2] * 2, [[0.0] * 2] * 2], [[[0.0] * 2] * 2] * 2, [[0, 1]] * 2
    )
    leaf = value.requires_grad_()
    Focal(gamma=0.5).total({"logits": leaf}, batch, 0.0).backward()
    assert leaf.grad.isfinite().all() and leaf.grad[..., 1].any()


def test_whole_vectors_of_a_picture_have_one_cosine():
    value, batch = two_by_two([[[3.0, 0.0], [0.0, 0.0]]], [[[4.0, 3.0], [0.0, 0.0]]])
    term = LogitCosine(target="said", flatten=True)
    assert term.total({"logits": value}, batch, 0.0).item() == pytest.approx(1 - 12 / 15)
    assert term.count(batch) == 1


def test_a_relabelled_head_learns_groups_of_classes():
    value, batch = batch_of(4)
    groups = torch.tensor([IGNORE, 0, 1, 1, *[IGNORE] * 252])
    pair = value[:, :2].float()
    wanted = functional.cross_entropy(
        pair,
        torch.where(batch.inside, groups[batch.mask], IGNORE),
        ignore_index=IGNORE,
    )
    term = CrossEntropy(output="pair", relabel=(IGNORE, 0, 1, 1))
    ours = term.total({"pair": pair}, batch, 0.0) / term.count(batch)
    assert ours.item() == pytest.approx(wanted.item(), rel=1e-5)


def test_balanced_weights_are_one_over_the_pixels_and_add_up_to_the_classes():
    term = CrossEntropy(class_weights="balanced")
    assert term.needs.class_counts and term.needs.channels is None
    found = term.with_class_counts((8, 0, 2, 4))
    assert found.class_weights == pytest.approx((4 / 7, 0, 16 / 7, 8 / 7))
    assert sum(found.class_weights) == pytest.approx(4) and not found.needs.class_counts
    grouped = CrossEntropy(class_weights="balanced", relabel=(255, 0, 1, 1))
    assert grouped.with_class_counts((8, 3, 2, 4)).class_weights == pytest.approx((4 / 3, 2 / 3))
    kept = SoftKL(target="said", class_weights="balanced").with_class_counts((1, 3))
    assert kept.class_weights == pytest.approx((1.5, 0.5))
