"""Compare finished runs: one table and one page.

stillroom compare RUN RUN... [--out FOLDER] [--cache FOLDER]
"""

from pathlib import Path

import tyro

from stillroom.flags import call


def main(
    runs: tyro.conf.Positional[tuple[Path, ...]],
    out: Path | None = None,
    shards: Path | None = None,
    cache: Path = Path("cache"),
    code: str | None = None,
) -> None:
    """Print a table of finished runs, a row for each recipe with mean and spread over its runs, and
    what differs between the recipes; write comparison.html, .txt, .csv, .json and .png.

    Args:
        runs: their folders, runs/NAME
        out: folder for the files; default: comparison/ beside the first run
        shards: picture shards that the page shows; those of the last run where absent
        cache: folder of caches, or one of them: what a teacher said of these pictures
        code: path/to/file.py:function that builds a student of your own
    """
    from stillroom.errors import UserError
    from stillroom.using.comparison import compare
    from stillroom.using.comparison_page import write_comparison_page
    from stillroom.using.comparison_table import write_comparison

    if not runs:
        raise UserError("which runs?", fix="stillroom compare runs/NAME runs/NAME ...")
    out = runs[0].parent / "comparison" if out is None else out
    rows = compare(runs)
    print(f"{write_comparison(rows, out)}\n")
    print(write_comparison_page(rows, out, shards, cache, code))


def run() -> None:
    """Do what the command line says."""
    call(main)
