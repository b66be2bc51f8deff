"""Look pictures and masks over before they are packed.

python tools/check_data.py voc:PATH
"""

import tyro

from stillroom.cli import run_command
from stillroom.using.check_data import check_data

if __name__ == "__main__":
    run_command(lambda: tyro.cli(check_data))
