"""Terms that compare a projected feature of the student with a feature of a teacher, or, where they
take either, logits.
"""

from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

from jaxtyping import Float
from torch import Tensor

from stillroom.errors import UserError
from stillroom.losses import distances
from stillroom.losses.needs import Needs, Outputs, Sum
from stillroom.losses.schedules import Temperature
from stillroom.losses.target_terms import OnEither, OnFeature, either_needs
from stillroom.types import Batch


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureMSE(OnFeature):
    """Squared difference of a projected feature of the student from a feature of the teacher."""

    label: ClassVar[str] = "feature_mse"
    _is_linear: ClassVar[bool] = True

    def total(self, outputs: Outputs, batch: Batch, progress: float) -> Sum:
        """Sum over cells of the mean over channels."""
        output, target, valid = self._pair(outputs, batch)
        cells = distances.squared_error(output, target, valid)
        return self._sum_of_squares(cells, target, batch)


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureCosine(OnFeature):
    """One minus the cosine of a projected feature of the student and a feature of the teacher."""

    label: ClassVar[str] = "feature_cosine"

    flatten: bool = False  # of each picture's feature as one vector, instead of each cell's

    def count(self, batch: Batch) -> Float[Tensor, ""]:
        """Cells of the target whose centre is no padding, or pictures with such a cell."""
        return self._num_pictures(batch) if self.flatten else OnFeature.count(self, batch)

    def total(self, outputs: Outputs, batch: Batch, progress: float) -> Sum:
        """Sum over cells or pictures."""
        return self._cosines(outputs, batch, self.flatten)


@dataclass(frozen=True, slots=True, kw_only=True)
class CauchySchwarz(OnEither):
    """Cauchy-Schwarz divergence of each cell's softmax over channels from the teacher's, of logits
    or of a projected feature.
    """

    label: ClassVar[str] = "cs"

    # divergence: -log((sum s t)^2 / (sum s^2 sum t^2)), s and t being softmaxes over channels;
    # cosine: 1 - cosine of the values themselves
    kind: Literal["divergence", "cosine"] = "divergence"
    temperature: float = 1.0  # of both softmaxes

    def __post_init__(self) -> None:
        if not 0 < self.temperature < float("inf"):
            raise UserError("a temperature is a positive number", found=self.temperature)

    @property
    def needs(self) -> Needs:
        """A tap, projected to the target's width, or logits of two channels or more."""
        return replace(either_needs(self), min_channels=2)

    def total(self, outputs: Outputs, batch: Batch, progress: float) -> Sum:
        """Sum over cells."""
        if self.kind == "cosine":
            return self._cosines(outputs, batch, flatten=False)
        output, target, valid = self._pair(outputs, batch)
        cells = distances.cauchy_schwarz(output, target, valid, self.temperature)
        return self._sum(cells, target, batch)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelKL(OnEither):
    """Channel-wise distillation: KL divergence of each channel's softmax over the picture's cells
    from the teacher's, times T^2, of logits or of a projected feature.
    """

    label: ClassVar[str] = "channel_kl"

    temperature: Temperature = field(default_factory=lambda: Temperature(start=4.0))  # softens both

    def count(self, batch: Batch) -> Float[Tensor, ""]:
        """Pictures with a cell of the target whose centre is no padding."""
        return self._num_pictures(batch)

    def total(self, outputs: Outputs, batch: Batch, progress: float) -> Sum:
        """Sum over pictures of the mean over channels."""
        output, target, valid = self._pair(outputs, batch)
        temperature = self.temperature.at(progress)
        return distances.channel_kl(output, target, valid, temperature).sum()
