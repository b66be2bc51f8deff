"""Evaluate a run's student alone: mIoU, figures per class, calibration, time; and write its report.

stillroom evaluate runs/NAME [--shards shards/NAME] [--split val] [--cache FOLDER]
    [--source voc:PATH] [--teacher RECIPE [flags of the recipe]]
"""

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import tyro

from stillroom.cli import recipe_from
from stillroom.columns import figure, in_columns
from stillroom.errors import UserError
from stillroom.flags import call
from stillroom.remote.mirror import place_of


def main(
    folder: tyro.conf.Positional[Path],
    shards: str | None = None,
    split: str = "val",
    device: Literal["cpu", "cuda"] = "cpu",
    code: str | None = None,
    cache: str = "cache",
    source: str | None = None,
    mask_values: tuple[str, ...] = (),
    mask_colours: tuple[str, ...] = (),
    run_local: Annotated[str | None, tyro.conf.arg(name="run.local")] = None,
    run_local_gb: Annotated[float | None, tyro.conf.arg(name="run.local-gb")] = None,
    *,
    teacher: tyro.conf.Suppress[Sequence[str]] = (),
) -> None:
    """Evaluate a run's student alone and write evaluation.json, confusion.csv, confusion.png,
    examples.png and report.html into its folder. Without labels it is compared with its teacher.

    At the end, --teacher RECIPE [flags of the recipe] runs the frozen teachers of a recipe on the
    same pictures.

    Args:
        folder: the run, runs/NAME
        shards: picture shards; those of the run where absent
        split: train or val
        device: cpu or cuda
        code: path/to/file.py:function that builds a student of your own
        cache: folder of caches, or the one that the run read: what its teacher said of the pictures
        source: where the shards were made of, voc:PATH and the like: the same pictures once more at
            their own sizes
        mask_values: how the source's mask values become classes, e.g. 0:0 255:1
        mask_colours: how the colours of its RGB masks do, e.g. 0,0,0:0 128,0,0:1
        run_local: folder that keeps what is used of a store; in the user's one for caches if absent
        run_local_gb: most that is kept there, GB; default: as before, at first 50
    """
    from stillroom.extraction.evaluate_teachers import evaluate_teachers
    from stillroom.pictures.make import labels_of
    from stillroom.using.cached_masks import find_masks
    from stillroom.using.evaluation import evaluate, open_data, write_evaluation
    from stillroom.using.own_size import evaluate_at_own_size
    from stillroom.using.report import write_report
    from stillroom.using.student import load_student

    recipe = recipe_from(teacher) if teacher else None
    trained = load_student(folder, code).to(device)
    place = partial(place_of, local=run_local, local_gb=run_local_gb)
    pictures = open_data(trained, place(shards or trained.about["pictures"]["path"]))
    masks, reason = find_masks(trained, pictures, split, place(cache))
    own = {}
    if source is not None:
        labels = labels_of(None, pictures.classes, mask_values, mask_colours, ())
        own["own_size"] = evaluate_at_own_size(trained, pictures, source, labels, split, device)
    found = evaluate(trained, pictures, split, device, masks) | own
    if recipe is not None:
        found["teachers"] = evaluate_teachers(recipe, pictures, split, trained.size, device)
    write_evaluation(trained.run, found)
    print_figures(found, reason)
    print(write_report(trained, pictures, found, masks))


def print_figures(found: dict, reason: str) -> None:
    """Print an evaluation; `reason` says why nothing is known of the teacher."""
    names = ("iou", "precision", "recall", "boundary_iou")
    if "miou" in found:
        lines = [("class", "IoU", "precision", "recall", "boundary IoU")]
        lines += [(name, *(figure(found[n][name]) for n in names)) for name in found["iou"]]
        print("\n".join(in_columns(lines, 1)))
        print(
            f"mIoU {found['miou']:.4f}, boundary IoU {found['boundary_miou']:.4f}, pixel accuracy"
            f" {found['pixel_accuracy']:.4f}, calibration error {found['calibration_error']:.4f}"
            f" ({found['split']})"
        )
        answered = [name for name, value in found["precision"].items() if value is not None]
        if len(answered) == 1:
            print(f"every pixel was answered with {answered[0]}: this student knows no other class")
    if "target_iou" in found:
        print(
            f"target IoU {found['target_iou']:.4f}, above .5: {found['detection_rate_50']:.1%},"
            f" above .7: {found['detection_rate_70']:.1%}, F1 {found['target_f1']:.4f}, told from"
            f" others {found['separation_accuracy']:.4f}"
        )
    if "agreement" in found:
        taught = f" (mIoU {found['teacher_miou']:.4f})" if "teacher_miou" in found else ""
        print(f"agreement with the teacher{taught} {found['agreement']:.4f}")
    else:
        print(f"agreement with the teacher unknown: {reason}")
    if own := found.get("own_size"):
        print(
            f"at their own sizes: mIoU {own['miou']:.4f}, boundary IoU {own['boundary_miou']:.4f}"
            f" ({own['num_pictures']} of {own['num_wanted']} pictures)"
        )
    print(
        f"{found['parameters'] / 1e6:.2f} M parameters, {found['flops'] / 1e9:.2f} GFLOPs,"
        f" {found['weights_bytes'] / 1e6:.1f} MB,"
        f" {found['ms']:.1f} ms a picture (batch 1, CPU)"
    )
    for one in found.get("teachers", ()):
        size = "" if one["parameters"] is None else f"{one['parameters'] / 1e6:.2f} M parameters, "
        print(
            f"teacher of {one['target']}: mIoU {figure(one['miou'])}, {size}{one['ms']:.1f} ms"
            " a picture"
        )


def parse(words: Sequence[str]) -> None:
    """Evaluate as a command line says; what follows --teacher belongs to the recipe."""
    own, teacher = list(words), []
    if "--teacher" in own:
        at = own.index("--teacher")
        own, teacher = own[:at], own[at + 1 :]
        if not teacher:
            raise UserError("--teacher names no recipe", fix="--teacher RECIPE [its flags], last")
    call(main, own, {"--teacher"}, teacher=tuple(teacher))


def run() -> None:
    """Do what the command line says."""
    parse(sys.argv[1:])
