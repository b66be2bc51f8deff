"""Terms against torch and against hand-worked numbers; what is not valid moves nothing."""

import math

import pytest
import torch
from torch.nn import functional

from stillroom.errors import UserError
from stillroom.losses import (
    BinaryCrossEntropy,
    CauchySchwarz,
    ChannelKL,
    CrossEntropy,
    Dice,
    FeatureCosine,
    FeatureMSE,
    Focal,
    LogitCosine,
    LogitMSE,
    SoftKL,
    Temperature,
    Term,
)
from stillroom.types import Batch

TAP = "encoder.3>yolo"
WARM = Temperature(start=3.0, end=1.0, kind="cosine")
MULTI: list[Term] = [
    CrossEntropy(),
    CrossEntropy(class_weights=(0.5, 2.0, 1.0, 3.0)),
    BinaryCrossEntropy(),
    Dice(),
    SoftKL(target="person", temperature=WARM),
    LogitMSE(target="person"),
    FeatureMSE(target="yolo", tap="encoder.3"),
    FeatureCosine(target="yolo", tap="encoder.3"),
    Focal(),
    Focal(alpha=0.25, gamma=0.5),
    CrossEntropy(output="pair", relabel=(255, 0, 1, 1)),
    CrossEntropy(output="aux", align="labels"),
    Dice(output="aux", align="labels"),
    SoftKL(target="person", class_weights=(0.5, 2.0, 1.0, 3.0)),
    SoftKL(target="small", output="aux", temperature=WARM),
    SoftKL(target="small", align="teacher", class_weights=(0.5, 2.0, 1.0, 3.0)),
    SoftKL(target="small", align="student", class_weights=(0.5, 2.0, 1.0, 3.0)),
    LogitMSE(target="person", output="aux", align="student"),
    LogitCosine(target="person"),
    LogitCosine(target="person", flatten=True),
    FeatureMSE(target="fine", tap="encoder.3", align="teacher"),
    FeatureMSE(target="deep", tap="decoder.1", align="student"),
    FeatureCosine(target="yolo", tap="encoder.3", flatten=True),
    CauchySchwarz(target="yolo", tap="encoder.3"),
    CauchySchwarz(target="fine", tap="encoder.3", align="teacher"),
    CauchySchwarz(target="yolo", tap="encoder.3", kind="cosine"),
    CauchySchwarz(target="person", temperature=2.0),
    ChannelKL(target="person"),
    ChannelKL(target="deep", tap="decoder.1", align="student", temperature=WARM),
]
BINARY: list[Term] = [
    Focal(alpha=0.25),
    SoftKL(target="person", class_weights=(0.5, 2.0)),
    LogitCosine(target="person", flatten=True),
    ChannelKL(target="person"),
    BinaryCrossEntropy(),
    BinaryCrossEntropy(pos_weight=3.0),
    Dice(),
    SoftKL(target="person", temperature=WARM),
    LogitMSE(target="person"),
]
CASES = [(term, 4) for term in MULTI] + [(term, 1) for term in BINARY]
IDS = [f"{term.label}-{k}-{i}" for i, (term, k) in enumerate(CASES)]


def make(
    k: int, *, b: int = 4, h: int = 16, w: int = 24, channels: int = 6, seed: int = 0
) -> tuple[dict[str, torch.Tensor], Batch]:
    """Random outputs and a batch with void, padding, an unlabelled picture; features: stride 8,
    decoder.1 and `fine` 4, the head `aux` and `small` 2.
    """
    g = torch.Generator().manual_seed(seed)
    mask = torch.randint(0, max(k, 2), (b, h, w), generator=g)
    mask[:, :3, :5] = 255
    mask[1] = 255
    inside = torch.ones(b, h, w, dtype=torch.bool)
    inside[-1, :, 16:] = False
    outputs = {
        "logits": 2 * torch.randn(b, k, h, w, generator=g),
        TAP: torch.randn(b, channels, h // 8, w // 8, generator=g),
    }
    targets = {
        "person": 2 * torch.randn(b, k, h, w, generator=g),
        "yolo": torch.randn(b, channels, h // 8, w // 8, generator=g),
    }
    outputs |= {
        "aux": 2 * torch.randn(b, k, h // 2, w // 2, generator=g),
        "pair": 2 * torch.randn(b, 2, h, w, generator=g),
        "encoder.3>fine": torch.randn(b, 6, h // 8, w // 8, generator=g),
        "decoder.1>deep": torch.randn(b, 6, h // 4, w // 4, generator=g),
    }
    targets |= {
        "small": 2 * torch.randn(b, k, h // 2, w // 2, generator=g),
        "fine": torch.randn(b, 6, h // 4, w // 4, generator=g),
        "deep": torch.randn(b, 6, h // 8, w // 8, generator=g),
    }
    batch = Batch(
        keys=tuple(str(i) for i in range(b)),
        image=torch.rand(b, 3, h, w, generator=g),
        mask=mask,
        inside=inside,
        targets=targets,
    )
    return outputs, batch


def part(outputs: dict[str, torch.Tensor], batch: Batch, rows: slice):
    """The rows of a batch, as another micro-batch would hold them."""
    return {name: value[rows] for name, value in outputs.items()}, Batch(
        keys=batch.keys[rows],
        image=batch.image[rows],
        mask=batch.mask[rows],
        inside=batch.inside[rows],
        targets={name: value[rows] for name, value in batch.targets.items()},
    )


def labelled(batch: Batch) -> torch.Tensor:
    return (batch.mask != 255) & batch.inside


def left_out_of(term: Term, batch: Batch, value: torch.Tensor) -> torch.Tensor:
    """Where a term may not look: on pixels without label, on cells in padding."""
    valid = batch.inside
    if term.needs.target is None and term.needs.align is None:
        valid = labelled(batch)
        for number, channel in enumerate(getattr(term, "relabel", ())):
            valid &= (channel != 255) | (batch.mask != number)
    stride = valid.shape[1] // value.shape[2]  # padding ends where a cell of 8 pixels does
    return ~valid[:, None, stride // 2 :: stride, stride // 2 :: stride].expand_as(value)


def test_cross_entropy_is_that_of_torch():
    outputs, batch = make(4)
    mask = torch.where(labelled(batch), batch.mask, -100)
    term, weighted = CrossEntropy(), CrossEntropy(class_weights=(0.5, 2.0, 1.0, 3.0))
    mean = functional.cross_entropy(outputs["logits"], mask)
    assert term.total(outputs, batch, 0.0) / term.count(batch) == pytest.approx(mean.item())
    mean = functional.cross_entropy(
        outputs["logits"], mask, weight=torch.tensor([0.5, 2.0, 1.0, 3.0])
    )
    ours = weighted.total(outputs, batch, 0.0) / weighted.count(batch)
    assert ours == pytest.approx(mean.item(), rel=1e-5)


def test_binary_cross_entropy_is_that_of_torch():
    outputs, batch = make(1)
    valid = labelled(batch)
    term = BinaryCrossEntropy(pos_weight=3.0)
    mean = functional.binary_cross_entropy_with_logits(
        outputs["logits"][:, 0][valid], batch.mask[valid].float(), pos_weight=torch.tensor(3.0)
    )
    ours = term.total(outputs, batch, 0.0) / term.count(batch)
    assert ours == pytest.approx(mean.item(), rel=1e-5)


def test_binary_cross_entropy_of_several_channels_is_each_class_against_the_rest():
    outputs, batch = make(4)
    valid = labelled(batch)
    truth = functional.one_hot(batch.mask[valid], 4).float()
    mean = functional.binary_cross_entropy_with_logits(
        outputs["logits"].permute(0, 2, 3, 1)[valid], truth
    )
    term = BinaryCrossEntropy()
    ours = term.total(outputs, batch, 0.0) / term.count(batch)
    assert ours == pytest.approx(mean.item(), rel=1e-5)


def test_multi_class_kl_is_that_of_torch_times_temperature_squared():
    outputs, batch = make(4)
    term = SoftKL(target="person", temperature=Temperature(start=4.0))
    kl = functional.kl_div(
        (outputs["logits"] / 4).log_softmax(1),
        (batch.targets["person"] / 4).log_softmax(1),
        reduction="none",
        log_target=True,
    )
    mean = 16 * kl.sum(1)[batch.inside].mean()
    ours = term.total(outputs, batch, 0.0) / term.count(batch)
    assert ours == pytest.approx(mean.item(), rel=1e-5)


def test_bernoulli_kl_is_that_of_two_classes():
    outputs, batch = make(1)
    term = SoftKL(target="person", temperature=Temperature(start=2.0))
    pair = {name: torch.cat([v, torch.zeros_like(v)], 1) for name, v in outputs.items()}
    ours = term.total(outputs, batch, 0.0)
    person = batch.targets["person"]
    batch.targets["person"] = torch.cat([person, torch.zeros_like(person)], 1)
    assert ours == pytest.approx(term.total(pair, batch, 0.0).item(), rel=1e-5)


def test_bernoulli_kl_worked_by_hand():
    outputs = {"logits": torch.zeros(1, 1, 1, 2)}
    batch = _tiny([[0, 1]])
    batch.targets["person"] = torch.tensor([[[[math.log(3.0), 0.0]]]])  # p = 3/4 and 1/2
    term = SoftKL(target="person")
    by_hand = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert term.total(outputs, batch, 0.0) == pytest.approx(by_hand, rel=1e-6)
    assert term.count(batch) == 2


def _tiny(mask: list[list[int]]) -> Batch:
    labels = torch.tensor([mask])
    return Batch(
        keys=("a",),
        image=torch.zeros(1, 3, *labels.shape[1:]),
        mask=labels,
        inside=torch.ones_like(labels, dtype=torch.bool),
    )


def test_temperature_squared_keeps_the_size_of_the_gradient():
    outputs, batch = make(4)
    norms = []
    for t in (20.0, 40.0):
        logits = outputs["logits"].clone().requires_grad_()
        term = SoftKL(target="person", temperature=Temperature(start=t))
        term.total({"logits": logits}, batch, 0.0).backward()
        norms.append(logits.grad.norm().item())
    assert norms[0] == pytest.approx(norms[1], rel=0.05)


def test_the_temperature_follows_progress():
    outputs, batch = make(4)
    warm = SoftKL(target="person", temperature=WARM)
    for progress, t in ((0.0, 3.0), (1.0, 1.0)):
        fixed = SoftKL(target="person", temperature=Temperature(start=t))
        assert warm.total(outputs, batch, progress) == fixed.total(outputs, batch, 0.3)


def test_binary_dice_worked_by_hand():
    half = math.log(3.0)  # sigmoid 3/4
    batch = _tiny([[1, 0], [0, 255]])
    logits = torch.tensor([[[[half, -half], [0.0, 99.0]]]])  # p: .75 .25 .5, and void
    by_hand = 1 - (2 * 0.75 + 1e-5) / (1.5 + 1.0 + 1e-5)
    assert Dice().total({"logits": logits}, batch, 0.0) == pytest.approx(by_hand, rel=1e-6)


def test_a_labelled_picture_without_foreground_counts_in_binary_dice():
    batch = _tiny([[0, 0], [0, 255]])
    by_hand = 1 - 1e-5 / (3 * 0.5 + 1e-5)  # p 1/2 on three pixels, none of them foreground
    ours = Dice().total({"logits": torch.zeros(1, 1, 2, 2)}, batch, 0.0)
    assert ours == pytest.approx(by_hand, rel=1e-6)
    assert Dice().count(batch) == 1


def test_multi_class_dice_is_over_present_classes_only():
    batch = _tiny([[0, 0], [1, 255]])
    logits = torch.zeros(1, 3, 2, 2)  # every class 1/3; class 2 is not in the mask
    background, one = 1 - 2 * (2 / 3) / (1 + 2), 1 - 2 * (1 / 3) / (1 + 1)
    ours = Dice().total({"logits": logits}, batch, 0.0)
    assert ours == pytest.approx((background + one) / 2, rel=1e-4)


def test_dice_is_per_picture():
    outputs, batch = make(4)
    alone = [Dice().total(*part(outputs, batch, slice(i, i + 1)), 0.0) for i in range(4)]
    assert Dice().total(outputs, batch, 0.0) == pytest.approx(sum(alone).item(), rel=1e-6)
    assert Dice().count(batch) == 3  # one picture has no label
    assert alone[1] == 0


def test_logit_mse_is_that_of_torch():
    outputs, batch = make(4)
    term = LogitMSE(target="person")
    inside = batch.inside[:, None].expand_as(outputs["logits"])
    mean = functional.mse_loss(outputs["logits"][inside], batch.targets["person"][inside])
    ours = term.total(outputs, batch, 0.0) / term.count(batch)
    assert ours == pytest.approx(mean.item(), rel=1e-5)


def test_feature_terms_are_those_of_torch_on_cells_whose_centre_is_inside():
    outputs, batch = make(4)
    cells = torch.ones(4, 2, 3, dtype=torch.bool)
    cells[3, :, 2] = False  # pixels 16 to 23 of the last picture are padding
    student = outputs[TAP].movedim(1, -1)[cells]
    teacher = batch.targets["yolo"].movedim(1, -1)[cells]
    mse, cosine = MULTI[6:8]
    assert mse.count(batch) == cosine.count(batch) == 22
    by_torch = functional.mse_loss(student, teacher).item()
    assert mse.total(outputs, batch, 0.0) / 22 == pytest.approx(by_torch, rel=1e-5)
    by_torch = 1 - functional.cosine_similarity(student, teacher).mean().item()
    assert cosine.total(outputs, batch, 0.0) / 22 == pytest.approx(by_torch, rel=1e-5)


@pytest.mark.parametrize(("term", "k"), CASES, ids=IDS)
def test_a_term_weighs_one_unless_it_says_otherwise(term: Term, k: int):
    assert term.weight == 1.0


@pytest.mark.parametrize(("term", "k"), CASES, ids=IDS)
def test_counts_are_float64_and_totals_fp32(term: Term, k: int):
    outputs, batch = make(k)
    count, total = term.count(batch), term.total(outputs, batch, 0.5)
    assert count.dtype == torch.float64 and count.shape == ()
    assert total.dtype == torch.float32 and total.shape == ()
    assert count > 0 and total > 0


@pytest.mark.parametrize(("term", "k"), CASES, ids=IDS)
def test_two_halves_add_up_to_the_whole(term: Term, k: int):
    outputs, batch = make(k)
    halves = [part(outputs, batch, slice(0, 1)), part(outputs, batch, slice(1, 4))]
    assert sum(term.count(half) for _, half in halves) == term.count(batch)
    total = sum(term.total(some, half, 0.5) for some, half in halves)
    assert total == pytest.approx(term.total(outputs, batch, 0.5).item(), rel=1e-5)


@pytest.mark.parametrize(("term", "k"), CASES, ids=IDS)
def test_void_and_padding_move_nothing(term: Term, k: int):
    outputs, batch = make(k)
    value = outputs[term.needs.output].clone().requires_grad_()
    total = term.total({term.needs.output: value}, batch, 0.5)
    total.backward()
    left_out = left_out_of(term, batch, value)
    assert left_out.any()
    assert (value.grad[left_out] == 0).all() and (value.grad[~left_out] != 0).any()
    wild = value.detach().masked_fill(left_out, float("inf"))
    if term.needs.target is not None:
        target = batch.targets[term.needs.target]
        holes = left_out_of(term, batch, target)
        batch.targets[term.needs.target] = target.masked_fill(holes, float("nan"))
    wild.requires_grad_()
    same = term.total({term.needs.output: wild}, batch, 0.5)
    same.backward()
    assert same == total
    assert torch.equal(wild.grad, value.grad)


@pytest.mark.parametrize(("term", "k"), CASES, ids=IDS)
def test_gradients_are_those_of_finite_differences(term: Term, k: int):
    outputs, batch = make(k, b=2)
    value = outputs[term.needs.output].clone().requires_grad_()
    term.total({term.needs.output: value}, batch, 0.5).backward()
    direction = torch.randn(value.shape, generator=torch.Generator().manual_seed(3))
    step, ends = 1e-2, []
    for sign in (1, -1):
        moved = value.detach() + sign * step * direction
        ends.append(term.total({term.needs.output: moved}, batch, 0.5).item())
    slope = (value.grad * direction).sum().item()
    assert (ends[0] - ends[1]) / (2 * step) == pytest.approx(slope, rel=1e-2, abs=1e-2)


@pytest.mark.parametrize(("term", "k"), CASES, ids=IDS)
def test_nothing_valid_gives_exactly_zero_and_a_zero_gradient(term: Term, k: int):
    outputs, batch = make(k)
    batch.mask.fill_(255)
    batch.inside.fill_(False)
    value = outputs[term.needs.output].clone().requires_grad_()
    total = term.total({term.needs.output: value}, batch, 0.5)
    total.backward()
    assert term.count(batch) == 0 and total == 0
    assert (value.grad == 0).all()


@pytest.mark.parametrize(("term", "k"), CASES, ids=IDS)
def test_pictures_without_labels_are_distilled_in_full(term: Term, k: int):
    outputs, batch = make(k)
    before = term.count(batch), term.total(outputs, batch, 0.5)
    batch.mask.fill_(255)
    after = term.count(batch), term.total(outputs, batch, 0.5)
    assert after == ((0, 0) if term.needs.target is None else before)


@pytest.mark.parametrize(("term", "k"), CASES, ids=IDS)
def test_half_precision_is_finite_and_near_fp32_on_a_wide_target(term: Term, k: int):
    outputs, batch = make(k, b=2, h=640, w=640, channels=1024)
    outputs = {name: value * 8 for name, value in outputs.items()}
    exact = term.total(outputs, batch, 0.5)
    halved = {name: value.half().requires_grad_() for name, value in outputs.items()}
    with torch.autocast("cpu", torch.float16):
        total = term.total(halved, batch, 0.5)
    (total / term.count(batch)).backward()
    assert total.dtype == torch.float32 and total.isfinite()
    assert total.item() == pytest.approx(exact.item(), rel=1e-2)
    assert halved[term.needs.output].grad.isfinite().all()


@pytest.mark.parametrize(
    ("term", "k"), [c for c in CASES if c[0].needs.output == "logits"], ids=lambda v: str(v)[:16]
)
def test_extreme_logits_stay_finite(term: Term, k: int):
    outputs, batch = make(k)
    value = (outputs["logits"] * 1e4).requires_grad_()
    total = term.total({"logits": value}, batch, 1.0)
    total.backward()
    assert total.isfinite() and value.grad.isfinite().all()


@pytest.mark.parametrize(
    "make_term",
    [
        lambda: CrossEntropy(class_weights=(1.0, -1.0)),
        lambda: BinaryCrossEntropy(pos_weight=0.0),
        lambda: Dice(smooth=0.0),
        lambda: Dice(relabel=(0, 256)),
        lambda: CrossEntropy(class_weights=(0.0, 0.0)),
        lambda: SoftKL(target="a", class_weights=(1.0, float("inf"))),
        lambda: Focal(alpha=1.5),
        lambda: Focal(gamma=-1.0),
        lambda: CauchySchwarz(target="a", temperature=0.0),
    ],
)
def test_impossible_fields_are_refused(make_term):
    with pytest.raises(UserError):
        make_term()
