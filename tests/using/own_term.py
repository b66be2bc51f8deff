"""A recipe with a feature term of one's own."""

from dataclasses import dataclass, replace

from stillroom.losses import Needs, functions
from stillroom.recipes.tiny import tiny


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureL1:
    """Absolute difference of a projected feature and a teacher's."""

    label = "feature_l1"
    target: str = "inner"  # name of the teacher's feature
    weight: float = 1.0  # of this term

    @property
    def needs(self):
        return Needs(target=self.target, tap="encoder.2", hidden=16)

    def count(self, batch):
        return functions.inside_at(batch.inside, *batch.targets[self.target].shape[2:]).sum()

    def total(self, outputs, batch, progress):
        away = (outputs[self.needs.output] - batch.targets[self.target]).float().abs().mean(1)
        return away[functions.inside_at(batch.inside, *away.shape[1:])].sum()


def recipe():
    return replace(tiny(), name="own-term", terms=(*tiny().terms[:2], FeatureL1(weight=0.1)))
