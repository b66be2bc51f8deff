"""Predict pictures, folders of them, videos, a camera (/dev/video0) with a run or its ONNX export.

stillroom predict runs/NAME INPUT... [--out FOLDER] [--mode blend|mask|cutout] [--fps]
"""

from pathlib import Path
from typing import Literal

import tyro

from stillroom.flags import call


def main(
    student: tyro.conf.Positional[Path],
    inputs: tyro.conf.Positional[tuple[Path, ...]],
    out: Path = Path("predictions"),
    mode: Literal["blend", "mask", "cutout"] = "blend",
    probabilities: bool = False,
    tiles: bool = False,
    show: bool = False,
    box: tyro.conf.UseAppendAction[tuple[tuple[float, float, float, float], ...]] = (),
    fps: bool = False,
    batch: int = 1,
    threads: int | None = None,
    device: Literal["cpu", "cuda"] = "cpu",
    code: str | None = None,
) -> None:
    """Write each picture as PNG and each video as MP4 into a folder, names kept, with counts.csv.

    Args:
        student: a run, runs/NAME, or an export of one, FILE.onnx
        inputs: pictures, folders (with all below them), videos, /dev/video0
        out: folder for the files
        mode: mask over picture, palette mask (the values are the classes), or class 0 cut away
        probabilities: 16-bit PNG files too, NAME.probability-CLASS.png (65535 is 1)
        tiles: pictures at their own scale, in overlapping tiles of the network's size
        show: videos in a window too
        box: x0 y0 x1 y1, pixels of each picture, of a student of boxes; may be given again
        fps: only measure the time of the first picture, after warm-up
        batch: pictures of a forward pass
        threads: of torch or onnxruntime; as many as there are cores where absent
        device: cpu or cuda
        code: path/to/file.py:function that builds a student of your own
    """
    import torch

    from stillroom.errors import UserError
    from stillroom.using.inputs import find_inputs
    from stillroom.using.latency import latency_text
    from stillroom.using.prediction import Options, first_picture, predict
    from stillroom.using.student import load_student

    if min(batch, threads or 1) < 1:
        raise UserError("--batch and --threads are 1 or more", found=f"{batch}, {threads}")
    jobs = find_inputs(inputs, out)
    torch.set_num_threads(threads or torch.get_num_threads())
    trained = load_student(student, code).to(device)
    if fps:
        print(latency_text(trained, first_picture(jobs), batch))
        return
    options = Options(
        mode=mode, probabilities=probabilities, tiles=tiles, batch=batch, show=show, boxes=box
    )
    predict(trained, jobs, out, options)
    print(f"inputs: {len(jobs)}; {out}, {out / 'counts.csv'}")


def run() -> None:
    """Do what the command line says."""
    call(main)
