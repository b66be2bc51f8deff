"""Videos and cameras through a student: an MP4 that plays everywhere, at the source's own times."""

import contextlib
from collections.abc import Iterator
from typing import Any

import av
import numpy as np
from av.error import FFmpegError
from tqdm import tqdm

from stillroom.errors import UserError, first_line
from stillroom.pictures.draw import Rgb
from stillroom.using.answers import Counts, Mode, names_and_palette, shown
from stillroom.using.inputs import Input
from stillroom.using.prediction import batches
from stillroom.using.resampling import mask_at
from stillroom.using.student import Trained
from stillroom.using.window import Window

_BT601 = 6  # how swscale makes yuv420p of RGB; said in the file, so that players undo the same


def predict_video(
    trained: Trained, job: Input, counts: Counts, mode: Mode, batch: int = 1, show: bool = False
) -> None:
    """Write an MP4 (H.264, yuv420p, even sides, no sound); a cutout is black where it is class 0.

    With `show` in a window too, until that is closed. A camera is filmed until Ctrl-C. Raises
    UserError for a file without a video in it.
    """
    palette = names_and_palette(trained)[1]
    window = Window(job.name) if show else None
    job.target.parent.mkdir(parents=True, exist_ok=True)
    aside = job.target.with_name(f".{job.target.name}")
    try:
        with (
            _open(job) as source,
            _Writer(str(aside), source.streams.video[0]) as writer,
            contextlib.suppress(*[KeyboardInterrupt] * job.is_camera),
        ):
            for frames in batches(_frames(source, job), batch):
                images = [_upright(frame) for frame in frames]
                found = trained.small_logits(images)
                for frame, image, logits in zip(frames, images, found, strict=True):
                    mask = mask_at(logits, image.shape[:2])
                    picture = np.array(shown(image, mask, palette, mode).convert("RGB"))
                    number, s = writer.write(picture, frame)
                    counts.add(job.name, mask, number, s)
                    if window is not None:
                        window.show(picture)
                if window is not None and not window.is_open:
                    break
        aside.replace(job.target)
    finally:
        aside.unlink(missing_ok=True)


def _open(job: Input) -> Any:
    try:
        source = av.open(str(job.source), format="v4l2" if job.is_camera else None)
    except (FFmpegError, OSError) as error:
        raise UserError(
            f"{job.source} cannot be read as a video", found=error.strerror or first_line(error)
        ) from None
    if not source.streams.video:
        source.close()
        raise UserError(f"there is no video in {job.source}")
    source.streams.video[0].thread_type = "AUTO"
    return source


def _frames(source: Any, job: Input) -> Iterator[Any]:
    """Yield decoded frames, with time left on a terminal."""
    stream = source.streams.video[0]
    yield from tqdm(
        source.decode(stream), job.name, stream.frames or None, unit="frame", disable=None
    )


def _upright(frame: Any) -> Rgb:
    """Return a frame as RGB, turned as phones ask for."""
    return np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90))


class _Writer:
    """An H.264 MP4 whose frames have the times of those that they were made from."""

    def __init__(self, path: str, source: Any) -> None:
        self._file = av.open(path, "w", format="mp4")
        self._stream: Any = self._file.add_stream("libx264", rate=source.average_rate or 30)
        self._stream.pix_fmt, self._stream.options = "yuv420p", {"crf": "18"}
        self._stream.codec_context.time_base = source.time_base
        self._stream.codec_context.colorspace = _BT601
        self._num_frames, self._first = 0, 0

    def write(self, picture: Rgb, frame: Any) -> tuple[int, float]:
        """Append a picture at a frame's time; return its number and its time in seconds."""
        height, width = (side // 2 * 2 for side in picture.shape[:2])
        if self._num_frames == 0:
            self._stream.height, self._stream.width = height, width
            self._first = frame.pts or 0
        made = av.VideoFrame.from_ndarray(
            np.ascontiguousarray(picture[:height, :width]), format="rgb24"
        )
        pts = (frame.pts or 0) - self._first
        made.pts, made.time_base = pts, frame.time_base
        self._file.mux(self._stream.encode(made))
        self._num_frames += 1
        return self._num_frames - 1, float(pts * frame.time_base)

    def __enter__(self) -> "_Writer":
        return self

    def __exit__(self, *error: object) -> None:
        if self._num_frames:
            self._file.mux(self._stream.encode(None))
        self._file.close()
