"""What people get of pictures and videos, where it lies, and what they are told where it fails."""

import csv
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from stillroom.errors import UserError
from stillroom.using.answers import Counts
from stillroom.using.inputs import Input, find_inputs
from stillroom.using.latency import latency_text
from stillroom.using.prediction import Options, first_picture, predict
from stillroom.using.resampling import probabilities_at
from stillroom.using.student import load_student


def noise(seed: int, height: int = 40, width: int = 70) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


@pytest.fixture
def folder(tmp_path) -> Path:
    """a.png, deep/er/a.jpg and deep/b.png, each of another size."""
    names = ("a.png", "deep/er/a.jpg", "deep/b.png")
    for seed, name in enumerate(names):
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise(seed, 40 + seed)).save(path)
    return tmp_path / "in"


def rows(out: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((out / "counts.csv").read_text().splitlines()))


def pixels(path: Path) -> np.ndarray:
    return np.array(Image.open(path))


@pytest.mark.parametrize("batch", [1, 2])
def test_a_folder_keeps_its_names_and_masks_hold_the_classes(used_run, folder, tmp_path, batch):
    student, out = load_student(used_run), tmp_path / "out"
    options = Options(mode="mask", probabilities=True, batch=batch)
    predict(student, find_inputs([folder], out), out, options)
    for row, name in zip(rows(out), ("a", "deep/b", "deep/er/a"), strict=True):
        image = np.array(Image.open(folder / row["file"]).convert("RGB"))
        mask = pixels(out / f"{name}.png")
        assert np.array_equal(mask, student.mask(image))
        assert Image.open(out / f"{name}.png").getpalette()[3:6] == [200, 0, 0]
        counts = [int(row[k]) for k in student.about["classes"]]
        assert counts == np.bincount(mask.ravel(), minlength=4).tolist()
        shares = [float(row[f"{k} share"]) for k in student.about["classes"]]
        assert np.allclose(shares, np.array(counts) / mask.size, atol=1e-6)
        wanted = probabilities_at(student.small_logits([image])[0], mask.shape)[2].numpy()
        said = pixels(out / f"{name}.probability-2.png")
        assert said.dtype == np.uint16 and np.abs(said / 65535 - wanted).max() < 1e-4
    made = [path for path in out.rglob("*") if path.is_file()]
    assert len(made) == 3 + 3 * 4 + 1


def test_a_blend_keeps_the_background_and_a_cutout_drops_it(used_run, folder, tmp_path):
    student, image = load_student(used_run), pixels(folder / "a.png")
    mask = student.mask(image)
    assert 0 < np.mean(mask == 0) < 1
    for mode in ("blend", "cutout"):
        out = tmp_path / mode
        predict(student, find_inputs([folder / "a.png"], out), out, Options(mode=mode))
    blend, cutout = pixels(tmp_path / "blend/a.png"), pixels(tmp_path / "cutout/a.png")
    assert np.array_equal(blend[mask == 0], image[mask == 0])
    assert not np.array_equal(blend[mask == 1], image[mask == 1])
    assert not cutout[mask == 0].any()
    assert np.array_equal(cutout[mask > 0][:, :3], image[mask > 0])
    assert (cutout[mask > 0][:, 3] == 255).all()


def test_tiles_see_a_picture_at_its_own_scale(used_run, tmp_path):
    student = load_student(used_run)
    (tmp_path / "in").mkdir()
    for name, size in (("one", (32, 48)), ("many", (64, 120))):
        Image.fromarray(noise(5, *size)).save(tmp_path / f"in/{name}.png")
    out = tmp_path / "out"
    options = Options(mode="mask", tiles=True)
    predict(student, find_inputs([tmp_path / "in"], out), out, options)
    one, many = pixels(out / "one.png"), pixels(out / "many.png")
    assert np.array_equal(one, student.mask(noise(5, 32, 48)))
    assert many.shape == (64, 120)
    assert np.mean(many != student.mask(noise(5, 64, 120))) > 0.01


def test_a_broken_picture_is_named_when_all_others_are_done(used_run, folder, tmp_path):
    (folder / "broken.png").write_bytes(b"no picture")
    out = tmp_path / "out"
    with pytest.raises(UserError, match=r"1 of 4 inputs could not be read(.|\n)*broken\.png"):
        predict(load_student(used_run), find_inputs([folder], out), out, Options())
    assert len(rows(out)) == 3 and (out / "deep/b.png").exists()


def test_names_that_meet_are_told_apart_or_refused(folder, tmp_path):
    Image.fromarray(noise(9)).save(folder / "a.jpg")
    out = folder / "predictions"
    found = {str(job.source): job.target.relative_to(out) for job in find_inputs([folder], out)}
    assert found[str(folder / "a.jpg")] == Path("a.png")
    assert found[str(folder / "a.png")] == Path("a.png.png")
    out.mkdir()
    Image.fromarray(noise(9)).save(out / "a.png")  # of an earlier call: no input
    assert len(find_inputs([folder], out)) == 4
    (tmp_path / "other").mkdir()
    for name in ("a.png", "a.jpg"):
        Image.fromarray(noise(9)).save(tmp_path / "other" / name)
    with pytest.raises(UserError, match="two inputs would get one name"):
        find_inputs([folder, tmp_path / "other"], out)


def test_inputs_that_are_not_there_or_would_be_overwritten_are_refused(folder, tmp_path):
    with pytest.raises(UserError, match="would be overwritten"):
        find_inputs([folder / "a.png"], folder)
    with pytest.raises(UserError, match="no file and no folder"):
        find_inputs([folder / "gone.png"], tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no picture and no video"):
        find_inputs([tmp_path / "empty"], tmp_path / "out")
    outside = Path(folder, "..", "in", "a.png")
    assert find_inputs([outside], tmp_path / "out")[0].target == tmp_path / "out/a.png"


def write_video(path: Path, rate: Fraction, frames: list[np.ndarray], degrees: int = 0) -> None:
    with av.open(str(path), "w") as file:
        stream = file.add_stream("mpeg4", rate=rate)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt, stream.bit_rate = "yuv420p", 4_000_000
        if degrees:
            stream.set_display_rotation(degrees)
        for frame in frames:
            file.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        file.mux(stream.encode(None))


def smooth(number: int, height: int = 45, width: int = 71) -> np.ndarray:
    ramp = np.add.outer(np.arange(height) * 2, np.arange(width)) + 3 * number
    return np.stack([ramp, ramp + 40, 200 - ramp // 2], 2).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("batch", [1, 4])
def test_a_video_keeps_rate_and_length_and_plays_everywhere(used_run, tmp_path, batch):
    rate = Fraction(30000, 1001)
    write_video(tmp_path / "clip.avi", rate, [smooth(i) for i in range(9)])
    student, out = load_student(used_run), tmp_path / "out"
    predict(student, find_inputs([tmp_path / "clip.avi"], out), out, Options(batch=batch))
    with av.open(str(out / "clip.mp4")) as file:
        stream = file.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert (stream.height, stream.width) == (44, 70)
        frames = list(file.decode(stream))
    times = [float(frame.pts * frame.time_base) for frame in frames]
    assert np.allclose(times, np.arange(9) / float(rate), atol=1e-4)
    assert [row["frame"] for row in rows(out)] == [str(i) for i in range(9)]
    assert all(sum(int(row[k]) for k in student.about["classes"]) == 45 * 71 for row in rows(out))
    assert not list(out.glob(".*"))


def test_a_cutout_of_a_video_is_the_video_where_it_is_not_black(used_run, tmp_path):
    image = smooth(0, 64, 96)
    write_video(tmp_path / "clip.mp4", Fraction(10), [image] * 3)
    student, out = load_student(used_run), tmp_path / "out"
    options = Options(mode="cutout")
    predict(student, find_inputs([tmp_path / "clip.mp4"], out), out, options)
    with av.open(str(out / "clip.mp4")) as file:
        shown = next(file.decode(video=0)).to_ndarray(format="rgb24").astype(int)
    mask = student.mask(image)
    assert 0.02 < np.mean(mask == 0) < 0.98
    assert shown[mask == 0].mean() < 30
    assert np.abs(shown - image)[mask > 0].mean() < 10  # colours come back as they were


def test_a_video_that_was_filmed_sideways_stands_upright(used_run, tmp_path):
    image = smooth(0, 64, 96)
    turned = np.ascontiguousarray(np.rot90(image))  # counterclockwise; to be shown clockwise
    write_video(tmp_path / "phone.mp4", Fraction(10), [turned] * 2, degrees=-90)
    student, out = load_student(used_run), tmp_path / "out"
    predict(student, find_inputs([tmp_path / "phone.mp4"], out), out, Options(mode="cutout"))
    with av.open(str(out / "phone.mp4")) as file:
        shown = next(file.decode(video=0)).to_ndarray(format="rgb24").astype(int)
    assert shown.shape == image.shape
    assert np.abs(shown - image)[student.mask(image) > 0].mean() < 10


def test_what_is_no_video_is_refused_and_leaves_none(used_run, tmp_path):
    (tmp_path / "text.mp4").write_text("no video")
    out = tmp_path / "out"
    with pytest.raises(UserError, match="cannot be read as a video"):
        predict(load_student(used_run), find_inputs([tmp_path / "text.mp4"], out), out, Options())
    assert [path.name for path in out.iterdir()] == ["counts.csv"]
    camera = Input(source=Path("/dev/video999"), name="video999", target=out / "video999.mp4")
    with pytest.raises(UserError, match="cannot be read as a video"):
        predict(load_student(used_run), [camera], out, Options())


def test_ctrl_c_ends_what_a_camera_films_and_keeps_it(used_run, tmp_path, monkeypatch):
    camera_like = "testsrc=size=70x40:rate=30,format=yuyv422,settb=1/1000000,setpts=PTS+8123456789"
    opened, add = av.open, Counts.add

    def film(path: str, *mode: str, format: str | None) -> object:
        return opened(path, *mode) if mode else opened(camera_like, format="lavfi")

    def interrupted(counts: Counts, name: str, mask: np.ndarray, frame: int, s: float) -> None:
        add(counts, name, mask, frame, s)
        if frame == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(av, "open", film)
    monkeypatch.setattr(Counts, "add", interrupted)
    camera = Input(source=Path("/dev/video0"), name="video0", target=tmp_path / "video0.mp4")
    predict(load_student(used_run), [camera], tmp_path, Options())
    with opened(str(tmp_path / "video0.mp4")) as file:
        times = [float(frame.pts * frame.time_base) for frame in file.decode(video=0)]
    assert times == pytest.approx([0, 1 / 30, 2 / 30, 3 / 30], abs=1e-4)


def test_times_say_how_they_were_taken(used_run, exported, folder):
    image = first_picture(find_inputs([folder], folder / "out"))
    for path, how in ((used_run, "PyTorch"), (exported[0] / "student.onnx", "onnxruntime")):
        text = latency_text(load_student(path), image, batch=2)
        for words in (
            "network alone, 32 x 48",
            "40 x 70",
            "median",
            "p95",
            "batch 2, threads 1, cpu",
        ):
            assert words in text
        assert how in text
    with pytest.raises(UserError, match="measures with a picture"):
        first_picture([])


def test_an_export_runs_on_the_cpu_only(exported):
    with pytest.raises(UserError, match="--device cpu"):
        load_student(exported[0] / "student.onnx").to("cuda")
