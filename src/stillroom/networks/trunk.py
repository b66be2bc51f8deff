"""The trunk of a network: modules that run one after another and keep some of their outputs."""

from collections.abc import Iterable, Mapping

from jaxtyping import Float
from torch import Tensor, nn


class Trunk(nn.ModuleDict):
    """Runs its modules in order; the names of parameters are those that the modules come with."""

    def __init__(self, modules: Iterable[tuple[str, nn.Module]], kept: Mapping[str, str]) -> None:
        """`kept` names outputs, by the module they come from; what follows the last is left out."""
        used: dict[str, nn.Module] = {}
        for name, module in modules:
            used[name] = module
            if kept.keys() <= used.keys():
                break
        super().__init__(used)
        self.kept = dict(kept)

    def forward(self, x: Float[Tensor, "b _ h w"]) -> dict[str, Float[Tensor, "b _ _ _"]]:
        """Return the kept outputs by name, in order."""
        found: dict[str, Tensor] = {}
        for name, module in self.items():
            x = module(x)
            if name in self.kept:
                found[self.kept[name]] = x
        return found
