"""The quality gate: the right preprocessing passes, every usual wrong one is refused by name."""

import threading
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from stillroom.errors import Stopped, UserError
from stillroom.extraction.extract import cache_teacher
from stillroom.extraction.gate import Verdict, gate_pictures, judge
from stillroom.extraction.process import ProcessContext
from stillroom.networks.normalise import IMAGENET_MEAN, IMAGENET_STD, Normalise
from stillroom.pictures.dataset import Picture, open_pictures
from stillroom.pictures.synthetic import CLASSES
from stillroom.teachers.configs import OnnxTeacher, RunTeacher

ZERO, ONE, HALF = (0.0,) * 3, (1.0,) * 3, (0.5,) * 3
PREPROCESSINGS = {
    "in [0, 1]": (ZERO, ONE, 1.0),
    "in 0..255": (ZERO, ONE, 255.0),
    "in [-1, 1]": (HALF, HALF, 1.0),
    "with ImageNet mean and std": (IMAGENET_MEAN, IMAGENET_STD, 1.0),
}
HEALTH = {"finite", "dead_channels", "repeat_error", "batch_error"}
CONFIG = RunTeacher(target="said", path="not read here")


def preprocessing(name: str, channels: str = "RGB") -> Normalise:
    mean, std, scale = PREPROCESSINGS[name]
    if channels == "BGR":
        mean, std = mean[::-1], std[::-1]
    return Normalise(mean, std, scale=scale, channels=channels)


@dataclass
class Reddish:
    """A teacher that knows foreground exactly: where red is above one half.

    It was "trained" with one preprocessing, so its threshold lies where that one puts one half of
    red; it is asked through another.
    """

    trained: Normalise
    preprocessing: Normalise
    damage: tuple[str, ...] = ()
    provider: str = "arithmetic"
    identity: tuple = ()

    def __post_init__(self) -> None:
        self.red = 0 if self.trained.channels == "RGB" else 2
        self.half = float(self.trained(torch.full((1, 3, 1, 1), 0.5))[0, self.red])

    def __call__(self, image, *, rows=(), preprocessing=None, boxes=None):
        seen = (preprocessing or self.preprocessing)(image)
        return {"said": seen[:, [self.red]] - self.half}


@dataclass
class Saying:
    """A teacher that says what a function makes of the picture."""

    function: object
    preprocessing: Normalise | None
    damage: tuple[str, ...] = ()
    provider: str = "arithmetic"
    identity: tuple = ()

    def __call__(self, image, *, rows=(), preprocessing=None, boxes=None):
        return {name: self.function(image) for name in ("said", "inner")}


@pytest.fixture(scope="module")
def samples() -> list[Picture]:
    """8 pictures of coloured blocks; foreground is where red is above one half."""
    draw = np.random.default_rng(0)
    found = []
    for number in range(8):
        blocks = draw.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        image = blocks.repeat(4, 0).repeat(4, 1)
        mask = (image[..., 0] > 127).astype(np.uint8)
        mask[0] = 255
        found.append(Picture(key=str(number), image=image, mask=mask, inside=(0, 0, 16, 16)))
    return found


def judged(built, samples, config=CONFIG, floor=0.0, classes=2) -> Verdict:
    return judge(config, built, samples, classes, floor)[0]


@pytest.mark.parametrize("channels", ["RGB", "BGR"])
@pytest.mark.parametrize("name", PREPROCESSINGS)
def test_the_right_preprocessing_passes(samples, name, channels):
    built = Reddish(preprocessing(name, channels), preprocessing(name, channels))
    verdict = judged(built, samples, floor=0.99)
    assert verdict.reasons == ()
    assert verdict.figures["miou"] == 1.0
    assert verdict.figures["best_other_miou"] < 0.99


@pytest.mark.parametrize(
    ("true", "declared"), [p for p in product(PREPROCESSINGS, PREPROCESSINGS) if p[0] != p[1]]
)
@pytest.mark.parametrize("channels", ["RGB", "BGR"])
def test_another_usual_normalisation_is_refused_and_the_right_one_named(
    samples, true, declared, channels
):
    built = Reddish(preprocessing(true, channels), preprocessing(declared, channels))
    (reason,) = judged(built, samples).reasons
    assert reason.startswith(f"{channels} {true} gives mIoU 1.000, the declared")


@pytest.mark.parametrize(("true", "declared"), [("RGB", "BGR"), ("BGR", "RGB")])
def test_swapped_channels_are_refused_and_the_order_named(samples, true, declared):
    built = Reddish(preprocessing("in [0, 1]", true), preprocessing("in [0, 1]", declared))
    fields = OnnxTeacher(target="said", path="not read here", kind="logits")
    (reason,) = judged(built, samples, fields).reasons
    assert reason.startswith(f"{true} in [0, 1] gives mIoU 1.000")
    assert f"declare channels={true}, scale=1, mean=(0, 0, 0)" in reason
    (reason,) = judged(built, samples).reasons  # of a run, which has no such fields
    assert "declare" not in reason.partition("better:")[2]
    assert "not those that it was trained on" in reason


def test_a_usual_normalisation_written_otherwise_is_not_tried_against_itself(samples):
    written = Normalise((127.5,) * 3, (127.5,) * 3, scale=255.0)
    verdict = judged(Reddish(preprocessing("in [-1, 1]"), written), samples)
    assert verdict.reasons == ()
    assert verdict.figures["best_other_miou"] < 0.99


def test_a_teacher_below_the_floor_is_refused_with_both_numbers(samples):
    built = Saying(
        lambda image: image[:, [2]] - 0.5, preprocessing("in [0, 1]")
    )  # blue says nothing
    verdict = judged(built, samples, floor=0.9)
    (reason,) = verdict.reasons
    assert "is below --gate-floor 0.9" in reason and "wrong or random weights" in reason
    assert f"{verdict.figures['miou']:.3f}" in reason
    tried = ("BGR in [0, 1]", "RGB in 0..255", "RGB in [-1, 1]", "RGB with ImageNet mean and std")
    assert all(f"{name} {verdict.figures['miou']:.3f}" in reason for name in tried)
    assert "tried were the declared preprocessing (channels=RGB, scale=1, mean=(0" in reason


def test_what_was_not_tried_is_not_spoken_of(samples):
    built = Saying(lambda image: image[:, [2]] - 0.5, None)  # a file, say
    (reason,) = judged(built, samples, floor=0.9).reasons
    assert "no other preprocessing was tried" in reason and "ImageNet" not in reason


def test_a_teacher_no_better_than_one_class_everywhere_is_refused_at_any_floor_above_0(samples):
    built = Saying(lambda image: image[:, [0]] * 0.01 - 1, preprocessing("in [0, 1]"))
    assert judged(built, samples, floor=0.0).reasons == ()
    (reason,) = judged(built, samples, floor=0.01).reasons
    assert "no better than one class everywhere" in reason


def test_a_network_saturated_by_its_preprocessing_is_told_the_preprocessing(samples):
    @dataclass
    class Squashed(Reddish):
        def __call__(self, image, **options):
            return {"said": super().__call__(image, **options)["said"].clamp(-0.5, 0.5)}

    samples = [replace(picture, image=np.maximum(picture.image, 1)) for picture in samples]
    verdict = judged(Squashed(preprocessing("in [0, 1]"), preprocessing("in 0..255")), samples)
    assert verdict.figures["dead_channels"] == 1
    (reason,) = verdict.reasons
    assert reason.startswith("RGB in [0, 1] gives mIoU 1.000")


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda image: image[:, :1] / 0 - 1, "not finite"),
        (lambda image: torch.full_like(image[:, :1], torch.nan), "100.00% of the values"),
        (lambda image: torch.zeros_like(image[:, :1]), "the same everywhere"),
        (lambda image: torch.arange(16.0).expand(len(image), 1, 16, 16), "for every picture"),
    ],
)
def test_what_says_nothing_is_refused(samples, function, reason):
    (found,) = judged(Saying(function, preprocessing("in [0, 1]")), samples).reasons
    assert reason in found


@pytest.mark.parametrize(("dead", "refused"), [(2, False), (6, True)])
def test_features_of_which_many_channels_are_dead_are_refused(samples, dead, refused):
    def feature(image):
        channels = image[:, :1].expand(-1, 8, -1, -1).clone()
        channels[:, :dead] = 0.25
        return channels

    config = replace(CONFIG, taps=(("inner", "encoder.0"),))
    verdicts = judge(config, Saying(feature, preprocessing("in [0, 1]")), samples, 2, 0.0)
    inner = {verdict.target: verdict for verdict in verdicts}["inner"]
    assert inner.figures["dead_channels"] == dead / 8
    assert [("dead: 75% of the channels" in r) for r in inner.reasons] == [True] * refused
    assert "miou" not in inner.figures


def test_without_labels_or_with_other_classes_there_is_no_score(samples):
    built = Reddish(preprocessing("in [0, 1]"), preprocessing("in [0, 1]"))
    unlabelled = [replace(picture, mask=None) for picture in samples]
    void = [replace(picture, mask=np.full_like(picture.mask, 255)) for picture in samples]
    for pictures in (unlabelled, void):
        verdict = judged(built, pictures, floor=0.99)
        assert verdict.figures.keys() == HEALTH and verdict.reasons == ()
        assert "no labels" in verdict.note
    verdict = judged(built, samples, floor=0.99, classes=21)
    assert "miou" not in verdict.figures
    assert "2 classes apart and the pictures have 21" in verdict.note


def test_labelled_pictures_of_the_validation_split_are_taken(tiny_world):
    pictures = open_pictures(tiny_world / "shards")
    keys = [p.key for p in gate_pictures(pictures)]
    assert keys == [f"{n:06}" for n in range(1000, 1008)]
    assert [p.key for p in gate_pictures(pictures, wanted=3)] == [keys[0], keys[2], keys[5]]


def test_the_gate_looks_at_pictures_of_the_size_that_both_stages_work_at(tiny_world):
    pictures = open_pictures(tiny_world / "shards")
    for whole, small in zip(
        gate_pictures(pictures), gate_pictures(pictures, 8, (16, 24)), strict=True
    ):
        half = Image.fromarray(whole.image).resize((24, 16), Image.Resampling.BILINEAR)
        assert np.array_equal(small.image, np.array(half)) and small.key == whole.key
        assert small.mask.shape == (16, 24) and small.inside == (0, 2, 24, 14)


def test_what_is_no_function_of_pixels_is_scored_and_no_other_preprocessing_is_tried(samples):
    built = Saying(lambda image: image[:, [0]] - 0.5, None)
    verdict = judged(built, samples, floor=0.99)
    assert verdict.reasons == () and verdict.figures["miou"] == 1.0
    assert "best_other_miou" not in verdict.figures and "repeat_error" not in verdict.figures


def test_a_class_that_a_mask_never_names_is_not_dead(samples):
    def mask(image):
        red = image[:, [0]] > 0.5
        return torch.cat([~red, red, torch.zeros_like(red)], 1).float()

    for built, is_dead in (
        (Saying(mask, None), False),
        (Saying(mask, preprocessing("in [0, 1]")), True),
    ):
        (reasons,) = {verdict.reasons for verdict in judge(CONFIG, built, samples, 3, 0.5)}
        assert any("dead" in reason for reason in reasons) == is_dead


def test_the_gate_stops_between_two_batches_when_it_is_told(samples):
    stop, asked = threading.Event(), []

    def once(image):
        asked.append(len(image))
        stop.set()
        return image[:, [0]] - 0.5

    with pytest.raises(Stopped, match="no shard was begun"):
        judge(CONFIG, Saying(once, preprocessing("in [0, 1]")), samples, 2, 0.0, stop)
    assert asked == [4, 4]  # two targets of one batch


@pytest.fixture
def gated(tiny_recipe, tmp_path):
    """The recipe `tiny` with a teacher that cannot reach the floor and a cache of its own."""
    run = replace(tiny_recipe.run, cache=str(tmp_path / "cache"))
    return replace(tiny_recipe, run=run, gate_floor=0.99, gate="refuse")


def published(recipe) -> list[Path]:
    return list(Path(recipe.run.cache).glob("*/*.zarr"))


def test_refused_nothing_is_stored(gated):
    with pytest.raises(UserError, match=r"'shapes' failed(.|\n)*--gate-floor 0\.99"):
        cache_teacher(gated, ProcessContext())
    assert published(gated) == []


def test_warned_it_goes_on_and_the_figures_are_kept_with_each_shard(gated, capsys):
    cache = cache_teacher(replace(gated, gate="warn"), ProcessContext())
    assert cache.is_complete
    assert "warning: shapes: mIoU" in capsys.readouterr().out
    with cache.reader(cache.shard_ids()[0]) as reader:
        quality = reader.provenance["quality"]
        assert reader.provenance["gate"] == "warn"
    assert quality["shapes"]["miou"] < 0.99
    assert any("--gate-floor" in reason for reason in quality["shapes"]["reasons"])
    assert quality["inner"].keys() == {*HEALTH, "reasons"}


def test_off_it_is_not_asked_and_that_is_said(gated, capsys):
    assert cache_teacher(replace(gated, gate="off"), ProcessContext()).is_complete
    assert "quality gate: off" in capsys.readouterr().out


@pytest.fixture
def sound(gated, make_tiny, tmp_path):
    """The same over pictures of one class more, so that its random weights are not scored."""
    make_tiny.make_pictures(tmp_path, train=16, val=0, classes=(*CLASSES, "more"))
    data = replace(gated.data, shards=str(tmp_path / "shards"))
    terms = tuple(term for term in gated.terms if term.needs.output != "logits")
    return replace(gated, data=data, terms=terms)


@pytest.fixture
def broken_devices(monkeypatch) -> set[str]:
    """Devices (all are the CPU) whose arithmetic is not repeatable."""
    found: set[str] = set()
    build = RunTeacher.build

    class OnBrokenDevice:
        """What a teacher says there has noise in it; all else is the teacher's."""

        def __init__(self, built):
            self._built = built
            # From Python 3.12 on a protocol's members are not looked for through __getattr__.
            for name in ("damage", "identity", "preprocessing", "provider"):
                setattr(self, name, getattr(built, name))

        def __call__(self, image, **options):
            outputs = self._built(image, **options)
            return {n: a + a.std() * torch.randn(a.shape) / 10 for n, a in outputs.items()}

    def built(self, device):
        teacher = build(self, "cpu")
        return OnBrokenDevice(teacher) if device in found else teacher

    monkeypatch.setattr(RunTeacher, "build", built)
    return found


def test_a_rank_on_a_broken_device_says_so_and_writes_no_shard(sound, broken_devices, monkeypatch):
    monkeypatch.setattr(ProcessContext, "device_name", property(lambda self: f"device {self.rank}"))
    broken_devices.add("cpu")
    with pytest.raises(UserError) as caught:
        cache_teacher(sound, ProcessContext(rank=1, world=2))
    assert "on device 1, rank 1 of 2" in str(caught.value)
    assert "differently each time" in str(caught.value) and "see to its device" in str(caught.value)
    assert published(sound) == []
    broken_devices.clear()
    cache = cache_teacher(sound, ProcessContext(rank=0, world=2))
    assert cache.is_complete and len(published(sound)) == 2


def test_a_rank_that_is_not_the_first_warns_all_the_same(sound, broken_devices, capsys):
    broken_devices.add("cpu")
    cache_teacher(replace(sound, gate="warn"), ProcessContext(rank=1, world=2))
    outputs = capsys.readouterr().out
    assert (
        "warning: shapes on cpu, rank 1 of 2: it answers the same pictures differently" in outputs
    )
    assert "quality gate, shapes: finite" not in outputs  # that is the first one's to say
