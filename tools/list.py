"""`stillroom list`, from a checkout."""

from stillroom.cli import run_command
from stillroom.commands.list import run

if __name__ == "__main__":
    run_command(run)
