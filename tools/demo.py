"""`stillroom demo`, from a checkout."""

from stillroom.cli import run_command
from stillroom.commands.demo import run

if __name__ == "__main__":
    run_command(run)
