"""The distiller: projections at the start, none in the student, refusals before any work."""

import pytest
import torch
from torch import nn

from stillroom.errors import UserError
from stillroom.losses import (
    CrossEntropy,
    Dice,
    FeatureCosine,
    FeatureMSE,
    LogitMSE,
    SoftKL,
    Term,
)
from stillroom.students.definitions import SmpStudent, UNetStudent
from stillroom.students.distiller import Projection, build_distiller, upstream_parameters
from stillroom.types import TargetSpec

STUDENT = UNetStudent(width=4, depth=3, classes=3)
SIZE = (32, 48)
SPECS = {
    "seg": TargetSpec(name="seg", shape=(3, 32, 48), stride=1, kind="logits"),
    "wide": TargetSpec(name="wide", shape=(20, 4, 6), stride=8, kind="features"),
    "half": TargetSpec(name="half", shape=(3, 16, 24), stride=2, kind="logits"),
    "fine": TargetSpec(name="fine", shape=(7, 16, 24), stride=2, kind="features"),
}
MSE = FeatureMSE(target="wide", tap="encoder.3", hidden=10)
COSINE = FeatureCosine(target="wide", tap="encoder.3", hidden=10)


def test_the_projection_of_the_reference_system_has_its_layers_and_start():
    projection = Projection(40, 768, 1024)
    kinds = [type(layer) for layer in projection]
    assert kinds == [nn.Conv2d, nn.BatchNorm2d, nn.ReLU, nn.Conv2d]
    first, last = projection[0], projection[3]
    assert first.weight.shape == (768, 40, 1, 1) and last.weight.shape == (1024, 768, 1, 1)
    assert (first.bias == 0).all() and (last.bias == 0).all()
    assert first.weight.std().item() == pytest.approx((2 / 768) ** 0.5, rel=0.02)  # fan-out
    assert last.weight.std().item() == pytest.approx((2 / 1024) ** 0.5, rel=0.02)
    assert projection(torch.rand(2, 40, 5, 5)).shape == (2, 1024, 5, 5)


def test_without_hidden_channels_the_projection_is_one_layer():
    assert [type(layer) for layer in Projection(4, None, 6)] == [nn.Conv2d]


def test_outputs_are_logits_and_one_projection_per_tap_and_target():
    fine = FeatureMSE(target="fine", tap="decoder.1", hidden=None)
    terms: tuple[Term, ...] = (CrossEntropy(), SoftKL(target="seg"), MSE, COSINE, fine)
    distiller = build_distiller(STUDENT, terms, SPECS, SIZE)
    outputs = distiller(torch.rand(2, 3, *SIZE))
    assert {name: tuple(value.shape) for name, value in outputs.items()} == {
        "logits": (2, 3, 32, 48),
        "encoder.3>wide": (2, 20, 4, 6),
        "decoder.1>fine": (2, 7, 16, 24),
    }
    assert all(term.needs.output in outputs for term in terms)


@pytest.mark.parametrize("align", ["teacher", "student"])
def test_grids_may_differ_where_a_term_says_which_is_meant(align):
    tap = FeatureMSE(target="wide", tap="encoder.2", hidden=None, align=align)
    terms: tuple[Term, ...] = (tap, LogitMSE(target="half", align=align))
    outputs = build_distiller(STUDENT, terms, SPECS, SIZE)(torch.rand(1, 3, *SIZE))
    assert {name: tuple(value.shape[1:]) for name, value in outputs.items()} == {
        "logits": (3, 32, 48),
        "encoder.2>wide": (20, 8, 12),
    }


def test_a_head_is_a_tap_as_it_is_and_what_leads_to_it_trains():
    terms = (Dice(output="encoder.1", relabel=(0, 7), align="labels"),)
    distiller = build_distiller(STUDENT, terms, SPECS, SIZE)
    image = torch.rand(1, 3, *SIZE)
    distiller.eval()
    outputs = distiller(image)
    _, features = distiller.student.forward_taps(image, ("encoder.1",))
    assert list(outputs) == ["logits", "encoder.1"]
    assert torch.equal(outputs["encoder.1"], features["encoder.1"])
    assert not list(distiller.projections.parameters())
    trained = {n.split(".")[1] for n, p in distiller.student.named_parameters() if p.requires_grad}
    assert trained == {"0", "1"}


def test_the_student_alone_has_no_projection_and_the_same_logits():
    distiller = build_distiller(STUDENT, (MSE,), SPECS, SIZE)
    assert list(distiller.student.state_dict()) == list(STUDENT.build().state_dict())
    assert any("encoder-3>wide" in name for name in distiller.state_dict())
    image = torch.rand(1, 3, *SIZE)
    distiller.eval()
    assert torch.equal(distiller(image)["logits"], distiller.student(image))


def test_every_projection_gets_a_gradient_and_an_optimiser_sees_it():
    distiller = build_distiller(STUDENT, (MSE,), SPECS, SIZE)
    distiller(torch.rand(2, 3, *SIZE))["encoder.3>wide"].square().sum().backward()
    names = dict(distiller.named_parameters())
    projected = {name for name in names if name.startswith("projections")}
    assert len(projected) == 6 and all(names[name].grad is not None for name in projected)
    assert names["student.encoder.3.0.weight"].grad is not None
    assert names["student.decoder.0.0.weight"].grad is None


@pytest.mark.parametrize("student", [STUDENT, SmpStudent(classes=3)])
def test_looking_at_shapes_disturbs_no_statistics_and_leaves_training_mode(student):
    size = (64, 64)
    specs = {"wide": TargetSpec(name="wide", shape=(5, 8, 8), stride=8, kind="features")}
    distiller = build_distiller(student, (MSE,), specs, size)
    upstream_parameters(distiller, "encoder.3")
    norms = [m for m in distiller.modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms and all(module.training for module in distiller.modules())
    for norm in norms:
        assert norm.num_batches_tracked == 0
        assert (norm.running_mean == 0).all() and (norm.running_var == 1).all()


def test_modules_in_evaluation_mode_stay_there():
    distiller = build_distiller(STUDENT, (MSE,), SPECS, SIZE)
    distiller.student.encoder.eval()
    upstream_parameters(distiller, "decoder.0")
    assert not any(module.training for module in distiller.student.encoder.modules())
    assert all(module.training for module in distiller.student.decoder.modules())


def test_upstream_of_a_tap_are_the_parameters_that_lead_to_it():
    distiller = build_distiller(STUDENT, (), {}, SIZE)
    student = distiller.student

    def size_of(*parts: nn.Module) -> int:
        return sum(p.numel() for part in parts for p in part.parameters())

    assert upstream_parameters(distiller, "encoder.0") == size_of(student.encoder[0])
    assert upstream_parameters(distiller, "encoder.3") == size_of(student.encoder)
    both = size_of(student.encoder, student.decoder[0])
    assert upstream_parameters(distiller, "decoder.0") == both
    assert all(p.grad is None for p in student.parameters())


def test_parameters_that_no_term_reaches_ask_for_no_gradient():
    student = SmpStudent(encoder="timm-efficientnet-b0")
    network = build_distiller(student, (Dice(),), {}, (64, 64)).student
    frozen = {name for name, p in network.named_parameters() if not p.requires_grad}
    assert frozen == {"encoder.conv_head.weight", "encoder.bn2.weight", "encoder.bn2.bias"}
    network(torch.rand(2, 3, 64, 64)).sum().backward()
    assert all((p.grad is None) == (not p.requires_grad) for p in network.parameters())


def test_a_loss_on_a_feature_alone_leaves_what_comes_after_it_without_gradient():
    student = build_distiller(STUDENT, (MSE,), SPECS, SIZE).student
    assert all(p.requires_grad for p in student.encoder.parameters())
    assert not any(p.requires_grad for p in student.decoder.parameters())


def test_a_frozen_encoder_has_nothing_upstream():
    distiller = build_distiller(SmpStudent(), (), {}, (64, 64))
    assert upstream_parameters(distiller, "encoder.0") == 0  # the picture itself
    assert upstream_parameters(distiller, "encoder.3") > 0
    distiller.student.encoder.requires_grad_(False)
    assert upstream_parameters(distiller, "encoder.3") == 0
    assert upstream_parameters(distiller, "decoder.0") > 0
    distiller.requires_grad_(False)
    assert upstream_parameters(distiller, "decoder.0") == 0
    with pytest.raises(UserError, match="no such tap"):
        upstream_parameters(distiller, "encoder.9")


ONE = UNetStudent(width=4, depth=3, classes=1)


@pytest.mark.parametrize(
    ("student", "term", "parts"),
    [
        (STUDENT, SoftKL(target="person"), ("needs a target", "person", "seg, wide, half, fine")),
        (STUDENT, FeatureMSE(target="wide", tap="encoder.9"), ("no such tap", "encoder.3")),
        (
            STUDENT,
            FeatureMSE(target="wide", tap="encoder.2"),
            (
                "16 channels on 8 x 12 cells",
                "20 channels on 4 x 6 cells",
                "--terms.N.align teacher (or student)",
                "this grid: encoder.3",
            ),
        ),
        (STUDENT, LogitMSE(target="half"), ("16 x 24", "--terms.N.align teacher (or student)")),
        (STUDENT, CrossEntropy(output="decoder.9"), ("no such tap", "decoder.9", "decoder.1")),
        (STUDENT, Dice(output="encoder.0"), ("the head encoder.0", "4 channels", "3 channels")),
        (
            STUDENT,
            Dice(output="encoder.1", relabel=(0, 7)),
            ("on 32 x 48", "--terms.N.align labels"),
        ),
        (STUDENT, SoftKL(target="seg", output="encoder.0"), ("the head encoder.0", "seg are 3")),
        (ONE, SoftKL(target="seg"), ("1 channels on 32 x 48", "3 channels on 32 x 48")),
        (STUDENT, LogitMSE(target="wide"), ("does not fit", "features wide")),
        (ONE, CrossEntropy(), ("does not fit", "2 channels or more")),
        (STUDENT, CrossEntropy(class_weights=(1.0, 2.0)), ("does not fit", "2 channels")),
    ],
)
def test_a_term_that_cannot_work_is_refused_with_both_sides(student, term, parts):
    with pytest.raises(UserError) as caught:
        build_distiller(student, (Dice(), term), SPECS, SIZE)
    for part in parts:
        assert part in str(caught.value)


def test_one_projection_cannot_have_two_widths():
    other = FeatureCosine(target="wide", tap="encoder.3", hidden=11)
    with pytest.raises(UserError, match="10 and 11"):
        build_distiller(STUDENT, (MSE, other), SPECS, SIZE)


def test_a_size_that_the_student_cannot_take_is_refused():
    with pytest.raises(UserError, match="nearest legal size"):
        build_distiller(STUDENT, (), {}, (30, 48))
