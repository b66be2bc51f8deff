"""A plan for people: one table, a recommendation in one sentence, and the flags to use."""

import math
from collections.abc import Mapping

from stillroom.columns import in_columns
from stillroom.planning.arithmetic import CLOSE, SPARE, Line, disk_for
from stillroom.planning.run_plan import Plan

_TITLES = (
    *("target", "codec", "MB/row", "error", "encode ms", "decode ms"),
    *("disk GB", "hours", "cached/s", "online/s", "waits for", "pays at epoch"),
)
_WHOLE = "whole cache"


def describe(plan: Plan) -> str:
    """Return everything that the planner has to say."""
    notes = [f"note: {note}" for note in plan.measured.notes]
    head = (*plan.measured.sources, _setting(plan), "", *_table(plan), "")
    return "\n".join((*head, *notes, recommendation(plan), *flags(plan)))


def recommendation(plan: Plan) -> str:
    """Return in one sentence whether to make a cache, and if not, what would have to change."""
    best, own = plan.best, plan.own
    if not best.fits:
        return f"There is not enough room for a cache: {_room(plan)}."
    if not best.pays:
        return f"Do not cache: {_loss(plan)}; {_change(plan)}."
    why = "" if best is own else f" instead of the recipe's ({_why_not(plan)})"
    smaller = "" if best is not own else _smaller(plan)
    return (
        f"Cache{why}: {_size(best.disk_bytes)}, {_time(best.extraction_s)} of extraction, paid for"
        f" after {_epochs(best.paid_epochs)} of {plan.setting.epochs} epochs;"
        f" with it all epochs take {_time(best.cached_s)}, with the teachers in the step they would"
        f" take {_time(best.online_s)}{smaller}."
    )


def flags(plan: Plan) -> list[str]:
    """Return lines with the flags of both stages that say what was recommended."""
    if not (plan.best.fits and plan.best.pays):
        return []
    codec = plan.recipe.codec
    known = [f"--codec.{name} {text}" for name, text in plan.best.codecs.items() if name in codec]
    unknown = {n: t for n, t in plan.best.codecs.items() if n not in codec and t != "float16"}
    lines = [f"flags: {' '.join(known)}"] if known else []
    if unknown:
        pairs = ", ".join(f'"{name}": "{text}"' for name, text in unknown.items())
        lines.append(f"in the recipe, which has no flag for it: codec={{{pairs}}}")
    return lines


def _setting(plan: Plan) -> str:
    setting = plan.setting
    return (
        f"setting   {setting.num_pictures} training pictures, {setting.epochs} epochs;"
        f" {setting.num_rows} rows are kept; GPUs or processes: {setting.gpus}, cores of each:"
        f" {setting.cores}, threads that read (--run.workers): {setting.readers}"
    )


def _table(plan: Plan) -> list[str]:
    rows: list[tuple[str, ...]] = [_TITLES]
    for (name, text), line in plan.singles.items():
        mark = " *" if plan.own.codecs[name] == text else ""
        rows.append((name, text + mark, *_cost(plan, {name: text}), *_line(line)))
    rows.append((_WHOLE, "*", *_cost(plan, plan.own.codecs), *_line(plan.own)))
    if plan.best is not plan.own:
        rows.append((_WHOLE, "best", *_cost(plan, plan.best.codecs), *_line(plan.best)))
    return [
        *in_columns(rows, 2),
        "* as the recipe says; every line is the whole cache with that one target kept so",
    ]


def _cost(plan: Plan, codecs: Mapping[str, str]) -> tuple[str, ...]:
    """Return MB a row, the error of a single target, ms to encode, and ms to make a stored row a
    target: read, check, decompress and decode.
    """
    costs = [plan.costs.codecs[name][text] for name, text in codecs.items()]
    numbers = (
        sum(cost.row_bytes for cost in costs) / 1e6,
        costs[0].error,
        sum(cost.encode_ms + cost.write_ms for cost in costs),
        sum(cost.read_ms + cost.decode_ms for cost in costs),
    )
    row_mb, error, encode_ms, decode_ms = (f"{number:.3g}" for number in numbers)
    return row_mb, error if len(costs) == 1 else "", encode_ms, decode_ms


def _line(line: Line) -> tuple[str, ...]:
    return (
        f"{line.disk_bytes / 1e9:.3g}" + ("" if line.fits else " (full)"),
        f"{line.extraction_s / 3600:.3g}",
        f"{line.cached_per_s:.4g}",
        f"{line.online_per_s:.4g}",
        line.bound,
        _epochs(line.paid_epochs) if line.pays else "never",
    )


def _room(plan: Plan) -> str:
    need = plan.best.disk_bytes * SPARE
    return (
        f"the smallest one takes {_size(need)} with {SPARE - 1:.0%} to spare, and"
        f" {_size(plan.setting.free_bytes)} are free in {plan.recipe.run.cache}; make room, name"
        " another place with --run.cache, or keep fewer --views.count"
    )


def _loss(plan: Plan) -> str:
    best = plan.best
    return (
        f"with the quickest codecs extraction and {plan.setting.epochs} epochs take"
        f" {_time(best.cached_s)}, the same epochs with the teachers in the step"
        f" {_time(best.online_s)} ({best.cached_s / best.online_s:.2f} times as long)"
    )


def _change(plan: Plan) -> str:
    """Say which number would have to be another for a cache to pay."""
    best, costs, setting = plan.best, plan.costs, plan.setting
    if best.paid_epochs < math.inf:
        return f"it would pay from --epochs {math.ceil(best.paid_epochs)} on"
    if best.bound == "disk":
        wanted = disk_for(best, costs)
        return (
            f"reading alone keeps it slower at any number of epochs: it takes a disk of more than"
            f" {wanted:.3g} GB/s (now {costs.read_gb_per_s:.3g}), or smaller rows"
        )
    if best.bound == "cores":
        return (
            "reading and decoding a row take the cores longer than the teachers would: it takes"
            f" more than {min(setting.cores, setting.readers)} cores that read, smaller rows, or"
            f" teachers of more than {costs.teacher_ms:.3g} ms a row"
        )
    return (
        "decoding takes as long as the teachers: it takes a cheaper codec, or teachers of more than"
        f" {costs.teacher_ms:.3g} ms a row"
    )


def _why_not(plan: Plan) -> str:
    own = plan.own
    if not own.fits:
        return f"which would need {_size(own.disk_bytes * SPARE)} of the disk"
    if not own.pays:
        return "which would never pay"
    return f"with which it all takes {_time(own.cached_s)}"


def _smaller(plan: Plan) -> str:
    """Say what would save at least half of the disk and no time to speak of is lost."""
    limit = CLOSE * plan.own.cached_s
    lines = [line for line in plan.singles.values() if line.pays and line.cached_s <= limit]
    least = min(lines, key=lambda line: line.disk_bytes)
    if least.disk_bytes > plan.own.disk_bytes / 2:
        return ""
    changed = [f"--codec.{n} {t}" for n, t in least.codecs.items() if plan.own.codecs[n] != t]
    return f"; {' '.join(changed)} would take {_size(least.disk_bytes)}"


def _epochs(count: float) -> str:
    return "never" if count == math.inf else str(max(1, math.ceil(count)))


def _size(count: float) -> str:
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count / 1e3:.3g} kB"


def _time(seconds: float) -> str:
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} s"
