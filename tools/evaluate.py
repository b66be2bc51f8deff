"""Evaluate a run's student alone: mIoU, IoU per class, confusion matrix, time per picture.

python tools/evaluate.py runs/NAME [--shards shards/NAME] [--split val]
"""

from pathlib import Path

import tyro

from stillroom.cli import run_command


def main(
    folder: tyro.conf.Positional[Path],
    shards: Path | None = None,
    split: str = "val",
    device: str = "cpu",
    code: str | None = None,
) -> None:
    """Evaluate a run's student alone and write evaluation.json, confusion.csv and confusion.png
    into its folder. Without labels it is only timed, and the agreement is what training found.

    Args:
        folder: the run, runs/NAME
        shards: picture shards; those of the run where absent
        split: train or val
        device: cpu or cuda
        code: path/to/file.py:function that builds a student of your own
    """
    from stillroom.using.evaluate import evaluate, open_data
    from stillroom.using.student import load_student

    trained = load_student(folder, code)
    found = evaluate(trained, open_data(trained, shards), split, device)
    for name, value in found.get("iou", {}).items():
        print(f"  {name:20} {'absent' if value is None else f'{value:.4f}'}")
    if "miou" in found:
        print(f"mIoU {found['miou']:.4f}, pixel accuracy {found['pixel_accuracy']:.4f} ({split})")
    else:
        agreement = trained.about.get("score", {}).get("agreement")
        known = "unknown" if agreement is None else f"{agreement:.4f}"
        print(f"no labels; agreement with the teacher {known}, as training found it")
    print(
        f"{found['parameters'] / 1e6:.2f} M parameters,"
        f" {found['ms']:.1f} ms a picture (batch 1, CPU)"
    )


if __name__ == "__main__":
    run_command(lambda: tyro.cli(main))
