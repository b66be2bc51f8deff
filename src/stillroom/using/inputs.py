"""What `stillroom predict` is given, and where each answer goes: inside the output folder."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from stillroom.errors import UserError

_PICTURES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
_VIDEOS = (".mp4", ".mov", ".m4v", ".avi", ".mkv", ".webm", ".mpg", ".mpeg")
_CAMERA = "/dev/video"


@dataclass(frozen=True, slots=True, kw_only=True)
class Input:
    """A picture, video or camera, its name, and the file that is made of it."""

    source: Path
    name: str
    target: Path

    @property
    def is_camera(self) -> bool:
        return str(self.source).startswith(_CAMERA)

    @property
    def is_video(self) -> bool:
        return self.is_camera or self.source.suffix.lower() in _VIDEOS

    @property
    def suffix(self) -> str:
        """Of what is made of it."""
        return ".mp4" if self.is_video else ".png"


def find_inputs(paths: Sequence[Path], out: Path) -> list[Input]:
    """Return what files and folders (with all below them) name, each with its own name in `out`.

    Raises UserError where nothing is there, or where a file would be overwritten or written twice.
    """
    found: dict[Path, Input] = {}
    for path in paths:
        for source, name in _named(path, out):
            job = Input(source=source, name=name.as_posix(), target=out / name)
            job = replace(job, target=job.target.with_suffix(job.suffix))
            if job.target in found:  # a.jpg beside a.png
                job = replace(job, target=out / f"{name}{job.suffix}")
            if job.target in found:
                raise UserError(
                    "two inputs would get one name",
                    found=f"{found[job.target].source} and {source}",
                    fix="one after the other, each with its own --out",
                )
            found[job.target] = job
    sources = {job.source.resolve() for job in found.values()}
    if same := sources & {target.resolve() for target in found}:
        raise UserError(f"{min(same)} would be overwritten", fix="another folder: --out DIR")
    if not found and any(path.resolve().is_relative_to(out.resolve()) for path in paths):
        raise UserError(f"the inputs lie in the output folder {out}", fix="another one: --out DIR")
    if not found:
        raise UserError(
            "there is no picture and no video",
            found=", ".join(map(str, paths)) or "no input",
            wanted=", ".join((*_PICTURES, *_VIDEOS)),
        )
    return list(found.values())


def _named(path: Path, out: Path) -> Iterator[tuple[Path, Path]]:
    """Yield files with their names below `path`; what lies in `out` was made by an earlier call."""
    if path.is_dir():
        for file in sorted(path.rglob("*")):
            is_wanted = file.suffix.lower() in (*_PICTURES, *_VIDEOS) and file.is_file()
            if is_wanted and not file.resolve().is_relative_to(out.resolve()):
                yield file, file.relative_to(path)
    elif path.exists():
        yield path, Path(path.name)
    else:
        raise UserError(f"there is no file and no folder {path}")
