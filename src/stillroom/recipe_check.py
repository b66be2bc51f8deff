"""What can be known to be wrong with a recipe before any real work begins."""

import math
from collections.abc import Mapping
from typing import Any

from stillroom.codecs import parse_codec
from stillroom.device_memory import smaller_micro_batches
from stillroom.errors import UserError
from stillroom.losses import Term
from stillroom.pictures.dataset import PictureSet
from stillroom.recipe import Recipe
from stillroom.types import TargetSpec


def check(recipe: Recipe, pictures: PictureSet | None = None) -> None:
    """Raise UserError for what can be known to be wrong without a cache or a network."""
    kinds = recipe.target_kinds()
    for term in recipe.terms:
        _check_term(term, kinds)
    _check_numbers(recipe)
    _check_training(recipe, kinds)
    for name in recipe.codec:
        if name not in kinds:
            raise UserError(
                f"a codec is given for {name!r}, which no teacher makes", wanted=_names(kinds)
            )
        parse_codec(recipe.codec[name])
    if pictures is not None:
        _check_pictures(recipe, pictures)


def check_targets(recipe: Recipe, specs: Mapping[str, TargetSpec]) -> None:
    """Raise UserError where targets, as their teachers make them, do not fit the recipe's terms."""
    for term in recipe.terms:
        needs = term.needs
        if needs.target is None or needs.tap is not None or needs.head != "logits":
            continue
        spec, regions = specs[needs.target], recipe.data.regions
        if regions is not None and spec.kind == "logits" and spec.shape[1:] != regions:
            raise UserError(
                f"the target {needs.target!r} is not on the cells of a region's mask",
                found=f"{spec.shape[1]} x {spec.shape[2]} cells",
                wanted=f"--data.regions {regions[0]} {regions[1]}",
                fix=f"--data.regions {spec.shape[1]} {spec.shape[2]}, or another teacher",
            )
        found, wanted = spec.shape[0], recipe.student.classes
        if found != wanted:
            raise UserError(
                f"the term {term.label} compares logits of different channels",
                found=f"{found} of the target {needs.target!r}",
                wanted=f"{wanted}, as --student.classes says",
                fix="another --student.classes, or another teacher",
            )


def _check_numbers(recipe: Recipe) -> None:
    recipe.optimizer.check()
    recipe.schedule.check()
    augment = recipe.augment
    light, hsv, jpeg = augment.photometric, augment.hsv or (0,), augment.jpeg
    for flag, value, is_legal, wanted in (
        ("augment.photometric", light, 0 <= light < 1, "0 to below 1"),
        ("augment.hsv", augment.hsv, all(0 <= s <= 1 for s in hsv), "0 to 1 each"),
        ("augment.gamma", augment.gamma, 0 <= augment.gamma < 1, "0 to below 1"),
        ("augment.degraded", augment.degraded, 0 <= augment.degraded <= 1, "0 to 1"),
        ("augment.blur", augment.blur, 0 <= augment.blur < math.inf, ">= 0"),
        ("augment.noise", augment.noise, 0 <= augment.noise <= 1, "0 to 1"),
        ("augment.jpeg", jpeg, jpeg is None or 1 <= jpeg <= 95, "1 to 95"),
        ("run.timeout-s", recipe.run.timeout_s, recipe.run.timeout_s >= 1, "1 or more"),
        ("gate-floor", recipe.gate_floor, 0 <= recipe.gate_floor <= 1, "0 to 1"),
    ):
        if not is_legal:
            raise UserError(f"no such --{flag}", found=value, wanted=wanted)
    for name in (recipe.name, recipe.run_name):
        if name in ("", ".", "..") or "/" in name or "\0" in name:
            raise UserError(
                "a run's name is the name of one folder",
                found=repr(name),
                wanted="no slash; where runs lie says --run.out",
            )
    near = smaller_micro_batches(recipe.batch, recipe.micro_batch + 1)
    if recipe.micro_batch < 1 or recipe.batch < 1 or recipe.batch % recipe.micro_batch:
        raise UserError(
            "the batch is not a whole number of micro-batches",
            found=f"--batch {recipe.batch} --micro-batch {recipe.micro_batch}",
            wanted="a multiple",
            fix=f"--micro-batch {near[0]}" if near else None,
        )
    if recipe.epochs < 1 or recipe.run.evaluate_every < 1 or recipe.run.log_every < 1:
        raise UserError("epochs, run.evaluate_every and run.log_every are at least 1")
    if recipe.run.keep < 1 or (recipe.run.workers is not None and recipe.run.workers < 1):
        raise UserError("run.workers and run.keep are at least 1")
    if not any(recipe.term_weights()):
        raise UserError(
            f"recipe {recipe.name!r} has no term with a weight, so nothing would be learned"
        )


def _check_training(recipe: Recipe, kinds: Mapping[str, str]) -> None:
    share, fade, end = recipe.distill_weight, recipe.distill_fade, recipe.distill_end
    stop, ema, every = recipe.early_stopping, recipe.ema, recipe.unfreeze_every
    for flag, value, is_legal, wanted in (
        ("distill-weight", share, share is None or 0 <= share <= 1, "0 to 1"),
        ("distill-fade", fade, fade is None or 0 < fade < math.inf, "above 0"),
        ("distill-end", end, 1 <= end < math.inf, "1 or more"),
        ("early-stopping", stop, stop is None or stop >= 1, "1 or more"),
        ("ema", ema, ema is None or 0 < ema < 1, "between 0 and 1"),
        ("unfreeze-every", every, every is None or every >= 1, "1 or more"),
        ("freeze-lr", recipe.freeze_lr, 0 < recipe.freeze_lr < math.inf, "above 0"),
        ("run.additional-epochs", (n := recipe.run.additional_epochs), n >= 0, "0 or more"),
    ):
        if not is_legal:
            raise UserError(f"no such --{flag}", found=value, wanted=wanted)
    wanted_kinds = [kinds[name] for name in recipe.wanted_targets()]
    if share is not None and not wanted_kinds:
        raise UserError("--distill-weight without a term that compares with a teacher")
    if fade is not None and "logits" not in wanted_kinds:
        raise UserError("--distill-fade needs a teacher's score: a term that reads its logits")
    if every is not None and not (recipe.freeze and recipe.freeze_epochs is not None):
        raise UserError("--unfreeze-every needs --freeze PART ... and --freeze-epochs N")
    if recipe.run.additional_epochs and not recipe.run.resume:
        raise UserError("--run.additional-epochs goes on with a run", fix="--run.resume too")
    if recipe.run.resume and recipe.run.overwrite:
        raise UserError("--run.resume and --run.overwrite exclude each other", fix="leave one out")


def _check_scores(recipe: Recipe, pictures: PictureSet) -> None:
    """Refuse what follows the scores of evaluations where there can be none."""
    kinds = recipe.target_kinds()
    has_logits = any(kinds[name] == "logits" for name in recipe.wanted_targets())
    has_labels, has_split = bool(pictures.classes), bool(pictures.shard_ids("val"))
    for flag, is_on, can_be in (
        ("--early-stopping", recipe.early_stopping is not None, has_labels or has_logits),
        (type(recipe.schedule).__name__, recipe.schedule.needs_scores, has_labels or has_logits),
        ("--distill-fade", recipe.distill_fade is not None, has_labels and has_logits),
    ):
        if is_on and not (has_split and can_be):
            raise UserError(
                f"{flag} follows the scores of evaluations, and there are none",
                found=f"{pictures.path}: a validation split: {has_split}, labels: {has_labels};"
                f" a teacher's logits: {has_logits}",
                wanted="a validation split, labels or a teacher's logits (--distill-fade: both)",
            )


def _check_term(term: Term, kinds: Mapping[str, str]) -> None:
    name, needs = type(term).__name__, term.needs
    if not 0 <= term.weight < float("inf"):
        raise UserError(f"the weight of {name} is not a number from 0 on", found=term.weight)
    if needs.hidden is not None and needs.hidden < 1:
        raise UserError(f"the projection of {name} has no channel", found=f"hidden {needs.hidden}")
    if needs.target is None and needs.tap is not None:
        raise UserError(f"{name} compares the tap {needs.tap} with no target")
    if needs.target is None:
        return
    if needs.target not in kinds:
        raise UserError(
            f"{name} needs the target {needs.target!r}, which no teacher of the recipe makes",
            found=_names(kinds),
            fix="name one of these, or add the teacher",
        )
    found = kinds[needs.target]
    if needs.kind not in (None, found):
        raise UserError(f"{name} needs {needs.kind}", found=f"{needs.target!r} holds {found}")


def _check_pictures(recipe: Recipe, pictures: PictureSet) -> None:
    names = recipe.classes_of(pictures)
    classes, known = max(2, recipe.student.classes), len(names)
    weighted = zip(recipe.terms, recipe.term_weights(), strict=True)
    labelled = [t.label for t, weight in weighted if t.needs.target is None and weight]
    if labelled and not known:
        raise UserError(
            f"the terms {', '.join(labelled)} need labels, which {pictures.path} does not have",
            fix="pack labelled pictures, or leave the terms out (weight 0): what only compares with"
            " a teacher needs no labels",
        )
    if labelled and classes != known:
        raise UserError(
            "the student's classes are not those of the pictures",
            found=f"student {recipe.student.classes}, pictures {', '.join(names)}",
            wanted=f"--student.classes {known}"
            + (" (or 1, for a binary task)" if known == 2 else ""),
        )
    _check_scores(recipe, pictures)
    for term in recipe.terms:
        if term.needs.classes not in (None, classes):
            raise UserError(
                f"the term {term.label} relabels another number of classes",
                found=f"{term.needs.classes}",
                wanted=f"{classes}, one for each class of the labels",
            )
    if pictures.geometry is None:
        raise UserError(
            f"the pictures of {pictures.path} were not packed at one size, which training needs",
            fix="pack them with stillroom shards ... --size H W",
        )
    packed, size = pictures.geometry, recipe.size_of(pictures)
    if size[0] > packed[0] or size[1] > packed[1]:
        raise UserError(
            "the size to work at is larger than the packed pictures",
            found=f"--data.size {size[0]} {size[1]}",
            wanted=f"at most {packed[0]} {packed[1]}",
            fix=f"pack them with stillroom shards ... --size {size[0]} {size[1]}",
        )


def _names(names: Mapping[str, Any]) -> str:
    return ", ".join(sorted(names)) or "none"
