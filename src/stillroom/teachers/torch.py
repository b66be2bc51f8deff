"""Runs torch teachers: networks of the networks room with strict weights, frozen, in float32."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from stillroom.networks.build import Network, build_network, load_weights
from stillroom.networks.finished_run import load_run
from stillroom.networks.normalise import Normalise
from stillroom.networks.taps import require_taps
from stillroom.teachers.configs import RunTeacher, SmpTeacher, Taps
from stillroom.teachers.damage import damage_of, network_weights
from stillroom.teachers.devices import open_device
from stillroom.teachers.files import existing, finished
from stillroom.types import Row


class BuiltTorchTeacher:
    """A torch network as a `BuiltTeacher`; it sees the picture at its own size."""

    provider = "torch"

    def __init__(self, network: Network, target: str, taps: Taps, device: str) -> None:
        """Take over a network with its weights; raises UserError where a tap is not there."""
        require_taps(tuple(tap for _, tap in taps), network.taps)
        self.device = open_device(device)
        self.damage = damage_of(network_weights(network))
        self.preprocessing: Normalise = network.normalise
        self._network = network.to(self.device).eval().requires_grad_(False)
        self._target, self._taps = target, taps

    @torch.inference_mode()
    def __call__(
        self,
        image: Float[Tensor, "b 3 h w"],
        *,
        rows: Sequence[Row] = (),
        preprocessing: Normalise | None = None,
        boxes: Float[Tensor, "b 4"] | None = None,
    ) -> dict[str, Float[Tensor, "b _ _ _"]]:
        """Return logits and tapped features, float32 on the device.

        Raises UserError for a picture size that the network cannot take.
        """
        assert not self._network.training, "a teacher never trains"
        image = image.to(self.device, torch.float32)
        names = tuple(tap for _, tap in self._taps)
        normalise = (preprocessing or self.preprocessing).to(self.device)
        with (
            torch.autocast(self.device.type, enabled=False),
            torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False),
        ):
            logits, features = self._network.forward_taps(image, names, normalise)
        return {self._target: logits, **{name: features[tap] for name, tap in self._taps}}


def build_smp(config: SmpTeacher, device: str) -> BuiltTorchTeacher:
    """Return an smp network with its weights; nothing is downloaded."""
    weights = existing(config.path)
    network = build_network(config.architecture())
    load_weights(network, weights)
    return BuiltTorchTeacher(network, config.target, config.taps, device)


def build_run(config: RunTeacher, device: str) -> BuiltTorchTeacher:
    """Return the student of a finished run as a teacher."""
    network, _ = load_run(finished(config.path), code=config.code)
    return BuiltTorchTeacher(network, config.target, config.taps, device)
