"""Runs torch teachers, frozen, in float32: networks of the networks room, modules of one's own."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from stillroom.errors import UserError
from stillroom.hashing import keyed_hash
from stillroom.networks.build import Network, build_network, load_weights
from stillroom.networks.fcn import VOC_WEIGHTS
from stillroom.networks.finished_run import load_run
from stillroom.networks.normalise import Normalise
from stillroom.networks.taps import require_taps
from stillroom.networks.torch_network import kind_of, load_module, run_module
from stillroom.networks.torchvision_weights import fetch
from stillroom.networks.weights import load_state
from stillroom.teachers.configs import FcnTeacher, RunTeacher, SmpTeacher
from stillroom.teachers.damage import damage_of, network_weights
from stillroom.teachers.devices import open_device
from stillroom.teachers.fields import Taps, places, strides
from stillroom.teachers.files import existing, finished
from stillroom.teachers.own_configs import TorchTeacher
from stillroom.teachers.pooling import pooled
from stillroom.types import Row

# of RGB in [0, 1], on the device, and boxes where the task has them
Run = Callable[[Tensor, Normalise, Tensor | None], dict[str, Tensor]]


class BuiltTorchTeacher:
    """A torch module as a `BuiltTeacher`; `run` gives every target of it, float32, and those that
    `taps` gives a stride are averaged.
    """

    provider = "torch"

    def __init__(
        self,
        module: nn.Module,
        run: Run,
        preprocessing: Normalise,
        device: str,
        identity: dict[str, Any] | None = None,
        taps: Iterable[tuple[Any, ...]] = (),
        report: str = "",
    ) -> None:
        """Take over a module with its weights; raises UserError for no such device."""
        self.report = report
        self.device = open_device(device)
        self.damage = damage_of(network_weights(module))
        self.preprocessing = preprocessing
        self.identity = identity or {}
        self._network = module.to(self.device).eval().requires_grad_(False)
        self._run, self._strides = run, strides(taps)

    @property
    def num_parameters(self) -> int:
        """Numbers that were trained."""
        return sum(parameter.numel() for parameter in self._network.parameters())

    @torch.inference_mode()
    def __call__(
        self,
        image: Float[Tensor, "b 3 h w"],
        *,
        rows: Sequence[Row] = (),
        preprocessing: Normalise | None = None,
        boxes: Float[Tensor, "b 4"] | None = None,
    ) -> dict[str, Float[Tensor, "b _ _ _"]]:
        """Return every target, float32 on the device.

        Raises UserError for a picture size that the network cannot take.
        """
        assert not self._network.training, "a teacher never trains"
        image = image.to(self.device, torch.float32)
        boxes = None if boxes is None else boxes.to(self.device)
        normalise = (preprocessing or self.preprocessing).to(self.device)
        with (
            torch.autocast(self.device.type, enabled=False),
            torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False),
        ):
            size = (image.shape[2], image.shape[3])
            return pooled(self._run(image, normalise, boxes), self._strides, size)


def build_smp(config: SmpTeacher, device: str) -> BuiltTorchTeacher:
    """Return an smp network with its weights; nothing is downloaded."""
    weights = existing(config.path)
    network = build_network(config.architecture())
    report = load_weights(network, weights)
    return _of_network(network, config.target, config.taps, device, report=report)


def build_fcn(config: FcnTeacher, device: str) -> BuiltTorchTeacher:
    """Return torchvision's FCN-ResNet50 with its weights; "voc" downloads them."""
    with seeded("fcn"):
        network = build_network(config.architecture())
    report = ""
    if config.weights == "voc":
        fix = "name a file of these weights with --teachers.N.weights, or fetch them once online"
        load_state(network, fetch(VOC_WEIGHTS, fix), VOC_WEIGHTS)
    elif config.weights is not None:
        report = load_weights(network, existing(config.weights, "weights"))
    identity = {"state_dict_sha256": state_sha256(network)}
    return _of_network(network, config.target, config.taps, device, identity, report)


def build_run(config: RunTeacher, device: str) -> BuiltTorchTeacher:
    """Return the student of a finished run as a teacher."""
    network, _ = load_run(finished(config.path), code=config.code)
    return _of_network(network, config.target, config.taps, device)


def build_own(config: TorchTeacher, device: str) -> BuiltTorchTeacher:
    """Return a module of the user's own, with weights from a file or as its factory left them."""
    with seeded(config.factory.rpartition(":")[2]):
        module = load_module(config.factory)
    report = ""
    if config.weights is not None:
        report = load_weights(module, existing(config.weights, "weights"))
    taps = places(config.outputs)

    def run(image: Tensor, normalise: Normalise, boxes: Tensor | None) -> dict[str, Tensor]:
        found, features = run_module(module, normalise(image), tuple(taps.values()))
        outputs = {name: features[tap].float() for name, tap in taps.items()}
        if config.target is not None:
            outputs[config.target] = _logits(found, image, config.factory)
        return outputs

    normalise = Normalise(config.mean, config.std, config.scale, config.channels)
    identity = {"state_dict_sha256": state_sha256(module)}
    return BuiltTorchTeacher(module, run, normalise, device, identity, config.outputs, report)


@contextmanager
def seeded(name: str) -> Iterator[None]:
    """Draw first weights from a name alone, so that each process that builds has the same ones."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(keyed_hash("first weights", name))
        yield


def state_sha256(module: nn.Module) -> str:
    """Return the sha256 of a state dict: names in order, each with type, shape and bytes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        if isinstance(tensor, Tensor):  # a module's `get_extra_state` may be anything
            digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
            digest.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _of_network(
    network: Network,
    target: str,
    taps: Taps,
    device: str,
    identity: dict[str, Any] | None = None,
    report: str = "",
) -> BuiltTorchTeacher:
    names = places(taps)
    wanted = tuple(names.values())
    require_taps(wanted, network.taps)

    def run(image: Tensor, normalise: Normalise, boxes: Tensor | None) -> dict[str, Tensor]:
        if network.needs_boxes and boxes is None:
            raise UserError(
                f"the teacher of {target!r} looks at boxes, and rows are whole pictures",
                fix="--data.regions, with the cells of its logits",
            )
        logits, features = network.forward_taps(image, wanted, normalise, boxes)
        return {target: logits, **{name: features[tap] for name, tap in names.items()}}

    return BuiltTorchTeacher(network, run, network.normalise, device, identity, taps, report)


def _logits(found: Any, image: Tensor, factory: str) -> Tensor:
    """Return logits at the size of the picture."""
    if not isinstance(found, Tensor) or found.ndim != 4 or len(found) != len(image):
        raise UserError(
            f"{factory} does not give logits",
            found=kind_of(found),
            wanted=f"{len(image)} x classes x height x width, or a dict with them under `out`, or a"
            " tuple that begins with them",
            fix="wrap it in a module that returns them; where only `outputs` are wanted,"
            " --teachers.N.target None",
        )
    if found.shape[2:] == image.shape[2:]:
        return found.float()
    return functional.interpolate(found.float(), image.shape[2:], mode="bilinear")
