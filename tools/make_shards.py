"""Pack pictures and masks into shards, the input of everything else.

python tools/make_shards.py voc:PATH --out shards/NAME --size 256 256
"""

import tyro

from stillroom.cli import run_command
from stillroom.pictures.make import make_shards

if __name__ == "__main__":
    run_command(lambda: tyro.cli(make_shards))
