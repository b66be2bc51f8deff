"""Stage 2: train a student from what stage 1 kept.

    accelerate launch train_student.py RECIPE [flags]
    torchrun --nproc-per-node 2 train_student.py RECIPE [flags]

A recipe without distilled terms is plain supervised training, of teachers too.
"""

from stillroom.cli import recipe_from, run_command


def main() -> None:
    from stillroom.training.loop import train

    train(recipe_from())


if __name__ == "__main__":
    run_command(main)
