"""Export a run's student to ONNX, compared with PyTorch on pictures of its shards.

stillroom export runs/NAME [--fp16] [--int8] [--pth] [--out FOLDER]
"""

from pathlib import Path

import tyro

from stillroom.flags import call


def main(
    run: tyro.conf.Positional[Path],
    out: Path | None = None,
    fp16: bool = False,
    int8: bool = False,
    pth: bool = False,
    shards: Path | None = None,
    code: str | None = None,
) -> None:
    """Write student.onnx and card.md, once the network says the same in onnxruntime as in PyTorch.

    Args:
        run: the run, runs/NAME, or its best/
        out: folder for the files; default: RUN/export
        fp16: student.fp16.onnx too, half the size
        int8: student.int8.onnx too, calibrated on training pictures
        pth: student.pth too, a bare state dict for torch.load(..., weights_only=True)
        shards: picture shards; those of the run where absent
        code: path/to/file.py:function that builds a student of your own
    """
    from stillroom.using.evaluation import open_data
    from stillroom.using.onnx_export import export
    from stillroom.using.student import load_student

    trained = load_student(run, code)
    folder = run / "export" if out is None else out
    found = export(trained, open_data(trained, shards), folder, fp16=fp16, int8=int8, pth=pth)
    for name, said in found.items():
        print(f"{folder / name} ({(folder / name).stat().st_size / 1e6:.1f} MB): {said}")
    print(folder / "card.md")


def run() -> None:
    """Do what the command line says."""
    call(main)
