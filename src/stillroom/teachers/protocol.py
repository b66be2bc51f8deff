"""What a teacher is to stage 1 and to the checks: a description, and what it builds."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from stillroom.networks.normalise import Normalise
from stillroom.types import Kind, Row

# what the caches at hand say of their teachers, in stage 2; None in stage 1
Recorded = Sequence[Mapping[str, Any]] | None


@runtime_checkable
class BuiltTeacher(Protocol):
    """A frozen network, ready to run on one device."""

    @property
    def preprocessing(self) -> Normalise | None:
        """Its own input normalisation; None = not a function of pixels, so no other is tried."""

    @property
    def damage(self) -> tuple[str, ...]:
        """What is wrong with the weights, in words; empty = nothing."""
        ...

    @property
    def provider(self) -> str:
        """What runs it, for the provenance of a shard."""
        ...

    @property
    def identity(self) -> dict[str, Any]:
        """Members of its identity that only a built network knows: stage 1 adds them, stage 2 does
        not compare them.
        """
        ...

    def __call__(
        self,
        image: Float[Tensor, "b 3 h w"],
        *,
        rows: Sequence[Row] = (),
        preprocessing: Normalise | None = None,
        boxes: Float[Tensor, "b 4"] | None = None,
    ) -> dict[str, Float[Tensor, "b _ _ _"]]:
        """Return every target of these rows, float32, for RGB in [0, 1].

        `preprocessing` is tried instead of its own. Raises UserError for a size that it cannot
        take.
        """
        ...


@runtime_checkable
class Reports(Protocol):
    """What a built teacher has besides where stage 1 shall print a line about its weights."""

    @property
    def report(self) -> str:
        """The line; "" = none."""
        ...


@runtime_checkable
class Counts(Protocol):
    """What a built teacher has besides where it knows its size."""

    @property
    def num_parameters(self) -> int:
        """Numbers that were trained."""
        ...


@runtime_checkable
class TeacherConfig(Protocol):
    """A teacher as plain values, in a recipe; importing it loads nothing heavy."""

    @property
    def targets(self) -> dict[str, Kind]:
        """The kind of each target as it is stored."""
        ...

    def identity(self, with_files: bool = True, recorded: Recorded = None) -> dict[str, Any]:
        """Return what makes its outputs its own; `targets` has what each is in the network.

        Without files, a subset of what is known with them. With `recorded` this is stage 2: what
        can only be learnt by building or importing is taken from there.
        """
        ...

    def build(self, device: str) -> BuiltTeacher:
        """Return the network on "cpu", "cuda" or "cuda:N"; raises UserError for what cannot be."""
        ...
