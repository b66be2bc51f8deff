"""The errors users see: what happened, what was found, what was wanted, and the fix."""


class StillroomError(Exception):
    """An error that is shown as one short paragraph; `exit_code` is the process's."""

    exit_code = 1

    def __init__(
        self,
        what: str,
        *,
        found: object = None,
        wanted: object = None,
        fix: str | None = None,
    ) -> None:
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
