"""Two-stage knowledge distillation for image segmentation.

`stillroom.open_cache(path)` reads a cache: docs/reading.md.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stillroom.cache import open_cache as open_cache
    from stillroom.pictures.dataset import open_pictures as open_pictures

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Import these two when they are first used: torch takes seconds."""
    if name == "open_cache":
        from stillroom.cache import open_cache

        return open_cache
    if name == "open_pictures":
        from stillroom.pictures.dataset import open_pictures

        return open_pictures
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
