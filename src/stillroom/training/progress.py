"""What a person sees of the steps: one bar with the time left in a terminal, plain lines elsewhere,
nothing with `--run.quiet`. All figures are in metrics.jsonl whatever is shown.
"""

import sys
import time
from typing import Any

from tqdm import tqdm

from stillroom.training.context import TrainContext

COLUMNS = 100  # of a line
_WAITING = 0.05  # share of the time that is said, when steps waited so long for rows


class Progress:
    """The steps of one process from `step` on; only rank 0 shows anything."""

    def __init__(self, context: TrainContext, step: int) -> None:
        self._context, self._first, self._began = context, step, time.perf_counter()
        self.num_steps = step  # done, those of an earlier start too
        shows = context.is_first and not context.recipe.run.quiet and sys.stderr.isatty()
        self._bar = tqdm(
            total=context.steps,
            initial=step,
            unit="step",
            desc=context.folder.name,
            disable=not shows,
            dynamic_ncols=True,
        )

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def step(self) -> None:
        """Count one step."""
        self.num_steps += 1
        self._bar.update()

    def show(self, step: int, figures: dict[str, Any]) -> None:
        """Show the figures of the last steps."""
        if not self._bar.disable:
            self._bar.set_postfix_str(f"loss {figures['loss']:.4g}", refresh=False)
            return
        seconds = (time.perf_counter() - self._began) / (step - self._first)
        left = tqdm.format_interval(seconds * (self._context.steps - step))
        self._context.print(step_line(self._context.steps, step, figures, left))

    def clear(self) -> None:
        """Make room for a line that is printed; the next step shows the bar again."""
        self._bar.clear()


def step_line(steps: int, step: int, figures: dict[str, Any], left: str) -> str:
    """Return one line of the log for people, of at most 100 columns; terms that do not fit are
    counted. `left` is the time left.
    """
    terms = [
        f"{name.removeprefix('term_')} {value:.3g}"
        for name, value in figures.items()
        if name.startswith("term_") and value is not None
    ]
    head = f"step {step}/{steps}: loss {figures['loss']:.4f}"
    skipped = figures.get("skipped_steps")
    scaling = f", {skipped} steps skipped (scale {figures['scale']:g})" if skipped else ""
    waits = not skipped and figures["waiting"] >= _WAITING
    waiting = f", {figures['waiting']:.0%} waiting" if waits else ""
    tail = f", {figures['rows_per_s']:.1f} rows/s{waiting}{scaling}, {left} left"
    for shown in range(len(terms), -1, -1):
        rest = [f"+{len(terms) - shown} more"] if shown < len(terms) else []
        text = f" ({', '.join([*terms[:shown], *rest])})" if terms else ""
        if len(head + text + tail) <= COLUMNS:
            return head + text + tail
    return head + tail
