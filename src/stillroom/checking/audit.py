"""Equivariance: how far a teacher's answer f(T(x)) for a transformed picture is from its own answer
transformed, T(f(x)).

Every T is a view: a box of the packed picture, mirrored or not, brought to the size at which the
teachers work, so that those of a fixed size can be asked as well. T of a map is the map sampled
bilinearly where the view's cells lie. A crop is a box of the picture's own size that was moved by
cells: about an eighth of the map, and half a cell (a pixel at least) further for the one off the
grid. Scales are boxes around the middle of .75 and 1.5 of the picture's sides.

Compared are the cells whose every pixel shows the picture: no padding, nothing outside it. Those at
the edge of a crop count too, where the teacher saw more in x than in T(x). The control is T = 1,
asked once alone and once beside the transformed pictures.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from stillroom.cache.audit_file import CONTROL, MIRROR, MOST_ERROR, Audit, Equivariance, write_audit
from stillroom.cache.folder import Cache
from stillroom.errors import UserError
from stillroom.extraction.encode import RowPicture, run_teachers
from stillroom.pictures.dataset import Picture, PictureSet
from stillroom.pictures.rows import picture_of, rows_of
from stillroom.pictures.views import PixelBox
from stillroom.progress_bar import progress_bar
from stillroom.recipe import Recipe
from stillroom.signals import raise_if_stopped, stop_on_signals
from stillroom.types import Row, ShardId, View

_SCALES = (0.75, 1.5)


@dataclass(kw_only=True)
class _Sums:
    """Of the values that were compared, float64: a is T(f(x)), b is f(T(x))."""

    count: int = 0  # of cells
    total: Tensor = field(default_factory=lambda: torch.zeros(1, dtype=torch.float64))  # of a (c)
    products: Tensor = field(default_factory=lambda: torch.zeros(4, dtype=torch.float64))

    def add(self, one: Float[Tensor, "c n"], two: Float[Tensor, "c n"]) -> None:
        a, b = one.double(), two.double()
        self.count += a.shape[1]
        self.total = self.total + a.sum(1).cpu()
        pairs = ((a, a), (b, b), (a, b), (a - b, a - b))
        self.products += torch.stack([(p * q).sum() for p, q in pairs]).cpu()

    @property
    def figures(self) -> Equivariance:
        aa, bb, ab, off = self.products.tolist()
        if not off:
            return Equivariance(error=0.0, cosine=1.0)
        spread = aa - float(self.total.square().sum()) / self.count  # about each channel's mean
        error, norms = math.sqrt(off / max(spread, 1e-30)), math.sqrt(aa * bb)
        return Equivariance(error=error, cosine=ab / norms if norms else 0.0)


def views_of(size: tuple[int, int], cells: tuple[int, int]) -> dict[str, View]:
    """Return each transform of a packed picture of `size` (h, w) for a map of `cells` (y, x)."""
    height, width = size
    down, across = _whole_cells(height, cells[0]), _whole_cells(width, cells[1])
    half = math.ceil(height / cells[0] / 2), math.ceil(width / cells[1] / 2)
    whole = View(x0=0, y0=0, x1=width, y1=height)
    return {
        CONTROL: whole,
        MIRROR: replace(whole, mirrored=True),
        "crop on the grid": _box(across, down, width, height),
        "crop off the grid": _box(across + half[1], down + half[0], width, height),
        **{f"scale {scale:g}": _middle(size, scale) for scale in _SCALES},
    }


def transformed(
    target: Float[Tensor, "1 c y x"], view: View, size: tuple[int, int]
) -> Float[Tensor, "1 c y x"]:
    """Return a packed picture's map (the picture of `size`, h w) as a view of it would have it.

    Outside the picture the map goes on as at its edge.
    """
    height, width = size
    across = (view.x1 - view.x0) / width * (-1 if view.mirrored else 1)
    right, down = (view.x0 + view.x1) / width - 1, (view.y0 + view.y1) / height - 1
    theta = [[across, 0.0, right], [0.0, (view.y1 - view.y0) / height, down]]
    grid = functional.affine_grid(
        torch.tensor([theta], device=target.device), list(target.shape), align_corners=False
    )
    return functional.grid_sample(target, grid, padding_mode="border", align_corners=False)


def run_audit(
    cache: Cache,
    recipe: Recipe,
    pictures: PictureSet,
    rows: Sequence[tuple[ShardId, int]],
    device: str,
) -> Audit:
    """Run the recipe's teachers on pictures and transformed pictures; store and return the figures.

    `rows` are numbers among each shard's first views. Targets of teachers that look at no pixels
    are left out. Raises UserError for an answer that is not finite, Stopped on SIGTERM.
    """
    if recipe.data.regions is not None:
        raise UserError(
            "the audit moves whole pictures, and here rows are regions",
            fix="check_cache.py without --audit; --augment.mirror stays refused for this cache",
        )
    built = [config.build(device) for config in recipe.teachers]
    teachers = [teacher for teacher in built if teacher.preprocessing is not None]
    run = partial(run_teachers, teachers, device=device)
    sums: dict[str, dict[str, _Sums]] = {}
    with stop_on_signals() as stop:
        for shard_id, i in progress_bar(rows, unit="row", desc="audit"):
            raise_if_stopped(stop, "the audit is not finished")
            opened = pictures.open(shard_id)
            row = rows_of(opened, recipe.views, first_only=True)[i]
            picture = opened.read(opened.index(row.key), labels=False)
            batch = _looks(cache, row, picture)
            answers = _answers(run, batch, recipe.micro_batch)
            _compare(cache, picture, batch, answers, sums)
    figures = {name: {t: s.figures for t, s in found.items()} for name, found in sums.items()}
    return write_audit(cache, len(rows), figures)


def table(audit: Audit) -> list[str]:
    """Return the figures as text, a line for each target and transform."""
    lines = [
        f"audit of {audit.rows} rows, T(f(x)) against f(T(x)): an error up to {MOST_ERROR} passes",
        f"  {'target':<16}{'transform':<18}{'error':>10}{'cosine':>12}",
    ]
    for name, found in audit.targets.items():
        for transform, figures in found.items():
            verdict = "passes" if figures.passes else "does not pass"
            numbers = f"{figures.error:>10.2g}{figures.cosine:>12.6f}"
            lines.append(f"  {name:<16}{transform:<18}{numbers}  {verdict}")
    return lines


def _looks(cache: Cache, row: Row, picture: Picture) -> dict[View, RowPicture]:
    """Return a picture as every view that some target asks for shows it, the whole one first."""
    size = picture.image.shape[:2]
    views = (v for spec in cache.specs.values() for v in views_of(size, spec.shape[1:]).values())
    rows = {view: replace(row, view=view) for view in views}
    return {view: (row, picture_of(picture, row, cache.geometry)) for view, row in rows.items()}


def _answers(
    run: Callable[[Sequence[RowPicture]], dict[str, Tensor]],
    batch: dict[View, RowPicture],
    num_rows: int,
) -> tuple[dict[str, Tensor], dict[str, dict[View, Tensor]]]:
    """Return what the teachers say of the whole picture alone, and of every view beside others."""
    looks = list(batch.values())
    found = [run(looks[start : start + num_rows]) for start in range(0, len(looks), num_rows)]
    beside = {name: torch.cat([some[name] for some in found]).split(1) for name in found[0]}
    each = {name: dict(zip(batch, answers, strict=True)) for name, answers in beside.items()}
    return run(looks[:1]), each


def _compare(
    cache: Cache,
    picture: Picture,
    batch: dict[View, RowPicture],
    answers: tuple[dict[str, Tensor], dict[str, dict[View, Tensor]]],
    sums: dict[str, dict[str, _Sums]],
) -> None:
    """Add one row's figures of every target and transform."""
    alone, beside = answers
    size = picture.image.shape[:2]
    for name, target in alone.items():
        cells = (target.shape[2], target.shape[3])
        for transform, view in views_of(size, cells).items():
            y, x = _shown_cells(batch[view][1].inside, cache.geometry, cells)
            one = transformed(target, view, size)[0, :, y, x].flatten(1)
            two = beside[name][view][0, :, y, x].flatten(1)
            if not bool((torch.isfinite(one) & torch.isfinite(two)).all()):
                raise UserError(
                    f"the target {name} of {picture.key} is not finite",
                    found=transform,
                    wanted="finite values only",
                    fix="check the teacher's weights and preprocessing",
                )
            if one.shape[1]:
                sums.setdefault(name, {}).setdefault(transform, _Sums()).add(one, two)


def _shown_cells(
    inside: PixelBox, size: tuple[int, int], cells: tuple[int, int]
) -> tuple[slice, slice]:
    """Return the cells (y, x) that lie wholly in a box of a picture of `size` (h, w)."""
    x0, y0, x1, y1 = inside
    (height, width), (down, across) = size, cells
    return (
        slice(math.ceil(y0 * down / height), y1 * down // height),
        slice(math.ceil(x0 * across / width), x1 * across // width),
    )


def _whole_cells(length: int, cells: int) -> int:
    """Return the pixels of an eighth of the cells or less: the number that comes nearest to whole
    pixels, and of several the largest.
    """
    counts = range(1, max(1, cells // 8) + 1)
    count = min(counts, key=lambda n: (abs(n * length / cells - round(n * length / cells)), -n))
    return round(count * length / cells)


def _box(x0: int, y0: int, width: int, height: int) -> View:
    return View(x0=x0, y0=y0, x1=x0 + width, y1=y0 + height)


def _middle(size: tuple[int, int], scale: float) -> View:
    """Return the box around a picture's middle of `scale` times its sides."""
    height, width = (max(1, round(side * scale)) for side in size)
    return _box((size[1] - width) // 2, (size[0] - height) // 2, width, height)
