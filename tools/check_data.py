"""`stillroom check-data`, from a checkout."""

from stillroom.cli import run_command
from stillroom.commands.check_data import run

if __name__ == "__main__":
    run_command(run)
