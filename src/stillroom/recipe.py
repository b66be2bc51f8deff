"""A recipe is the whole configuration of both stages; `check` finds what cannot work before any
real work begins.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, Literal

from stillroom.codecs import parse_codec
from stillroom.errors import UserError
from stillroom.losses import Term
from stillroom.pictures.dataset import PictureSet, PictureShard
from stillroom.pictures.rows import rows_of
from stillroom.pictures.views import Views, ViewSource
from stillroom.students.definitions import Student
from stillroom.teachers.protocol import Recorded, TeacherConfig
from stillroom.types import Kind, Row, TargetSpec

_WHOLE = Views()


@dataclass(frozen=True, slots=True, kw_only=True)
class Data:
    """The pictures, and how many of their masks are used."""

    shards: str  # folder of picture shards, as tools/make_shards.py writes it
    # share of the training masks that is used, 0 to 1 (by hash of the key); the others are void
    label_share: float = 1.0
    # height and width in pixels at which both stages work, at most those of the packed pictures;
    # None = theirs
    size: tuple[int, int] | None = None
    regions: bool = False  # one row for each box of a picture's json instead of one a picture

    def __post_init__(self) -> None:
        if not 0 <= self.label_share <= 1:
            raise UserError("no such label share", found=self.label_share, wanted="0 to 1")
        if self.size is not None and min(self.size) < 1:
            raise UserError("no such --data.size", found=self.size, wanted="height and width")


@dataclass(frozen=True, slots=True, kw_only=True)
class Augment:
    """Random changes of the student's picture; but for the mirror, what the teachers said of it
    stays the same.
    """

    # strength of changes of brightness, contrast and saturation; 0 = none, 0.3 is moderate
    photometric: float = 0.0
    # strengths of changes of hue, saturation and value; 0.1 0.7 0.3 is strong
    hsv: tuple[float, float, float] | None = None
    blur: float = 0.0  # largest standard deviation of a Gaussian blur, pixels
    noise: float = 0.0  # largest standard deviation of Gaussian noise, 1 = the whole range
    jpeg: int | None = None  # lowest quality, 1 to 95, at which pictures are JPEGs once more
    # mirror half of the pictures, and what the teachers said of them: refused unless the cache's
    # audit (tools/check_cache.py --audit) says that this is what they say of mirrored ones
    mirror: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class AdamW:
    """AdamW: the rate rises linearly in the warm-up, then falls by a cosine."""

    lr: float = 1e-3  # learning rate at the end of the warm-up
    # decoupled weight decay; biases and normalisation layers are left out
    weight_decay: float = 1e-4
    warmup: float = 0.05  # share of all steps
    final: float = 0.01  # share of lr at which the cosine ends
    clip: float = 1.0  # largest L2 norm of the gradient; 0 = no clipping


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Where and how the work is done; nothing here can change a result."""

    out: str = "runs"  # folder of runs
    name: str | None = None  # name of the run's folder; None = the recipe's name
    cache: str = "cache"  # folder of caches, or one of them
    # stage 2 does not look at the teachers' files, but takes the cache's word for them
    recorded_teachers: bool = False
    resume: bool = False  # go on with the run of that name from its newest checkpoint
    overwrite: bool = False  # delete the run of that name first
    device: Literal["auto", "cpu", "cuda"] = "auto"  # auto = CUDA where there is one
    workers: int = 2  # threads that decode pictures and read targets
    log_every: int = 10  # steps between two lines of the log
    evaluate_every: int = 1  # epochs between two evaluations
    keep: int = 2  # checkpoints kept
    shard_limit_gb: float = 1.0  # stage 1 warns of teacher shards larger than this, GB
    preflight: bool = True  # stage 1 refuses to begin what will not fit on the disk


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """A whole system: pictures, teachers, student, loss and training.

    Fields of `run`, and `body`, cannot change results; every other field can.
    """

    name: str  # names the cache and, unless --run.name is given, the run
    data: Data
    teachers: tuple[TeacherConfig, ...] = ()  # the frozen networks that stage 1 runs
    views: ViewSource = _WHOLE  # how often and how each training picture is looked at
    codec: dict[str, str] = field(default_factory=dict)  # how each target is kept, by its name
    body: Literal["zarr", "tar"] = "zarr"  # the files that hold the rows; both are read alike
    student: Student
    terms: tuple[Term, ...]  # the loss: weighted sum of these
    freeze: tuple[str, ...] = ()  # parts of the student, by module name, that do not train
    freeze_epochs: int | None = None  # for so many epochs; None = all
    augment: Augment = Augment()
    optimizer: AdamW = AdamW()
    batch: int = 8  # pictures in one optimiser step, over all ranks
    micro_batch: int = 8  # pictures in one forward pass
    epochs: int = 20  # one epoch is (training pictures // batch) steps, whatever the label share
    seed: int = 0  # of first weights, order, augmentation and dropout
    # what a row that cannot be read does: stops the run, or is replaced by the next (at most 0.1 %)
    on_damage: Literal["fail", "substitute"] = "fail"
    # of forward passes; launch = as `accelerate launch` says
    precision: Literal["launch", "fp32", "fp16", "bf16"] = "launch"
    # what stage 1 does with a teacher that fails its quality gate
    gate: Literal["refuse", "warn", "off"] = "refuse"
    gate_floor: float = 0.5  # least mIoU of a teacher on labelled pictures; 0 = any
    run: Run = Run()

    @property
    def run_name(self) -> str:
        """The name of the run's folder."""
        return self.run.name or self.name

    def target_kinds(self) -> dict[str, Kind]:
        """Return each target's kind; raises UserError where two teachers name one target."""
        kinds: dict[str, Kind] = {}
        for teacher in self.teachers:
            for name, kind in teacher.targets.items():
                if name in kinds:
                    raise UserError(f"two teachers make a target named {name!r}", fix="rename one")
                kinds[name] = kind
        return kinds

    def rows_of(self, shard: PictureShard) -> tuple[Row, ...]:
        """Return the rows of a picture shard: who is encoded in stage 1 and read in stage 2."""
        return rows_of(shard, self.views, regions=self.data.regions)

    def size_of(self, pictures: PictureSet) -> tuple[int, int]:
        """Return height and width in pixels of what both stages look at; needs `check`."""
        assert pictures.geometry is not None
        return self.data.size or pictures.geometry

    def wanted_targets(self) -> tuple[str, ...]:
        """Return the names of the targets that the terms need, each once."""
        return tuple(
            dict.fromkeys(t.needs.target for t in self.terms if t.needs.target is not None)
        )


def check(recipe: Recipe, pictures: PictureSet | None = None) -> None:
    """Raise UserError for what can be known to be wrong without a cache or a network."""
    kinds = recipe.target_kinds()
    for term in recipe.terms:
        _check_term(term, kinds)
    _check_numbers(recipe)
    for name in recipe.codec:
        if name not in kinds:
            raise UserError(
                f"a codec is given for {name!r}, which no teacher makes", wanted=_names(kinds)
            )
        parse_codec(recipe.codec[name])
    if pictures is not None:
        _check_pictures(recipe, pictures)


def check_targets(recipe: Recipe, specs: Mapping[str, TargetSpec]) -> None:
    """Raise UserError where targets, as their teachers make them, do not fit the recipe's terms."""
    for term in recipe.terms:
        needs = term.needs
        if needs.target is None or needs.tap is not None or needs.head != "logits":
            continue
        found, wanted = specs[needs.target].shape[0], recipe.student.classes
        if found != wanted:
            raise UserError(
                f"the term {term.label} compares logits of different channels",
                found=f"{found} of the target {needs.target!r}",
                wanted=f"{wanted}, as --student.classes says",
                fix="another --student.classes, or another teacher",
            )


def _check_numbers(recipe: Recipe) -> None:
    adamw, augment = recipe.optimizer, recipe.augment
    light, hsv, jpeg = augment.photometric, augment.hsv or (0,), augment.jpeg
    for flag, value, is_legal, wanted in (
        ("optimizer.lr", adamw.lr, 0 < adamw.lr < math.inf, "above 0"),
        ("optimizer.weight-decay", adamw.weight_decay, 0 <= adamw.weight_decay < math.inf, ">= 0"),
        ("optimizer.warmup", adamw.warmup, 0 <= adamw.warmup <= 1, "0 to 1"),
        ("optimizer.final", adamw.final, 0 <= adamw.final <= 1, "0 to 1"),
        ("optimizer.clip", adamw.clip, 0 <= adamw.clip < math.inf, ">= 0"),
        ("augment.photometric", light, 0 <= light < 1, "0 to below 1"),
        ("augment.hsv", augment.hsv, all(0 <= s <= 1 for s in hsv), "0 to 1 each"),
        ("augment.blur", augment.blur, 0 <= augment.blur < math.inf, ">= 0"),
        ("augment.noise", augment.noise, 0 <= augment.noise <= 1, "0 to 1"),
        ("augment.jpeg", jpeg, jpeg is None or 1 <= jpeg <= 95, "1 to 95"),
        ("gate-floor", recipe.gate_floor, 0 <= recipe.gate_floor <= 1, "0 to 1"),
    ):
        if not is_legal:
            raise UserError(f"no such --{flag}", found=value, wanted=wanted)
    for name in (recipe.name, recipe.run_name):
        if name in ("", ".", "..") or "/" in name or "\0" in name:
            raise UserError(
                "a run's name is the name of one folder",
                found=repr(name),
                wanted="no slash; where runs lie says --run.out",
            )
    if recipe.micro_batch < 1 or recipe.batch < 1 or recipe.batch % recipe.micro_batch:
        raise UserError(
            "the batch is not a whole number of micro-batches",
            found=f"--batch {recipe.batch} --micro-batch {recipe.micro_batch}",
            wanted="a multiple",
        )
    if recipe.epochs < 1 or recipe.run.evaluate_every < 1 or recipe.run.log_every < 1:
        raise UserError("epochs, run.evaluate_every and run.log_every are at least 1")
    if recipe.run.workers < 1 or recipe.run.keep < 1:
        raise UserError("run.workers and run.keep are at least 1")
    if not recipe.terms or all(term.weight == 0 for term in recipe.terms):
        raise UserError(
            f"recipe {recipe.name!r} has no term with a weight, so nothing would be learned"
        )


def _check_term(term: Term, kinds: Mapping[str, str]) -> None:
    name, needs = type(term).__name__, term.needs
    if not 0 <= term.weight < float("inf"):
        raise UserError(f"the weight of {name} is not a number from 0 on", found=term.weight)
    if needs.hidden is not None and needs.hidden < 1:
        raise UserError(f"the projection of {name} has no channel", found=f"hidden {needs.hidden}")
    if needs.target is None and needs.tap is not None:
        raise UserError(f"{name} compares the tap {needs.tap} with no target")
    if needs.target is None:
        return
    if needs.target not in kinds:
        raise UserError(
            f"{name} needs the target {needs.target!r}, which no teacher of the recipe makes",
            found=_names(kinds),
            fix="name one of these, or add the teacher",
        )
    found = kinds[needs.target]
    if needs.kind not in (None, found):
        raise UserError(f"{name} needs {needs.kind}", found=f"{needs.target!r} holds {found}")


def _check_pictures(recipe: Recipe, pictures: PictureSet) -> None:
    classes, known = max(2, recipe.student.classes), len(pictures.classes)
    labelled = [t.label for t in recipe.terms if t.needs.target is None and t.weight]
    if labelled and not known:
        raise UserError(
            f"the terms {', '.join(labelled)} need labels, which {pictures.path} does not have",
            fix="pack labelled pictures, or leave the terms out (weight 0): what only compares with"
            " a teacher needs no labels",
        )
    if labelled and classes != known:
        raise UserError(
            "the student's classes are not those of the pictures",
            found=f"student {recipe.student.classes}, pictures {', '.join(pictures.classes)}",
            wanted=f"--student.classes {known}"
            + (" (or 1, for a binary task)" if known == 2 else ""),
        )
    for term in recipe.terms:
        if term.needs.classes not in (None, classes):
            raise UserError(
                f"the term {term.label} relabels another number of classes",
                found=f"{term.needs.classes}",
                wanted=f"{classes}, one for each class of the labels",
            )
    if pictures.geometry is None:
        raise UserError(
            f"the pictures of {pictures.path} have different sizes, so they cannot be batched",
            fix="pack them with tools/make_shards.py ... --size H W",
        )
    packed, size = pictures.geometry, recipe.size_of(pictures)
    if size[0] > packed[0] or size[1] > packed[1]:
        raise UserError(
            "the size to work at is larger than the packed pictures",
            found=f"--data.size {size[0]} {size[1]}",
            wanted=f"at most {packed[0]} {packed[1]}",
            fix=f"pack them with tools/make_shards.py ... --size {size[0]} {size[1]}",
        )


def teacher_identities(
    recipe: Recipe, with_files: bool, recorded: Recorded = None
) -> dict[str, dict[str, Any]]:
    """Return, per target, what made it: the teacher's identity with this target's own tensor only.

    Without files the answer is a subset of the answer with; a cache that holds more targets of a
    teacher still fits. `recorded` is what caches say of their teachers (`Cache.teachers`): then no
    teacher's library is imported.
    """
    found = {}
    for teacher in recipe.teachers:
        found |= teacher_identity(teacher, with_files, recorded)
    return found


def teacher_identity(
    teacher: TeacherConfig, with_files: bool, recorded: Recorded = None
) -> dict[str, dict[str, Any]]:
    """Return the same of one teacher."""
    identity = teacher.identity(with_files=with_files, recorded=recorded)
    tensors = identity.pop("targets")
    return {name: {**identity, "tensor": tensors[name]} for name in teacher.targets}


def views_identity(recipe: Recipe) -> dict[str, Any]:
    """Return how a recipe looks at its pictures, as identity.json records it."""
    return {**plain(recipe.views), "count": recipe.views.count, "regions": recipe.data.regions}


def plain(value: Any) -> Any:
    """Return a recipe, or any part of one, as JSON values; a dataclass becomes its fields and
    `class`.
    """
    if is_dataclass(value) and not isinstance(value, type):
        body = {f.name: plain(getattr(value, f.name)) for f in fields(value)}
        return {"class": type(value).__name__, **body}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [plain(item) for item in value]
    assert value is None or isinstance(value, bool | int | float | str), value
    return value


def _names(names: Mapping[str, Any]) -> str:
    return ", ".join(sorted(names)) or "none"
