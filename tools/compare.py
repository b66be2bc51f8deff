"""Compare finished runs: one table, one plot of their scores.

python tools/compare.py RUN RUN... [--out FOLDER]
"""

from pathlib import Path

import tyro

from stillroom.cli import run_command


def main(runs: tyro.conf.Positional[tuple[Path, ...]], out: Path | None = None) -> None:
    """Print a table of finished runs, a row for each recipe with mean and spread over its runs, and
    what differs between the recipes; write comparison.txt, .csv, .json and .png.

    Args:
        runs: their folders, runs/NAME
        out: folder for the files; default: comparison/ beside the first run
    """
    from stillroom.errors import UserError
    from stillroom.using.compare import compare
    from stillroom.using.comparison_table import write_comparison

    if not runs:
        raise UserError("which runs?", fix="python tools/compare.py runs/NAME runs/NAME ...")
    out = runs[0].parent / "comparison" if out is None else out
    print(f"{write_comparison(compare(runs), out)}\n\n{out / 'comparison.png'}")


if __name__ == "__main__":
    run_command(lambda: tyro.cli(main))
