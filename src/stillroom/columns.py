"""Text in columns, for tables that people read."""

from collections.abc import Sequence


def figure(value: int | float | None, form: str = ".4f") -> str:
    """Return a number as text, "-" where it is not known."""
    return "-" if value is None else f"{value:{form}}"


def in_columns(rows: Sequence[Sequence[str]], num_left: int) -> list[str]:
    """Return a line for each row, cells two spaces apart; the first `num_left` columns are set to
    the left, the others to the right.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    sides = "<" * num_left + ">" * (len(widths) - num_left)
    return [
        "  ".join(
            f"{cell:{side}{width}}" for cell, side, width in zip(row, sides, widths, strict=True)
        ).rstrip()
        for row in rows
    ]
