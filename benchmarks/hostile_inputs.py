"""Every hostile file of the tests is refused in under 2 s with less than 200 MB of extra memory.

`python benchmarks/hostile_inputs.py` spoils a small world (pictures, a cache, a run, ONNX and torch
networks, sources) in each way of `tests/hostile/*_cases.py` and reads it, each case in a fork of
one process that has imported everything. A case is good when it is refused with an error of ours
for the right reason; its seconds are the processor's. What is odd and legal (linked weights, the
world as it was) must be accepted. The exit status is 1 where anything is otherwise. Figures:
`benchmarks/results/hostile_inputs_cpu<cores>_<yyyymm>.json`. About half a minute.
"""

import argparse
import sys
from collections import Counter
from pathlib import Path

from bench.machine import save

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "hostile"))

from cases import CASES, LEGAL, is_right, judge_all
from harness import MAX_MB, MAX_SECONDS

_SHOWN = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.parse_args()
    verdicts = list(judge_all((*CASES, *LEGAL)))
    hostile = [(case.name, verdict) for case, verdict in verdicts if case not in LEGAL]
    wrong = [f"{case.name}: {verdict}" for case, verdict in verdicts if not is_right(case, verdict)]
    slowest = sorted(hostile, key=lambda pair: -pair[1].seconds)[:_SHOWN]
    largest = sorted(hostile, key=lambda pair: -pair[1].extra_mb)[:_SHOWN]
    save(
        "hostile_inputs",
        "python benchmarks/hostile_inputs.py",
        {
            "hostile_cases": len(hostile),
            "outcomes": dict(Counter(verdict.outcome for _, verdict in hostile)),
            "limits": {"seconds": MAX_SECONDS, "extra_mb": MAX_MB},
            "slowest_seconds": {name: verdict.seconds for name, verdict in slowest},
            "largest_extra_mb": {name: verdict.extra_mb for name, verdict in largest},
            "median_seconds": sorted(verdict.seconds for _, verdict in hostile)[len(hostile) // 2],
            "legal_cases_accepted": len(LEGAL),
            "wrong": wrong,
        },
    )
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
