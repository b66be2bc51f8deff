"""Look pictures and masks over before they are packed.

stillroom check-data voc:PATH
"""

import tyro

from stillroom.using.check_data import check_data


def run() -> None:
    """Do what the command line says."""
    tyro.cli(check_data)
