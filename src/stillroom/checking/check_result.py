"""What a check of a cache found and did, as text and as JSON."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from stillroom.cache.audit_file import Audit
from stillroom.cache.scrub import Problem
from stillroom.checking.audit import table
from stillroom.checking.rerun import Compared
from stillroom.errors import with_urls

START_ANEW = (
    "restore it from a backup, or run stage 1 with the recipe into a new folder:"
    " stillroom cache RECIPE --run.cache NEW"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckResult:
    """Everything that there is to say; all is well when there is no problem (any more)."""

    cache: Path
    problems: tuple[Problem, ...]
    notes: tuple[str, ...] = ()  # worth saying and not wrong
    num_shards: int = 0  # that were read in full
    num_rows: int = 0
    num_bytes: int = 0
    seconds: float = 0.0
    compared: tuple[Compared, ...] = ()  # per target, where the teachers were run again
    audit: Audit | None = None  # where it was made
    repaired: tuple[str, ...] = ()
    removed: tuple[Path | str, ...] = ()

    @property
    def is_well(self) -> bool:
        """True where nothing is damaged or missing (any more)."""
        return not self.problems

    @property
    def fix(self) -> str | None:
        """What mends the cache; None where it is whole."""
        kinds = {problem.kind for problem in self.problems} - {"pictures"}
        if "identity" in kinds:
            return START_ANEW
        return with_urls(f"stillroom check-cache {self.cache} RECIPE --repair") if kinds else None

    @property
    def summary(self) -> str:
        """The last line of the text: how much was read, how fast, and the verdict."""
        count = len(self.problems)
        verdict = "all is well" if not count else f"{count} problem{'s' if count > 1 else ''}"
        speed = self.num_bytes / 1e6 / max(self.seconds, 1e-9)
        return (
            f"{self.num_shards} shards, {self.num_rows} rows, {self.num_bytes / 1e6:.1f} MB"
            f" in {self.seconds:.1f} s ({speed:.0f} MB/s): {verdict}"
        )

    def lines(self) -> list[str]:
        """Return the text: problems, notes, figures, what was done, and the summary."""
        lines = [f"{problem.kind}: {with_urls(problem.what)}" for problem in self.problems]
        lines += [f"note: {note}" for note in self.notes]
        lines += [line for compared in self.compared for line in compared.lines()]
        lines += [] if self.audit is None else table(self.audit)
        lines += [f"repaired: {what}" for what in self.repaired]
        lines += [f"removed: {path}" for path in self.removed]
        lines += [] if self.fix is None else [f"fix: {self.fix}"]
        return [*lines, self.summary]

    def as_json(self) -> dict[str, Any]:
        """Return the same as JSON values."""
        return {
            "cache": with_urls(self.cache),
            "is_well": self.is_well,
            "problems": [
                {
                    "kind": problem.kind,
                    "shard": None if problem.shard is None else str(problem.shard),
                    "path": str(problem.path),
                    "what": with_urls(problem.what),
                }
                for problem in self.problems
            ],
            "notes": list(self.notes),
            "shards": self.num_shards,
            "rows": self.num_rows,
            "bytes": self.num_bytes,
            "seconds": round(self.seconds, 3),
            "rerun": {compared.target: compared.as_json() for compared in self.compared},
            "audit": None if self.audit is None else msgspec.to_builtins(self.audit.targets),
            "repaired": list(self.repaired),
            "removed": list(map(str, self.removed)),
            "fix": self.fix,
        }
