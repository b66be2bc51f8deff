"""Everything a run needs before its first step: devices, pictures, the cache that fits, the
distiller, what trains.

All that can be wrong is found here, before any real work.
"""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from stillroom.cache.identity import Cache, match_cache
from stillroom.errors import UserError
from stillroom.jsonfile import read_json, write_json
from stillroom.losses import Term
from stillroom.pictures.dataset import PictureSet, open_pictures
from stillroom.recipe import Recipe, check, plain, teacher_identities
from stillroom.students.distiller import Distiller, build_distiller, upstream_parameters
from stillroom.training.order import Deal, Order, legal_worlds
from stillroom.training.schedule import make_optimizer
from stillroom.training.step import seed_forward
from stillroom.training.stream import Source


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """What one process of a run works with."""

    recipe: Recipe
    accelerator: Accelerator
    folder: Path
    pictures: PictureSet
    cache: Cache | None
    source: Source
    validation: Source | None
    order: Order
    deal: Deal
    epoch_steps: int
    distiller: Distiller  # bare: evaluated, saved
    model: Any  # the same, as DDP and AMP wrap it: trained
    optimizer: Any

    @property
    def steps(self) -> int:
        """Optimiser steps of the whole run."""
        return self.recipe.epochs * self.epoch_steps

    @property
    def terms(self) -> tuple[Term, ...]:
        """The recipe's terms."""
        return self.recipe.terms

    @property
    def is_first(self) -> bool:
        """True for the process that writes and talks."""
        return self.accelerator.is_main_process

    def reduce(self, values: Tensor) -> Tensor:
        """Sum a tensor over all ranks."""
        if self.accelerator.num_processes > 1:
            torch.distributed.all_reduce(values)
        return values

    def any(self, claim: bool) -> bool:
        """Return whether a claim is true on any rank; waits for the device."""
        return bool(self.reduce(torch.tensor(float(claim), device=self.accelerator.device)) > 0)

    def say(self, text: str) -> None:
        """Print a line from rank 0."""
        if self.is_first:
            print(text, flush=True)


def prepare(recipe: Recipe) -> Session:
    """Check a recipe against pictures, cache and devices and build all that the loop needs; raises
    UserError.
    """
    pictures = open_pictures(Path(recipe.data.shards))
    check(recipe, pictures)
    assert pictures.geometry is not None
    _require_free(recipe)
    accelerator = _accelerator(recipe)
    deal = _deal(recipe, accelerator)
    cache = find_cache(recipe, pictures, accelerator.is_main_process)
    source, validation = _sources(recipe, pictures, cache)
    distiller = _distiller(recipe, cache, pictures.geometry, accelerator)
    optimizer = make_optimizer(recipe.optimizer, distiller)
    model, wrapped = accelerator.prepare(distiller, optimizer)
    if isinstance(model, DistributedDataParallel):
        # As an argument it would warn from torch 2.13 on, and its successor is unknown before.
        model.broadcast_buffers = False
    count = sum(shard.rows for shard in pictures.shards if shard.split == "train")
    return Session(
        recipe=recipe,
        accelerator=accelerator,
        folder=_run_folder(recipe, accelerator),
        pictures=pictures,
        cache=cache,
        source=source,
        validation=validation,
        order=Order(rows=len(source), seed=recipe.seed),
        deal=deal,
        epoch_steps=max(1, count // recipe.batch),
        distiller=distiller,
        model=model,
        optimizer=wrapped,
    )


def _accelerator(recipe: Recipe) -> Accelerator:
    launch = {"launch": None, "fp32": "no"}.get(recipe.precision, recipe.precision)
    wanted = launch or os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    on_cpu = recipe.run.device == "cpu" or not torch.cuda.is_available()
    if recipe.run.device == "cuda" and not torch.cuda.is_available():
        raise UserError("CUDA was asked for", found="no CUDA device", fix="--run.device cpu")
    if wanted == "fp16" and on_cpu:
        raise UserError(
            "fp16 training needs a GPU",
            found="the CPU",
            fix="--precision fp32, or bf16, which a CPU can do",
        )
    ddp = DistributedDataParallelKwargs(gradient_as_bucket_view=True)
    return Accelerator(cpu=on_cpu, mixed_precision=launch, kwargs_handlers=[ddp])


def _deal(recipe: Recipe, accelerator: Accelerator) -> Deal:
    legal = legal_worlds(recipe.batch, recipe.micro_batch)
    world = accelerator.num_processes
    if world not in legal:
        raise UserError(
            "the micro-batches of a step cannot be dealt evenly to the processes",
            found=f"{world} processes, --batch {recipe.batch} --micro-batch {recipe.micro_batch}",
            wanted=f"{', '.join(map(str, legal))} processes, or another --batch or --micro-batch",
        )
    return Deal(
        batch=recipe.batch,
        micro_batch=recipe.micro_batch,
        rank=accelerator.process_index,
        world=world,
    )


def _require_free(recipe: Recipe) -> None:
    """Refuse to touch a run that exists unless asked to, and to resume another recipe's."""
    folder = Path(recipe.run.out) / recipe.run_name
    if recipe.run.resume:
        if not (folder / "recipe.json").is_file():
            raise UserError(f"there is no run {folder} to resume", fix="leave out --run.resume")
        _require_same(read_json(folder / "recipe.json"), _recorded(recipe), folder)
    elif folder.exists() and not recipe.run.overwrite:
        raise UserError(
            f"the run {folder} exists", fix="--run.resume, --run.overwrite, or --run.name NAME"
        )


def _recorded(recipe: Recipe) -> dict[str, Any]:
    """Return what recipe.json holds: every field that can change results."""
    return {"recipe": {name: v for name, v in plain(recipe).items() if name != "run"}}


def _run_folder(recipe: Recipe, accelerator: Accelerator) -> Path:
    """Make the run's folder; rank 0 does, the others wait."""
    folder = Path(recipe.run.out) / recipe.run_name
    accelerator.wait_for_everyone()
    if accelerator.is_main_process and not recipe.run.resume:
        if folder.exists():
            shutil.rmtree(folder)
        (folder / "checkpoints").mkdir(parents=True)
        (folder / "pictures").mkdir()
        write_json(folder / "recipe.json", _recorded(recipe))
    accelerator.wait_for_everyone()
    return folder


def _require_same(stored: dict[str, Any], asked: dict[str, Any], folder: Path) -> None:
    """Refuse to resume with a recipe whose results would differ; both sides of the first
    difference are shown.
    """
    old, new = _flat(stored["recipe"]), _flat(asked["recipe"])
    for name in sorted(old.keys() | new.keys()):
        if old.get(name) != new.get(name):
            raise UserError(
                f"{folder} was started with another recipe: {name} differs",
                found=new.get(name),
                wanted=old.get(name),
                fix="resume with the run's own flags, or start another with --run.name",
            )


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        found: dict[str, Any] = {}
        for name, item in items:
            found |= _flat(item, f"{prefix}.{name}" if prefix else str(name))
        return found
    return {prefix: value}


def find_cache(recipe: Recipe, pictures: PictureSet, talk: bool) -> Cache | None:
    """Return the one cache that holds every target the terms need, or None where they need none.

    Teacher files need not be present here: then what the cache recorded of them is taken, and said
    so. Raises UserError.
    """
    wanted = recipe.wanted_targets()
    if not wanted:
        return None
    assert pictures.geometry is not None
    try:
        teachers, known = teacher_identities(recipe, with_files=True), True
    except UserError:
        teachers, known = teacher_identities(recipe, with_files=False), False
    try:
        cache = match_cache(
            Path(recipe.run.cache),
            pictures.digest,
            pictures.geometry,
            {name: teachers[name] for name in wanted},
        )
    except UserError as error:
        raise UserError(
            error.what,
            found=error.found,
            wanted=error.wanted,
            fix=_rebuild(recipe) if "RECIPE" in (error.fix or "RECIPE") else error.fix,
        ) from None
    if missing := cache.missing():
        raise UserError(
            f"the cache {cache.path} is not complete",
            found=f"{len(missing)} of {len(cache.shard_ids())} shards are missing",
            fix=f"{_rebuild(recipe)}: it goes on where it stopped",
        )
    if talk:
        note = "" if known else " (teacher files are not here: the recorded identity is taken)"
        print(f"cache: {cache.path}{note}", flush=True)
    return cache


def _rebuild(recipe: Recipe) -> str:
    return (
        f"python tools/cache_teacher.py {recipe.name} --data.shards {recipe.data.shards}"
        f" --run.cache {recipe.run.cache} (and the same teacher flags)"
    )


def _sources(
    recipe: Recipe, pictures: PictureSet, cache: Cache | None
) -> tuple[Source, Source | None]:
    targets = recipe.wanted_targets()
    source = Source(
        pictures,
        "train",
        cache=cache,
        targets=targets,
        label_share=recipe.data.label_share,
        labelled_only=not targets,
    )
    if not pictures.shard_ids("val"):
        return source, None
    return source, Source(pictures, "val", cache=cache, targets=targets)


def _distiller(
    recipe: Recipe, cache: Cache | None, size: tuple[int, int], accelerator: Accelerator
) -> Distiller:
    """Build the distiller with seeded weights; what is frozen for good asks for no gradient."""
    with accelerator.main_process_first():
        recipe.student.prefetch()
    seed_forward(recipe.seed, -1, 0)
    specs = {} if cache is None else cache.specs
    distiller = build_distiller(recipe.student, recipe.terms, specs, size)
    if recipe.freeze_epochs is None or recipe.freeze_epochs >= recipe.epochs:
        for _, parameter in frozen_parameters(distiller, recipe.freeze):
            parameter.requires_grad_(False)
    _refuse_idle_taps(recipe, distiller)
    return distiller


def frozen_parameters(distiller: Distiller, parts: tuple[str, ...]) -> list[tuple[str, Tensor]]:
    """Return the student's parameters under modules of these names; raises UserError for a name
    that fits none.
    """
    names = [(f".{name}", p) for name, p in distiller.student.named_parameters()]
    for part in parts:
        if not any(f".{part}." in name for name, _ in names):
            legal = sorted({name.split(".")[1] for name, _ in names})
            raise UserError(f"the student has no part named {part!r}", wanted=", ".join(legal))
    return [(name, p) for name, p in names if any(f".{part}." in name for part in parts)]


def _refuse_idle_taps(recipe: Recipe, distiller: Distiller) -> None:
    for tap in dict.fromkeys(name.split(">")[0] for name in distiller.outputs):
        if not upstream_parameters(distiller, tap):
            raise UserError(
                f"the tap {tap} is distilled, but nothing before it trains at any epoch:"
                " only a projection would learn, and that is thrown away",
                found=f"freeze {', '.join(recipe.freeze)}",
                fix="unfreeze it (--freeze-epochs N), or tap a later layer",
            )


def average_buffers(distiller: nn.Module, world: int) -> None:
    """Average BatchNorm's running buffers over ranks, so that the state holds no rank.

    Buffers that do not move (frozen parts, constants) are left as they are, to the last bit.
    """
    moving = [m for m in distiller.modules() if isinstance(m, _BatchNorm) and m.training]
    buffers = [b for m in moving for b in m.buffers() if b.is_floating_point()]
    if world < 2 or not buffers:
        return
    flat = torch.cat([b.flatten() for b in buffers])
    torch.distributed.all_reduce(flat)
    for buffer, mean in zip(
        buffers, (flat / world).split([b.numel() for b in buffers]), strict=True
    ):
        buffer.copy_(mean.view_as(buffer))
