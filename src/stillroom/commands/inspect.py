"""Look into an ONNX file before it becomes a teacher.

stillroom inspect FILE [--near NAME] [--data shards/NAME]
"""

from pathlib import Path
from typing import Literal

import tyro

from stillroom.errors import UserError
from stillroom.flags import call


def main(
    file: tyro.conf.Positional[str],
    near: str | None = None,
    page: int = 1,
    size: tuple[int, int] | None = None,
    data: Path | None = None,
    tensor: str | None = None,
    pictures: int = 64,
    device: Literal["cpu", "cuda"] = "cpu",
) -> None:
    """Print inputs, outputs and the tensors that can be tapped, and with labelled pictures the
    preprocessing that fits best, as flags of a recipe.

    Args:
        file: the .onnx file
        near: list the tensors whose names are most like this one first
        page: which page of the list
        size: height and width of the picture that the network sees; default: its own, or 256 256
        data: picture shards with labels: preprocessings are tried on them
        tensor: the tensor that has the classes; default: the only output
        pictures: how many labelled pictures
        device: cpu or cuda
    """
    from stillroom.extraction.inspect_onnx import about, fit_preprocessing, fits_text

    if not Path(file).is_file():
        raise UserError(f"there is no file {file}", wanted="an ONNX network, FILE.onnx")
    print(about(file, size, near, page))
    if data is not None:
        fits = fit_preprocessing(file, data, tensor, size, pictures, device)
        print(f"\n{fits_text(fits, file)}")


def run() -> None:
    """Do what the command line says."""
    call(main)
