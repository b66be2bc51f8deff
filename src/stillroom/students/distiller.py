"""A student, its heads, and projections of its features to a teacher's width: what DDP wraps."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor, nn

from stillroom.errors import UserError
from stillroom.losses.needs import Needs, Shape, Term, align_fix, describe_shape, require_head
from stillroom.networks.build import Network
from stillroom.networks.taps import require_taps
from stillroom.students.definitions import Student
from stillroom.types import TargetSpec, whole_box


class Projection(nn.Sequential):
    """1x1 -> BatchNorm -> ReLU -> 1x1, or one 1x1 for no `hidden`; dropped after training."""

    def __init__(self, c_in: int, hidden: int | None, c_out: int) -> None:
        """Kaiming normal weights (fan-out), biases 0."""
        if hidden is None:
            super().__init__(nn.Conv2d(c_in, c_out, 1))
        else:
            super().__init__(
                nn.Conv2d(c_in, hidden, 1),
                nn.BatchNorm2d(hidden),
                nn.ReLU(inplace=True),
                nn.Conv2d(hidden, c_out, 1),
            )
        for layer in self:
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
                assert layer.bias is not None
                nn.init.zeros_(layer.bias)


class Distiller(nn.Module):
    """A student, taps of it that are heads, and its projections, named `tap>target`; what is
    exported is `student`.
    """

    def __init__(
        self,
        student: Network,
        projections: dict[str, Projection],
        size: tuple[int, int],
        heads: tuple[str, ...] = (),
    ) -> None:
        super().__init__()
        self.size = size  # (h, w) of pictures, px
        self.student = student
        self.outputs = (*heads, *projections)  # names, besides the logits
        self.projections = nn.ModuleDict(
            {_module_name(name): projection for name, projection in projections.items()}
        )

    def forward(
        self, image: Float[Tensor, "b 3 h w"], boxes: Float[Tensor, "b 4"] | None = None
    ) -> dict[str, Float[Tensor, "b _ _ _"]]:
        """Return `logits`, every head and every `tap>target`; `image` is RGB in [0, 1], `boxes` are
        in pixels.
        """
        taps = tuple(dict.fromkeys(_tap(name) for name in self.outputs))
        logits, features = self.student.forward_taps(image, taps, boxes=boxes)
        outputs = {"logits": logits}
        for name in self.outputs:
            feature = features[_tap(name)]
            is_head = name == _tap(name)
            outputs[name] = feature if is_head else self.projections[_module_name(name)](feature)
        return outputs


def build_distiller(
    student: Student,
    terms: tuple[Term, ...],
    specs: Mapping[str, TargetSpec],
    size: tuple[int, int],
    regions: tuple[int, int] | None = None,
) -> Distiller:
    """Build the student, look once at its features at `size` (h, w), and add the projections;
    `regions` are the cells (y, x) of a region's mask.

    UserError when a term finds no target or tap, or when shapes do not fit. What no term can train
    (smp's EfficientNets carry a head that no feature passes through) asks for no gradient, because
    DDP waits for every parameter that does.
    """
    network = student.build()
    logits, features = _dry_run(network, size)
    _require_task(network, logits, regions)
    heads = tuple(dict.fromkeys(filter(None, (_head(term.needs) for term in terms))))
    require_taps(heads, network.taps)
    projections: dict[str, Projection] = {}
    hidden: dict[str, int | None] = {}
    for term in terms:
        needs, spec = term.needs, _spec_of(term, specs)
        if needs.tap is None:
            require_head(term, spec, features.get(needs.head, logits), logits)
            continue
        assert spec is not None
        require_taps((needs.tap,), network.taps)
        if needs.align is None:
            _require_grid(needs.tap, spec, features)
        if hidden.setdefault(needs.output, needs.hidden) != needs.hidden:
            raise UserError(
                f"two terms share the projection {needs.output} but not its hidden channels",
                found=f"{hidden[needs.output]} and {needs.hidden}",
                fix="give both terms the same hidden",
            )
        if needs.output not in projections:
            c_in, c_out = features[needs.tap][0], spec.shape[0]
            projections[needs.output] = Projection(c_in, needs.hidden, c_out)
    _freeze_unreached(network, size, terms)
    return Distiller(network, projections, size, heads)


def upstream_parameters(distiller: Distiller, tap: str) -> int:
    """Return how many numbers of the student can be trained and lie upstream of a tap.

    0 means that a feature loss there trains only a projection that is thrown away. Found by
    autograd on a blank picture; BatchNorm's statistics stay as they are. UserError for an unknown
    tap.
    """
    require_taps((tap,), distiller.student.taps)
    reached = _reached_from(distiller.student, distiller.size, (tap,), with_logits=False)
    return sum(parameter.numel() for parameter in reached)


def _freeze_unreached(network: Network, size: tuple[int, int], terms: tuple[Term, ...]) -> None:
    """Ask for no gradient of the parameters that no term's output depends on."""
    read = [term.needs.tap or _head(term.needs) for term in terms]
    taps = tuple(dict.fromkeys(tap for tap in read if tap))
    with_logits = not terms or None in read
    reached = {id(parameter) for parameter in _reached_from(network, size, taps, with_logits)}
    for parameter in network.parameters():
        parameter.requires_grad_(id(parameter) in reached)


def _reached_from(
    network: Network, size: tuple[int, int], taps: tuple[str, ...], with_logits: bool
) -> list[nn.Parameter]:
    """Return the trainable parameters that taps (and logits) depend on; nothing is changed."""
    parameters = [p for p in network.parameters() if p.requires_grad]
    if not parameters:
        return []
    image = torch.full((1, 3, *size), 0.5, device=parameters[0].device)
    with _evaluating(network), torch.enable_grad():
        logits, features = network.forward_taps(image, taps, boxes=_whole_box(network, size))
        values = [*features.values(), *([logits] if with_logits else [])]
        total = sum((value.sum() for value in values), torch.zeros((), device=image.device))
        if not total.requires_grad:
            return []
        gradients = torch.autograd.grad(total, parameters, allow_unused=True)
    return [p for p, gradient in zip(parameters, gradients, strict=True) if gradient is not None]


def _head(needs: Needs) -> str | None:
    """Return the tap that a term reads as it is; None where it reads logits or a projection."""
    return None if needs.tap is not None or needs.head == "logits" else needs.head


def _tap(name: str) -> str:
    return name.split(">")[0]


def _module_name(name: str) -> str:
    """torch allows no dot in a module's name; neither taps nor targets hold a minus sign."""
    return name.replace(".", "-")


@contextmanager
def _evaluating(network: nn.Module) -> Iterator[None]:
    """Put every module into evaluation mode and each back into its own mode afterwards."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def _dry_run(network: Network, size: tuple[int, int]) -> tuple[Shape, dict[str, Shape]]:
    """Return the shapes (c, y, x) of the logits and of every tap; the network stays as it was."""
    with _evaluating(network), torch.no_grad():
        image, boxes = torch.zeros(1, 3, *size), _whole_box(network, size)
        logits, features = network.forward_taps(image, network.taps, boxes=boxes)
    return _shape(logits), {tap: _shape(feature) for tap, feature in features.items()}


def _whole_box(network: Network, size: tuple[int, int]) -> Tensor | None:
    """Return the box of all of a picture, where a network looks at boxes."""
    return whole_box(size).to(next(network.parameters()).device) if network.needs_boxes else None


def _require_task(network: Network, logits: Shape, regions: tuple[int, int] | None) -> None:
    """Raise UserError where a student that looks at boxes gets none, or the other way round."""
    cells = f"{logits[1]} {logits[2]}"
    if network.needs_boxes and regions is None:
        raise UserError(
            "this student looks at boxes, and rows are whole pictures",
            fix=f"--data.regions {cells}, with pictures packed from coco:IMAGES,ANNOTATIONS",
        )
    if regions is not None and logits[1:] != regions:
        raise UserError(
            "the student's logits are not on the cells of a region's mask",
            found=f"{logits[1]} x {logits[2]} cells, --data.regions {regions[0]} {regions[1]}",
            fix=f"--data.regions {cells}" if network.needs_boxes else "a student that takes boxes",
        )


def _shape(value: Tensor) -> Shape:
    _, c, y, x = value.shape
    return c, y, x


def _spec_of(term: Term, specs: Mapping[str, TargetSpec]) -> TargetSpec | None:
    target = term.needs.target
    if target is not None and target not in specs:
        raise UserError(
            f"the term {term.label} needs a target that is not there",
            found="targets " + (", ".join(specs) or "none"),
            wanted=target,
            fix="name one of these targets in the term, or let a teacher of the recipe make it",
        )
    return None if target is None else specs[target]


def _require_grid(tap: str, spec: TargetSpec, features: dict[str, Shape]) -> None:
    """Refuse a tap whose cells are not those of the target."""
    found = features[tap]
    if found[1:] == spec.shape[1:]:
        return
    fitting = [tap for tap, shape in features.items() if shape[1:] == spec.shape[1:]]
    raise UserError(
        f"the tap {tap} and the target {spec.name} have different grids",
        found=f"{tap} is {describe_shape(found)}",
        wanted=f"{spec.name} is {describe_shape(spec.shape)}",
        fix=f"{align_fix(spec)}; taps with this grid: {', '.join(fitting) or 'none'}",
    )
