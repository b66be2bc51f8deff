"""Runs timm models as teachers of features: intermediate maps, tokens laid out as a grid."""

from difflib import get_close_matches
from typing import Any

import timm
from torch import Tensor
from torch.nn import functional

from stillroom.errors import UserError, first_line
from stillroom.networks.normalise import Normalise
from stillroom.networks.weights import load_trunk
from stillroom.teachers.fields import places
from stillroom.teachers.files import existing
from stillroom.teachers.own_configs import TimmTeacher
from stillroom.teachers.torch import BuiltTorchTeacher, seeded, state_sha256

# How a model is asked to take pictures of another size than its own: position embeddings are
# resampled on the fly, so that weights keep their shapes; else the model is made for that size.
_ANY_SIZE = {"dynamic_img_size": True}


def build_timm(config: TimmTeacher, device: str) -> BuiltTorchTeacher:
    """Return a timm model with its weights, without its classifier."""
    with seeded(config.model):
        model = _create(config)
    if config.weights not in (None, "pretrained"):
        load_trunk(model, existing(config.weights, "weights"))
    indices = _indices(model, config)
    order = sorted(set(indices.values()))  # timm returns each once, from the first to the last

    def run(image: Tensor, normalise: Normalise, boxes: Tensor | None) -> dict[str, Tensor]:
        if config.size is not None and tuple(image.shape[2:]) != config.size:
            image = functional.interpolate(image, config.size, mode="bilinear", antialias=True)
        try:
            found = model.forward_intermediates(
                normalise(image),
                indices=order,
                norm=config.norm,
                output_fmt="NCHW",
                intermediates_only=True,
            )
        except (AssertionError, ValueError, RuntimeError) as error:
            raise UserError(
                f"the model {config.model} could not run on {tuple(image.shape)}",
                found=first_line(error)[:200],
                fix="give a size that it takes with --teachers.N.size H W; where it cannot"
                " normalise features, --teachers.N.no-norm",
            ) from None
        features = dict(zip(order, found, strict=True))
        return {name: features[index].float() for name, index in indices.items()}

    own = model.pretrained_cfg
    mean, std = config.mean or tuple(own["mean"]), config.std or tuple(own["std"])
    identity = {
        "state_dict_sha256": state_sha256(model),
        "normalisation": {"mean": list(mean), "std": list(std)},
    }
    return BuiltTorchTeacher(model, run, Normalise(mean, std), device, identity, config.taps)


def _create(config: TimmTeacher) -> Any:
    """Return the model without its classifier; UserError where timm does not know or have it."""
    if not timm.is_model(config.model):
        near = get_close_matches(config.model, timm.list_models(), 5) or ["none"]
        raise UserError("timm knows no such model", found=config.model, wanted=", ".join(near))
    sizes: list[dict[str, Any]] = [_ANY_SIZE, {"img_size": config.size}, {}]
    model: Any = None
    for size in sizes if config.size else (_ANY_SIZE, {}):
        try:
            model = _load(config, size)
            break
        except (TypeError, AssertionError):  # an argument, or a size, that it does not take
            if not size:
                raise
    if not hasattr(model, "forward_intermediates"):
        raise UserError(
            f"timm cannot give intermediate features of {config.model}",
            fix="name its modules in a TorchTeacher",
        )
    return model


def _load(config: TimmTeacher, options: dict[str, Any]) -> Any:
    fix = "name a weights file of this model with --teachers.N.weights, or fetch it once online"
    try:
        return timm.create_model(
            config.model, pretrained=config.weights == "pretrained", num_classes=0, **options
        )
    except OSError as error:
        raise UserError(
            f"the weights of {config.model} could not be downloaded",
            found=f"{type(error).__name__}: {first_line(error)[:200]}",
            wanted="a connection, or the file in the local cache from an earlier run",
            fix=fix,
        ) from error
    except RuntimeError as error:
        raise UserError(
            f"timm cannot make {config.model} with these weights",
            found=first_line(error)[:200],
            fix=fix,
        ) from error


def _indices(model: Any, config: TimmTeacher) -> dict[str, int]:
    """Return each tap's number, counted from the first feature."""
    count = len(model.feature_info)
    numbers: dict[str, int] = places(config.taps)
    for name, number in numbers.items():
        if not -count <= number < count:
            raise UserError(
                f"{config.model} has no feature {number} for the target {name!r}",
                wanted=f"0 to {count - 1}, or -1 (the last) to -{count}",
            )
    return {name: number % count for name, number in numbers.items()}
