"""The rows that a student is judged on: pictures of a split, or the boxes of each."""

from jaxtyping import UInt8
from numpy import ndarray

from stillroom.pictures.dataset import Picture, PictureSet
from stillroom.pictures.draw import cut_out
from stillroom.pictures.regions import classes_of, colours_of
from stillroom.pictures.rows import places_of, read_place
from stillroom.types import Row, ShardId
from stillroom.using.student import Trained

Place = tuple[ShardId, Row]


def places(trained: Trained, pictures: PictureSet, split: str | None) -> list[Place]:
    """Return every row of a split, or of all, in order."""
    return list(places_of(pictures, split, regions=trained.regions is not None))


def read(
    trained: Trained, pictures: PictureSet, place: Place, size: tuple[int, int] | None = None
) -> Picture:
    """Return the picture of a row as the student was trained to see it, or at another size."""
    return read_place(pictures, place, size or trained.size, trained.regions)


def class_names(trained: Trained, pictures: PictureSet) -> list[str]:
    """Return the names of the classes that labels tell apart; none where there are no labels."""
    return list(classes_of(pictures, trained.regions is not None))


def palette_for(trained: Trained, pictures: PictureSet) -> tuple[tuple[int, int, int], ...]:
    """Return the classes' colours: the pictures', or the usual ones where they have none."""
    return colours_of(pictures, trained.regions is not None, trained.num_classes)


def tile(trained: Trained, picture: Picture) -> UInt8[ndarray, "y x 3"]:
    """Return what is shown beside a mask: the picture, or what its box shows."""
    if picture.box is None or trained.regions is None:
        return picture.image
    return cut_out(picture.image, picture.box, trained.regions)
