"""The errors users see: what happened, what was found, what was wanted, and the fix."""

from pathlib import Path

_URLS: dict[str, str] = {}  # per folder that holds copies of what lies in a store


def holds_copies(folder: Path, url: str) -> None:
    """Have messages name the URL where they would name the folder of its copies."""
    _URLS[str(folder)] = url


def with_urls(text: object) -> str:
    """Return a text that names what people named: URLs, not the folders of their copies."""
    said = str(text)
    for folder, url in _URLS.items():
        said = said.replace(folder, url)
    return said


class StillroomError(Exception):
    """An error that is shown as one short paragraph; `exit_code` is the process's.

    With `is_local` its folders are meant themselves, and not what they hold copies of.
    """

    exit_code = 1

    def __init__(
        self,
        what: str,
        *,
        found: object = None,
        wanted: object = None,
        fix: str | None = None,
        is_local: bool = False,
    ) -> None:
        if not is_local:
            what, fix = with_urls(what), fix and with_urls(fix)
            found, wanted = (with_urls(s) if isinstance(s, str) else s for s in (found, wanted))
        self.what, self.found, self.wanted, self.fix = what, found, wanted, fix
        lines = [what]
        if found is not None:
            lines.append(f"  found:  {found}")
        if wanted is not None:
            lines.append(f"  wanted: {wanted}")
        if fix is not None:
            lines.append(f"  fix:    {fix}")
        super().__init__("\n".join(lines))


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text, or its kind where it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


class UserError(StillroomError, ValueError):
    """Something that the user gave us is wrong: exit status 2."""

    exit_code = 2


class DamageError(StillroomError):
    """Stored bytes are not the bytes that were written: exit status 1."""


class FailureError(StillroomError):
    """Something outside us failed (device, disk, a peer process): exit status 1."""


class Stopped(StillroomError):
    """We were told to stop and have saved what there was: exit status 75."""

    exit_code = 75
