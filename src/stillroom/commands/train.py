"""Stage 2: train a student from what stage 1 kept.

    stillroom train RECIPE --precision fp16                 one GPU (a CPU: fp32)
    accelerate launch --config_file accelerate_configs/gpu8_fp16.yaml train_student.py RECIPE
    torchrun --nproc-per-node 2 train_student.py RECIPE --run.device cpu        two on a CPU

A recipe without distilled terms is plain supervised training, of teachers too.
"""

from stillroom.cli import recipe_from


def run() -> None:
    from stillroom.training.loop import train

    train(recipe_from())
