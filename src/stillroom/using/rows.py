"""The rows that a student is judged on: pictures of a split, or the boxes of each."""

from jaxtyping import UInt8
from numpy import ndarray

from stillroom.pictures.dataset import Picture, PictureSet
from stillroom.pictures.draw import cut_out
from stillroom.pictures.labels import palette_of
from stillroom.pictures.regions import REGION_CLASSES
from stillroom.pictures.rows import picture_of, rows_of
from stillroom.pictures.views import Views
from stillroom.types import Row, ShardId
from stillroom.using.student import Trained

Place = tuple[ShardId, Row]


def places(trained: Trained, pictures: PictureSet, split: str | None) -> list[Place]:
    """Return every row of a split, or of all, in order."""
    regions = trained.regions is not None
    return [
        (shard, row)
        for shard in pictures.shard_ids(split)
        for row in rows_of(pictures.open(shard), Views(), regions=regions, first_only=True)
    ]


def read(
    trained: Trained, pictures: PictureSet, place: Place, size: tuple[int, int] | None = None
) -> Picture:
    """Return the picture of a row as the student was trained to see it, or at another size."""
    shard, row = pictures.open(place[0]), place[1]
    return picture_of(shard.read(shard.index(row.key)), row, size or trained.size, trained.regions)


def class_names(trained: Trained, pictures: PictureSet) -> list[str]:
    """Return the names of the classes that labels tell apart; none where there are no labels."""
    is_region = trained.regions is not None and pictures.classes
    return list(REGION_CLASSES if is_region else pictures.classes)


def palette_for(trained: Trained, pictures: PictureSet) -> tuple[tuple[int, int, int], ...]:
    """Return the classes' colours: the pictures', or the usual ones where they have none."""
    own = pictures.palette if trained.regions is None else ()
    return tuple(own) or palette_of(trained.num_classes)


def tile(trained: Trained, picture: Picture) -> UInt8[ndarray, "y x 3"]:
    """Return what is shown beside a mask: the picture, or what its box shows."""
    if picture.box is None or trained.regions is None:
        return picture.image
    return cut_out(picture.image, picture.box, trained.regions)
