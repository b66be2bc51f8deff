"""Any network of segmentation_models_pytorch (smp), with taps, with its own normalisation.

The encoder's string is recorded as it stands, because it decides class, parameter names and weights
(smp 0.6): `timm-efficientnet-b3` is smp's own EfficientNet (U-Net 13.16 M parameters),
`tu-efficientnet_b3` is timm's feature extractor (12.56 M, first feature 24 instead of 40 channels).
The weights of one do not fit the other.
"""

import warnings
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec
from torch import Tensor, nn

from stillroom.errors import UserError
from stillroom.networks.description import Classes, Name, Triple, Width, describe
from stillroom.networks.normalise import IMAGENET_MEAN, IMAGENET_STD, Normalise
from stillroom.networks.taps import Network, kept_outputs


@dataclass(frozen=True, slots=True, kw_only=True)
class SmpFields:
    """What describes an smp network: of a teacher, of a student, in `student.json`."""

    arch: Name = "unet"  # smp's name of the architecture
    encoder: Name  # smp's exact name of the encoder: timm-x and tu-x are different networks
    classes: Classes = 1  # channels of the logits; 1 for a binary task
    mean: Triple = IMAGENET_MEAN  # of RGB in [0, 1], as the encoder's weights were trained
    std: Triple = IMAGENET_STD  # of RGB in [0, 1], as the encoder's weights were trained
    # from coarse to fine; none: smp's default
    decoder_channels: Annotated[tuple[Width, ...], msgspec.Meta(max_length=8)] | None = None

    def architecture(self) -> dict[str, Any]:
        """Return the network's plain JSON description, without weights."""
        return describe("smp", SmpFields, self)


class SmpNetwork(Network):
    """smp's encoder, decoder and segmentation head; parameters have smp's own names.

    Taps: `encoder.N` is the encoder's N-th feature (`encoder.0` the normalised picture, `encoder.3`
    stride 8); `decoder.N` the output of the decoder's N-th block, where the decoder has blocks. Of
    UNet++ the blocks have names (`decoder.x_0_1`).
    """

    def __init__(
        self,
        arch: str,
        encoder: str,
        classes: int,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        decoder_channels: tuple[int, ...] | None = None,
        encoder_weights: str | None = None,
    ) -> None:
        """`encoder_weights` is None (random) or "imagenet" (downloaded, or from the cache)."""
        super().__init__()
        model = _create(arch, encoder, classes, decoder_channels)
        self.normalise = Normalise(mean, std)
        self.encoder = model.encoder
        self.decoder = model.decoder
        self.segmentation_head = model.segmentation_head
        self.stride = int(model.encoder.output_stride)
        self.taps = _encoder_taps(model.encoder) + tuple(self._decoder_blocks())
        if encoder_weights is not None:
            pretrained = _pretrained_encoder(encoder, encoder_weights)
            self.encoder.load_state_dict(pretrained.state_dict())

    def _run(self, image: Tensor, taps: tuple[str, ...]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return logits and features of a normalised picture."""
        features = self.encoder(image)
        named = {f"encoder.{level}": feature for level, feature in enumerate(features)}
        blocks = self._decoder_blocks()
        with kept_outputs({tap: blocks[tap] for tap in taps if tap in blocks}, named):
            x = self.decoder(features)
        return self.segmentation_head(x), named

    def _decoder_blocks(self) -> dict[str, nn.Module]:
        blocks = getattr(self.decoder, "blocks", nn.ModuleList())
        return {f"decoder.{name}": block for name, block in blocks.named_children()}


def prefetch(encoder: str, weights: str = "imagenet") -> None:
    """Fetch an encoder's weights into the local cache; call it on one rank before the others build.

    UserError when there are none, or when they cannot be fetched.
    """
    _pretrained_encoder(encoder, weights)


def _encoder_taps(encoder: nn.Module) -> tuple[str, ...]:
    """Name the encoder's features, but for the empty one that some have at stride 2."""
    channels: Any = encoder.out_channels
    return tuple(f"encoder.{level}" for level, c in enumerate(channels) if c > 0)


def _create(arch: str, encoder: str, classes: int, decoder_channels: tuple[int, ...] | None) -> Any:
    """Return smp's model with random weights; UserError for names that smp does not know."""
    import segmentation_models_pytorch as smp
    from segmentation_models_pytorch.base import SegmentationModel

    architectures = smp.MODEL_ARCHITECTURES_MAPPING
    legal = tuple(
        name for name, model in architectures.items() if model.forward is SegmentationModel.forward
    )
    if arch.lower() not in legal:
        raise UserError("no such smp architecture", found=arch, wanted="one of " + ", ".join(legal))
    options: dict[str, Any] = (
        {} if decoder_channels is None else {"decoder_channels": decoder_channels}
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # `timm-` names: pinned on purpose
        try:
            return smp.create_model(arch, encoder, None, classes=classes, **options)
        except (KeyError, ValueError, TypeError, RuntimeError) as error:
            raise UserError(
                "smp cannot build this network",
                found=f"{arch}, encoder {encoder}, {classes} classes, decoder {decoder_channels}",
                wanted=f"{error}",
            ) from error


def _pretrained_encoder(encoder: str, weights: str) -> Any:
    """Return smp's encoder with downloaded weights."""
    from segmentation_models_pytorch import encoders

    universal = encoder.startswith("tu-") or encoders.is_equivalent_to_timm_universal(encoder)
    fix = "name a weights file of this encoder instead, or none for random weights"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        try:
            return encoders.get_encoder(encoder, weights=True if universal else weights)
        except OSError as error:
            raise UserError(
                f"the {weights} weights of {encoder} could not be downloaded",
                found=f"{type(error).__name__}: {error}",
                wanted="a connection, or the file in the local cache from an earlier run",
                fix=fix,
            ) from error
        except (KeyError, RuntimeError) as error:
            raise UserError(
                f"there are no {weights} weights of {encoder}", found=f"{error}", fix=fix
            ) from error
