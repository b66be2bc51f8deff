"""The boxes that a picture's json names."""

from typing import Any

from stillroom.errors import DamageError

Box = tuple[float, float, float, float]  # x0, y0, x1, y1 in pixels


def boxes_of(key: str, extra: dict[str, Any]) -> list[Box]:
    """Return the boxes that a picture's json names, in pixels of the packed picture; raises
    DamageError where it names what is none.
    """
    boxes = extra.get("boxes", [])
    try:
        found = [(float(x0), float(y0), float(x1), float(y1)) for x0, y0, x1, y1 in boxes]
    except (TypeError, ValueError):
        found = None
    if found is None or not all(x0 < x1 and y0 < y1 for x0, y0, x1, y1 in found):
        wanted = "a list of [x0, y0, x1, y1] with x0 < x1 and y0 < y1"
        raise DamageError(f"the boxes of {key} are none", found=f"{boxes!r:.80}", wanted=wanted)
    return found
