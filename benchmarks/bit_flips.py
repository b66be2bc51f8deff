"""Single-bit flips in every file of a cache of each body and codec: is one of them silent?

`python benchmarks/bit_flips.py [--flips 1000] [--seed 0]` flips that many random bits of each file,
one at a time, and lets the reader read every row and `check_cache` look at everything. A flip that
neither mentions is silent; one whose file neither names is unnamed. With `--no-check` the reader
does not compare checksums and nothing is scrubbed, which must let flips through. Writes
`benchmarks/results/bit_flips_<hardware>_<yyyymm>.json`; about 10 ms of one core a flip.
"""

import argparse
import itertools
import sys
import tempfile
from pathlib import Path

from bench.machine import RESULTS, save

from stillroom.cache.folder import BODIES

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "cache"))

from flip_bits import CODECS, flip, make_cache


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--flips", type=int, default=1000, help="in each file")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-check", action="store_true", help="the test of the test")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    command = f"python benchmarks/bit_flips.py --flips {arguments.flips} --seed {arguments.seed}"
    results = {}
    for body, codecs in itertools.product(BODIES, CODECS):
        with tempfile.TemporaryDirectory() as folder:
            cache = make_cache(Path(folder), body, arguments.seed, codecs)
            check = not arguments.no_check
            found = flip(cache, arguments.flips, arguments.seed, check=check)
            results[f"{body} {codecs}"] = found
    if arguments.no_check:
        print({name: f"{r['silent']} of {r['flips']} silent" for name, r in results.items()})
        return
    flips = sum(result["flips"] for result in results.values())
    silent = sum(result["silent"] for result in results.values())
    save("bit_flips", command, {"flips": flips, "silent": silent, **results}, arguments.out)


if __name__ == "__main__":
    main()
