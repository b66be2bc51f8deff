"""Values that change while training goes on: the temperature of a soft target."""

import math
from dataclasses import dataclass
from typing import Literal

from stillroom.errors import UserError

ScheduleKind = Literal["constant", "linear", "cosine", "exponential"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Temperature:
    """A temperature that goes from `start` to `end` while progress goes from 0 to 1."""

    start: float = 1.0  # temperature at the beginning
    end: float | None = None  # at the end; none for a constant
    kind: ScheduleKind = "constant"  # how it goes from start to end

    def __post_init__(self) -> None:
        ends = (self.start,) if self.end is None else (self.start, self.end)
        if not all(0 < value < math.inf for value in ends):
            raise UserError("a temperature is a positive number", found=self)
        if self.kind == "constant" and self.end not in (None, self.start):
            raise UserError(
                "a constant temperature has no other end",
                found=self,
                fix="name a kind: linear, cosine or exponential",
            )
        if self.kind != "constant" and self.end is None:
            raise UserError(f"a {self.kind} temperature needs an end", found=self)

    def at(self, progress: float) -> float:
        """Return the temperature at `progress` in [0, 1].

        linear: T0 + (T1 - T0) p; cosine: T1 + (T0 - T1) (1 + cos(pi p)) / 2; exponential: T0 (T1 /
        T0)^p.
        """
        assert 0 <= progress <= 1, progress
        if self.kind == "constant" or self.end is None:
            return self.start
        if self.kind == "linear":
            return self.start + (self.end - self.start) * progress
        if self.kind == "cosine":
            share = (1 + math.cos(math.pi * progress)) / 2
            return self.end + (self.start - self.end) * share
        return self.start * (self.end / self.start) ** progress


def epoch_progress(epoch: int, num_epochs: int) -> float:
    """Return how far an epoch (from 0) is on the way: 0 in the first, 1 in the last or only one."""
    return 1.0 if num_epochs <= 1 else epoch / (num_epochs - 1)
