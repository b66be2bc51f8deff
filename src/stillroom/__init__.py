"""Two-stage knowledge distillation for image segmentation.

`stillroom.open_cache(path)` reads a cache: docs/reading.md. `stillroom.load_student(path)` uses a
student: docs/using.md.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stillroom.cache import open_cache as open_cache
    from stillroom.pictures.dataset import open_pictures as open_pictures
    from stillroom.using.student import load_student as load_student

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Import these when they are first used: torch takes seconds."""
    if name == "open_cache":
        from stillroom.cache import open_cache

        return open_cache
    if name == "open_pictures":
        from stillroom.pictures.dataset import open_pictures

        return open_pictures
    if name == "load_student":
        from stillroom.using.student import load_student

        return load_student
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
