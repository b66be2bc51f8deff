"""The files of a teacher: there, and inside the folder where they belong."""

from pathlib import Path, PurePosixPath, PureWindowsPath

from stillroom.errors import UserError
from stillroom.networks.finished_run import require_finished


class MissingTeacherError(UserError):
    """A teacher's file is not here; stage 2 can do without, stage 1 cannot."""


def existing(path: str, flag: str = "path") -> Path:
    """Return the path of a teacher's file; raises MissingTeacherError where there is none."""
    if not Path(path).is_file():
        raise MissingTeacherError(
            f"the teacher's file {path} does not exist",
            found="a folder" if Path(path).is_dir() else "nothing",
            wanted="the network's file",
            fix=f"give its place with --teachers.N.{flag} FILE (N counts teachers from 0)",
        )
    return Path(path)


def finished(path: str) -> Path:
    """Return the path of a run's folder; raises MissingTeacherError where it is not finished."""
    try:
        require_finished(Path(path), kind=MissingTeacherError)
    except MissingTeacherError as error:
        fix = f"{error.fix}; --teachers.N.path runs/NAME names the teacher's"
        what = f"the teacher's folder {error.what}"
        raise MissingTeacherError(what, found=error.found, wanted=error.wanted, fix=fix) from None
    return Path(path)


def target_files(folder: str, suffix: str) -> dict[str, Path]:
    """Return the regular files below a folder whose names end so, by key, in order.

    What lies behind a link is not among them. Raises MissingTeacherError where there is none.
    """
    found = (p for p in Path(folder).rglob(f"*{suffix}") if p.is_file() and not p.is_symlink())
    keys = {p.relative_to(folder).as_posix().removesuffix(suffix): p for p in found}
    if not keys:
        raise MissingTeacherError(
            f"the teacher's folder {folder} holds no {suffix} file",
            wanted=f"KEY{suffix} for the key of each picture",
            fix="give its place with --teachers.N.folder FOLDER, or --teachers.N.suffix",
        )
    return dict(sorted(keys.items()))


def file_inside(folder: Path, name: str) -> Path:
    """Return the file that a network or a cache names, below its own folder.

    Raises UserError for a name that could lead elsewhere, MissingTeacherError for no such file.
    """
    posix = PurePosixPath(name)
    if not name or "\0" in name or "\\" in name or PureWindowsPath(name).anchor:
        trouble = "no relative path"
    elif ".." in posix.parts:
        trouble = "a path with .."
    elif any((folder / part).is_symlink() for part in (posix, *posix.parents)[:-1]):
        trouble = "a link"
    elif not (folder / posix).is_file():
        raise MissingTeacherError(
            f"the file {folder / posix}, which holds weights of the network, does not exist",
            fix="copy it from where the network came from, to the same place beside it",
        )
    else:
        return folder / posix
    raise UserError(
        "the network keeps weights in a place that is refused",
        found=f"{name!r:.200}: {trouble}",
        wanted=f"a plain file in {folder}",
        fix="save the network again with its weights in a file beside it; copy links as files",
    )
