"""What a run makes of its evaluations so far: the best score, whether it ends early, what distilled
terms weigh.

All of it is arithmetic on one list, which every rank has from reduced figures and a checkpoint
holds, so that a resume decides as the straight run did.
"""

import math
from collections.abc import Sequence
from typing import Any, TypedDict

from stillroom.errors import UserError
from stillroom.jsonfile import Count
from stillroom.metrics import SCORES
from stillroom.recipe import Recipe


class Evaluation(TypedDict):
    """One evaluation, as a checkpoint holds it."""

    step: Count  # steps done
    # target IoU of regions, mIoU where there are labels, else agreement with the teacher
    score: float | None
    ratio: float | None  # mIoU of the student by that of the teacher, where both are known


def selection_score(found: dict[str, Any]) -> float | None:
    """Return what `best` means: target IoU of regions, mIoU where there are labels, else
    agreement, else None.
    """
    known = [found[name] for name in SCORES if found.get(name) is not None]
    return known[0] if known else None


def evaluation_of(recipe: Recipe, step: int, found: dict[str, Any]) -> Evaluation:
    """Return what is kept of an evaluation's figures; UserError where the recipe needs what they
    lack.
    """
    score = selection_score(found)
    student, teacher = found.get("miou"), found.get("teacher_miou")
    ratio = student / teacher if student is not None and teacher else None
    needs_score = recipe.early_stopping is not None or recipe.schedule.needs_scores
    if (needs_score and score is None) or (recipe.distill_fade is not None and ratio is None):
        raise UserError(
            "the evaluation has no score that this recipe needs",
            found=", ".join(found) or "no figure",
            wanted="labels or a teacher's logits of the validation split; for --distill-fade both",
        )
    return {"step": step, "score": score, "ratio": ratio}


def scores(evaluations: Sequence[Evaluation]) -> tuple[float, ...]:
    """Return the scores that are known, oldest first."""
    return tuple(e["score"] for e in evaluations if e["score"] is not None)


def best_score(evaluations: Sequence[Evaluation]) -> float:
    """Return the highest score, -1 where there is none."""
    return max(scores(evaluations), default=-1.0)


def num_without_improvement(evaluations: Sequence[Evaluation]) -> int:
    """Return how many of the last evaluations brought no new best score."""
    known = scores(evaluations)
    return len(known) - 1 - known.index(max(known)) if known else 0


def ends_early(recipe: Recipe, evaluations: Sequence[Evaluation]) -> bool:
    """Return whether the run has waited for a better score as long as it may."""
    limit = recipe.early_stopping
    return limit is not None and num_without_improvement(evaluations) >= limit


def balance(recipe: Recipe, evaluations: Sequence[Evaluation]) -> tuple[float, float]:
    """Return what distilled terms, and what all others, are multiplied by now.

    With `distill_fade` k and the student's mIoU r times the teacher's in the last evaluation: at r
    <= 1 what they began with, (A, B); above (A exp(-d), B + (1 - B)(1 - exp(-2d))) with d = k (r -
    1); from the first evaluation above `distill_end` on (0, 1).
    """
    distilled, others = recipe.balance
    ratios = [e["ratio"] for e in evaluations if e["ratio"] is not None]
    if recipe.distill_fade is None or not ratios:
        return distilled, others
    if max(ratios) > recipe.distill_end:
        return 0.0, 1.0
    away = recipe.distill_fade * max(0.0, ratios[-1] - 1)
    return distilled * math.exp(-away), others + (1 - others) * (1 - math.exp(-2 * away))
