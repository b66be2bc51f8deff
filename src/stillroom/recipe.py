"""A recipe is the whole configuration of both stages."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal

from stillroom.errors import UserError
from stillroom.losses import Term
from stillroom.pictures.dataset import PictureSet, PictureShard
from stillroom.pictures.loader import num_decoders
from stillroom.pictures.regions import classes_of, colours_of
from stillroom.pictures.rows import rows_of
from stillroom.pictures.views import Views as Views
from stillroom.pictures.views import ViewSource
from stillroom.recipe_optimizer import AdamW, Cosine, Optimizer, Schedule
from stillroom.remote.mirror import place_of
from stillroom.students.definitions import Student
from stillroom.teachers.protocol import Recorded, TeacherConfig
from stillroom.types import Kind, Row

_WHOLE, _ADAMW, _COSINE = Views(), AdamW(), Cosine()


@dataclass(frozen=True, slots=True, kw_only=True)
class Data:
    """The pictures, and how many of their masks are used."""

    # folder of picture shards, as stillroom shards writes it; or where it is in a store, as
    # s3://BUCKET/PATH, gs://, az:// or https://HOST/PATH
    shards: str
    # share of the training masks that is used, 0 to 1 (by hash of the key); the others are void
    label_share: float = 1.0
    # height and width in pixels at which both stages work, at most those of the packed pictures;
    # None = theirs
    size: tuple[int, int] | None = None
    # one row for each box of a picture's json instead of one a picture; height and width in cells
    # of a region's mask, whose classes are background, target and other
    regions: tuple[int, int] | None = None
    # rows are shuffled within so many shards at a time, themselves in random order, so that each is
    # fetched about once an epoch; 0 = within all
    window: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.label_share <= 1:
            raise UserError("no such label share", found=self.label_share, wanted="0 to 1")
        if self.size is not None and min(self.size) < 1:
            raise UserError("no such --data.size", found=self.size, wanted="height and width")
        if self.window < 0:
            raise UserError("no such --data.window", found=self.window, wanted="0 or more shards")
        if self.regions is not None and min(self.regions) < 1:
            raise UserError("no such --data.regions", found=self.regions, wanted="height and width")


@dataclass(frozen=True, slots=True, kw_only=True)
class Augment:
    """Random changes of the student's picture; but for the mirror, what the teachers said of it
    stays the same.
    """

    # strength of changes of brightness, contrast and saturation; 0 = none, 0.3 is moderate
    photometric: float = 0.0
    # strengths of changes of hue, saturation and value; 0.1 0.7 0.3 is strong
    hsv: tuple[float, float, float] | None = None
    # strength of changes of the curve: values of 0 to 1 are raised to a power near 1; 0.2 moderate
    gamma: float = 0.0
    blur: float = 0.0  # largest standard deviation of a Gaussian blur, pixels
    noise: float = 0.0  # largest standard deviation of Gaussian noise, 1 = the whole range
    jpeg: int | None = None  # lowest quality, 1 to 95, at which pictures are JPEGs once more
    degraded: float = 1.0  # share of the pictures to which blur, noise and JPEG each happen
    # mirror half of the pictures, and what the teachers said of them: refused unless the cache's
    # audit (stillroom check-cache --audit) says that this is what they say of mirrored ones
    mirror: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Where and how the work is done; nothing here can change a result but `additional_epochs`, and
    `evaluate_every` where training follows the scores (early stopping, Plateau, distill_fade).
    """

    out: str = "runs"  # folder of runs
    name: str | None = None  # name of the run's folder; None = the recipe's name
    # folder of caches, or one of them; or where they are in a store, as s3://BUCKET/PATH
    cache: str = "cache"
    # folder that keeps what is in use of pictures and caches in a store; None = stillroom/ in the
    # user's folder for caches
    local: str | None = None
    # most that is kept there, GB: three windows of shards should fit; default: as before, first 50
    local_gb: float | None = None
    # stage 2 does not look at the teachers' files, but takes the cache's word for them
    recorded_teachers: bool = False
    resume: bool = False  # go on with the run of that name from its newest checkpoint
    overwrite: bool = False  # delete the run of that name first
    device: Literal["auto", "cpu", "cuda"] = "auto"  # auto = CUDA where there is one
    # threads of each process that decode pictures and read targets; None = one for each core that
    # is this process's share
    workers: int | None = None
    quiet: bool = False  # nothing but warnings, errors and the last line on the terminal
    tracker: str | None = None  # a tracker of Accelerate's that gets the figures too, such as wandb
    log_every: int = 10  # steps between two lines of the log
    evaluate_every: int = 1  # epochs between two evaluations
    keep: int = 2  # checkpoints kept
    timeout_s: int = 600  # one process of several that hangs so long ends the run, s
    shard_limit_gb: float = 1.0  # stage 1 warns of teacher shards larger than this, GB
    preflight: bool = True  # stage 1 refuses to begin what will not fit on the disk
    additional_epochs: int = 0  # with resume: epochs that a finished run gets on top of its own

    @property
    def num_workers(self) -> int:
        """Threads that read."""
        return self.workers or num_decoders()

    def place(self, word: str) -> Path:
        """Return the folder where what a word names is read and written: of a URL its mirror."""
        return place_of(word, self.local, self.local_gb)


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
    # one number for the balance: distilled terms are multiplied by it, all others by 1 - it; None =
    # the terms' own weights
    distill_weight: float | None = None
    # how fast distilled terms fade once the student's mIoU r (of the teacher's) is above 1: by
    # exp(-this * (r - 1)), 30 is usual; None = they stay
    distill_fade: float | None = None
    distill_end: float = 1.03  # r above which nothing is distilled any more, for good
    freeze: tuple[str, ...] = ()  # parts of the student, by module name, that do not train
    freeze_epochs: int | None = None  # for so many epochs; None = all
    # then the first of the parts trains, and one more after each so many epochs; a later part is
    # what earlier ones have left of it (deepest first: blocks.6 blocks.5 ... encoder); None = all
    unfreeze_every: int | None = None
    # what the learning rate of these parts is multiplied by, once they train
    freeze_lr: float = 1.0
    augment: Augment = Augment()
    optimizer: Optimizer = _ADAMW
    schedule: Schedule = _COSINE  # of the learning rate
    # decay of a moving average of the student's weights, evaluated and kept in their place; .999 is
    # usual; None = the weights themselves
    ema: float | None = None
    early_stopping: int | None = None  # evaluations without a better score that end the run
    batch: int = 8  # pictures in one optimiser step, over all ranks
    micro_batch: int = 8  # pictures in one forward pass
    epochs: int = 20  # one epoch is (training pictures // batch) steps, whatever the label share
    # the student's weights lie in memory as pictures do: faster on some GPUs; changes last bits
    channels_last: bool = False
    compile: bool = False  # torch.compile of the student: needs a C compiler; changes last bits
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
        return rows_of(shard, self.views, regions=self.data.regions is not None)

    def num_train_rows(self, pictures: PictureSet) -> int:
        """Return the rows of an epoch, whatever the label share: training pictures, or boxes."""
        if self.data.regions is None:
            return pictures.num_rows("train")
        return sum(sum(pictures.open(shard).num_boxes) for shard in pictures.shard_ids("train"))

    def size_of(self, pictures: PictureSet) -> tuple[int, int]:
        """Return height and width in pixels of what both stages look at; needs `check`."""
        assert pictures.geometry is not None
        return self.data.size or pictures.geometry

    def classes_of(self, pictures: PictureSet) -> tuple[str, ...]:
        """Return the names of the classes that labels tell apart, none where there are none."""
        return classes_of(pictures, self.data.regions is not None)

    def palette_of(self, pictures: PictureSet) -> tuple[tuple[int, int, int], ...]:
        """Return the colours of these classes, or of the student's where labels have none."""
        is_region = self.data.regions is not None
        return colours_of(pictures, is_region, max(2, self.student.classes))

    @property
    def balance(self) -> tuple[float, float]:
        """What distilled terms, and what all others, are multiplied by at first."""
        share = self.distill_weight
        return (1.0, 1.0) if share is None else (share, 1 - share)

    def term_weights(self, balance: tuple[float, float] | None = None) -> tuple[float, ...]:
        """Return each term's weight in the loss, with this balance or that of the beginning."""
        distilled, others = balance or self.balance
        return tuple(
            term.weight * (others if term.needs.target is None else distilled)
            for term in self.terms
        )

    @property
    def follows_scores(self) -> bool:
        """True where evaluations change how training goes on, so that their number does too."""
        follows = self.early_stopping is not None or self.distill_fade is not None
        return follows or self.schedule.needs_scores

    def wanted_targets(self) -> tuple[str, ...]:
        """Return the names of the targets that the terms need, each once."""
        return tuple(
            dict.fromkeys(t.needs.target for t in self.terms if t.needs.target is not None)
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
    return {
        **plain(recipe.views),
        "count": recipe.views.count,
        "regions": recipe.data.regions is not None,
    }


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
