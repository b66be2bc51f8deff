"""Weights that torchvision offers, fetched by torchvision itself into torch's own local cache."""

from torch import Tensor

from stillroom.errors import UserError, first_line


def fetch(name: str, fix: str) -> dict[str, Tensor]:
    """Return the state dict that torchvision names so, e.g. VGG16_Weights.IMAGENET1K_V1.

    Call it on one rank before the others. Nothing in the file is executed. UserError where it
    cannot be had, with `fix`.
    """
    from torchvision.models import get_weight

    try:
        weights = get_weight(name)
        return dict(weights.get_state_dict(progress=True, check_hash=True, weights_only=True))
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"torchvision's weights {name} could not be downloaded",
            found=f"{type(error).__name__}: {first_line(error)[:200]}",
            wanted="a connection, or the file in torch's local cache from an earlier run",
            fix=fix,
        ) from error
