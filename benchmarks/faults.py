"""What four faults of the original systems do, each beside what stands in its place here.

    python benchmarks/faults.py                             made-up pictures, four classes
    python benchmarks/faults.py --shards shards/NAME        the first pictures of labelled shards

- background_flag (S0): cross-entropy against "is this background?", taken for the class
- batchmean (S1, S4): a KL divergence that is summed over pixels and divided by pictures alone
- redrawn_aligner (S0, S1): the 1x1 convolution between student and teacher is new in every step
- frozen_tap (S3): a feature is distilled where nothing before it trains; the check that refuses
  this is passed by

A U-Net of width 16 teaches one of width 8, on one thread; every pair of runs begins from the same
weights and sees the same batches. Writes `faults_<pictures>_<hardware>_<yyyymm>.json`. Time: 3.7
minutes on one core.
"""

import argparse
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from bench import small_world as small
from bench.machine import save
from torch import Tensor, nn
from torch.nn import functional

from stillroom.losses import CrossEntropy, Dice, FeatureCosine, FeatureMSE, SoftKL, Temperature
from stillroom.students.distiller import Distiller, upstream_parameters
from stillroom.types import Batch

CE, DICE = CrossEntropy(weight=0.5), Dice(weight=0.2)
KL = SoftKL(target="logits", temperature=Temperature(start=2.0))
DRAWS = 12


def main() -> None:
    arguments = _arguments()
    torch.set_num_threads(1)
    world = _world(arguments)
    student = small.new_student(world, (CE,))
    right = small.labels_loss((CE,))
    small.fit(student, student.parameters(), right, world.batches(arguments.steps))
    figures = {
        "pictures": [len(world.train.keys), len(world.val.keys), *world.size],
        "steps": arguments.steps,
        "background_flag": background_flag(world, student, arguments.steps),
        "batchmean": batchmean(world, student, arguments.steps),
        "redrawn_aligner": redrawn_aligner(world, student, arguments.steps),
        "frozen_tap": frozen_tap(world, arguments.steps),
    }
    name = "shapes" if arguments.shards is None else arguments.shards.name
    save(f"faults_{name}", _command(arguments), figures)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shards", type=Path, help="labelled picture shards")
    parser.add_argument("--size", type=int, nargs=2, default=[96, 96], help="height width, px")
    parser.add_argument("--steps", type=int, default=200, help="of each run, of 8 pictures")
    parser.add_argument("--pictures", type=int, nargs=2, default=[128, 48], help="train val")
    return parser.parse_args()


def _command(arguments: argparse.Namespace) -> str:
    """Return what was typed, without where the pictures lie."""
    words = ["python", "benchmarks/faults.py"]
    if arguments.shards is not None:
        words += ["--shards", f"shards/{arguments.shards.name}"]
    words += ["--size", *arguments.size, "--steps", arguments.steps]
    return " ".join(map(str, [*words, "--pictures", *arguments.pictures]))


def _world(arguments: argparse.Namespace) -> small.World:
    """Return the pictures with what a teacher says of them that was trained twice as long."""
    (num_train, num_val), (height, width) = arguments.pictures, arguments.size
    if arguments.shards is None:
        world = small.shapes(num_train, num_val, height)
    else:
        world = small.packed(arguments.shards, num_train, num_val, (height, width))
    return small.taught(world, 2 * arguments.steps)


def background_flag(world: small.World, student: Distiller, steps: int) -> dict[str, Any]:
    """Cosine of the two gradients on a trained student; scores, alone and beside Dice."""
    right = small.labels_loss((CE,))
    dice = small.labels_loss((DICE,))
    cosines = [
        _cosine(*(small.gradient(loss(outputs, batch), parameters) for loss in (_flag, right)))
        for outputs, batch, parameters in _looks(world, student)
    ]

    def scores(loss: small.Loss) -> dict[str, object]:
        return {
            "alone": _score(world, steps, loss),
            "with_dice": _score(world, steps, lambda o, b: loss(o, b) + dice(o, b)),
        }

    return {
        "cosine_of_gradients": _mean(cosines),
        "original": scores(_flag),
        "repaired": scores(right),
    }


def _flag(outputs: small.Outputs, batch: Batch) -> Tensor:
    """Cross-entropy as the original has it: the one-hot mask's first channel is the class."""
    return CE.weight * functional.cross_entropy(outputs["logits"], (batch.mask == 0).long())


def batchmean(world: small.World, student: Distiller, steps: int) -> dict[str, Any]:
    """Gradient norms of the distilled term by the labels', what the balance does, and scores."""
    found: dict[str, Any] = {}
    for name, distilled in (("original", _batchmean), ("repaired", small.labels_loss((KL,)))):
        ratios, cosines = [], []
        for outputs, batch, parameters in _looks(world, student):
            kl = small.gradient(distilled(outputs, batch), parameters)
            ce = small.gradient(small.labels_loss((CE,))(outputs, batch) / CE.weight, parameters)
            ratios.append(float(kl.norm() / ce.norm()))
            cosines.append(_cosine(0.1 * kl + 0.9 * ce, 0.9 * kl + 0.1 * ce))

        def loss(outputs: small.Outputs, batch: Batch, distilled: small.Loss = distilled) -> Tensor:
            return 0.5 * distilled(outputs, batch) + small.labels_loss((CE,))(outputs, batch)

        found[name] = {
            "gradient_norm_by_labels": _mean(ratios),
            "cosine_of_balances_1_9_and_9_1": _mean(cosines),
            "adam": _score(world, steps, loss),
            "sgd": _score(world, steps, loss, lr=0.1, sgd=True),
        }
    return found


def _batchmean(outputs: small.Outputs, batch: Batch) -> Tensor:
    log_q = (outputs["logits"] / 2).log_softmax(1)
    p = (batch.targets["logits"] / 2).softmax(1)
    return 4 * functional.kl_div(log_q, p, reduction="batchmean")


def redrawn_aligner(world: small.World, student: Distiller, steps: int) -> dict[str, Any]:
    """How alike the gradients of several steps are, and what a student learns of the feature."""
    term = FeatureCosine(target="feature", tap=small.TAP, hidden=None)
    right = small.labels_loss((term,))
    aligned = _with_tap(world, term)
    aligned.student.load_state_dict(student.student.state_dict())
    _fit_projection(world, aligned, right, steps)
    aligned.requires_grad_(True)
    batch = next(world.batches(1))
    redrawn = [_step(aligned, _redrawn, batch) for _ in range(DRAWS)]
    batches = list(world.batches(DRAWS))
    redrawn_batches = [_step(aligned, _redrawn, batch) for batch in batches]
    trained = [_step(aligned, right, batch) for batch in batches]
    learnt = {}
    for name, loss in (("never_trained", None), ("original", _redrawn), ("repaired", right)):
        model = _with_tap(world, term)
        if loss is not None:
            small.fit(model, model.parameters(), loss, world.batches(steps))
        learnt[name] = _probed(world, model, term, steps)
    return {
        "original_one_batch": _alike(redrawn),
        "original": _alike(redrawn_batches),
        "repaired": _alike(trained),
        "cosine_distance_of_a_fresh_projection": learnt,
    }


def _redrawn(outputs: small.Outputs, batch: Batch) -> Tensor:
    target = batch.targets["feature"]
    aligner = nn.Conv2d(outputs[small.TAP].shape[1], target.shape[1], 1, bias=False)
    nn.init.kaiming_normal_(aligner.weight)
    return 1 - functional.cosine_similarity(aligner(outputs[small.TAP]), target).mean()


def _step(model: Distiller, loss: small.Loss, batch: Batch) -> Tensor:
    """Return the gradient of a loss in the part of the student before the tap."""
    encoder: Any = model.student.encoder
    model.train()
    return small.gradient(loss(model(batch.image), batch), list(encoder[:3].parameters()))


def _with_tap(world: small.World, term: FeatureCosine) -> Distiller:
    """Return a new student that also gives its tap as it is, besides its projection."""
    model = small.new_student(world, (term,))
    model.outputs = (small.TAP, *model.outputs)
    return model


def _fit_projection(
    world: small.World, model: Distiller, loss: small.Loss, steps: int
) -> list[float]:
    parameters, batches = model.projections.parameters(), world.batches(steps, seed=2)
    return small.fit(model, parameters, loss, batches, frozen=(model.student,))


def _probed(world: small.World, model: Distiller, term: FeatureCosine, steps: int) -> float:
    """Return the distance on the validation split, once a new projection has learnt to read it."""
    fresh = small.new_student(world, (term,))
    fresh.student.load_state_dict(model.student.state_dict())
    _fit_projection(world, fresh, small.labels_loss((term,)), steps)
    fresh.eval()
    with torch.no_grad():
        return round(float(small.labels_loss((term,))(fresh(world.val.image), world.val)), 4)


def frozen_tap(world: small.World, steps: int) -> dict[str, Any]:
    """How far the student moves away from one that never had the feature term."""
    feature = FeatureMSE(target="feature", tap=small.TAP, hidden=32, weight=0.5)
    found: dict[str, Any] = {}
    for name, clip, is_frozen in (
        ("original", None, True),
        ("original_gradients_clipped_together", 0.1, True),
        ("repaired", None, False),
    ):
        runs = [_trained_with(world, terms, feature, clip, is_frozen, steps) for terms in (0, 1)]
        (without, _, _), (with_it, losses, upstream) = runs
        pairs = [(without[name], with_it[name]) for name in without]
        moved = sum(float((a - b).double().square().sum()) for a, b in pairs)
        size = sum(float(a.double().square().sum()) for a, _ in pairs)
        found[name] = {
            "trainable_before_the_tap": upstream,
            "bit_identical": all(torch.equal(a, b) for a, b in pairs),
            "relative_distance": round((moved / size) ** 0.5, 5),
            "feature_term_first_and_last": [round(losses[0], 4), round(losses[-1], 4)],
        }
    return found


def _trained_with(
    world: small.World,
    weight: int,
    feature: FeatureMSE,
    clip: float | None,
    is_frozen: bool,
    steps: int,
) -> tuple[dict[str, Tensor], list[float], int]:
    """Return the student's numbers, the feature term of each step, and what trains before it."""
    model, seen = small.new_student(world, (CE, feature)), []
    encoder: Any = model.student.encoder

    def loss(outputs: small.Outputs, batch: Batch) -> Tensor:
        part = small.labels_loss((feature,))(outputs, batch)
        seen.append(part.item())
        return small.labels_loss((CE,))(outputs, batch) + weight * part

    batches, frozen = world.batches(steps), (encoder,) if is_frozen else ()
    small.fit(model, model.parameters(), loss, batches, clip=clip, frozen=frozen)
    return model.student.state_dict(), seen, upstream_parameters(model, small.TAP)


def _looks(world: small.World, student: Distiller) -> list[tuple[small.Outputs, Batch, list[Any]]]:
    """Return what the trained student says of four batches, with its parameters."""
    parameters = list(student.student.parameters())
    student.train()
    return [(student(batch.image), batch, parameters) for batch in world.batches(4, seed=3)]


def _score(world: small.World, steps: int, loss: small.Loss, **options: Any) -> dict[str, object]:
    model = small.new_student(world, (CE,))
    losses = small.fit(model, model.parameters(), loss, world.batches(steps), **options)
    return small.score(model, world) | {"last_loss": round(losses[-1], 4)}


def _alike(gradients: list[Tensor]) -> dict[str, float]:
    """Return the mean norm, the mean cosine of two, and the norm of the mean by the mean norm."""
    norms = [float(g.norm()) for g in gradients]
    mean = torch.stack(gradients).mean(0)
    return {
        "norm": _mean(norms),
        "cosine_of_two": _mean([_cosine(a, b) for a, b in combinations(gradients, 2)]),
        "norm_of_mean_by_mean_norm": round(float(mean.norm()) / (sum(norms) / len(norms)), 3),
    }


def _cosine(a: Tensor, b: Tensor) -> float:
    return float(functional.cosine_similarity(a, b, dim=0))


def _mean(values: list[float]) -> float:
    return float(f"{sum(values) / len(values):.4g}")


if __name__ == "__main__":
    main()
