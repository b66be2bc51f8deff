"""Two-stage knowledge distillation for image segmentation."""

__version__ = "0.1.0"
