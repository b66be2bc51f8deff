"""Pack pictures and masks into shards, the input of everything else.

stillroom shards voc:PATH --out shards/NAME --size 256 256
"""

from stillroom.flags import call
from stillroom.pictures.make import make_shards


def run() -> None:
    """Do what the command line says."""
    call(make_shards)
