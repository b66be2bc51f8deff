"""Look pictures and masks over before they are packed.

stillroom check-data voc:PATH
"""

from stillroom.flags import call
from stillroom.using.data_check import check_data


def run() -> None:
    """Do what the command line says."""
    call(check_data)
