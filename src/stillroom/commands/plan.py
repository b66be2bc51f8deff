"""Measure what a recipe's cache would cost here, or on a cluster, and say whether it pays.

stillroom plan RECIPE [recipe flags]
stillroom plan RECIPE --gpus 8 --pictures 120000 --disk-gb-per-s 3 --student-ms 3
"""

from dataclasses import fields

from stillroom.cli import recipe_from
from stillroom.flags import Parser

EPILOG = """\
RECIPE and its flags are those of stillroom cache (RECIPE --help there lists them); --epochs,
--batch, --micro-batch, --codec.NAME, --run.cache and --run.workers among them count here. Teachers,
student and codecs run on a sample of the training pictures, the disk is that of --run.cache; what
is written there is removed. What is given replaces what would be measured and is taken to be of
another machine; pictures and codecs are always measured here.

The table has a line for each codec of each target, and one for the whole cache: MB a row as it is
written, relative squared error, ms to encode and compress, ms to read and decode (one core), then
of the whole cache GB, hours of extraction, training pictures a second with it and with the teachers
in the step (which stillroom does not offer; it is what a cache has to beat), and the epoch at which
the extraction is paid for. No part of a cache is taken to stay in memory between epochs.

Exit status: 0 whatever the recommendation, 2 a user's mistake, 1 a failure, 75 told to stop.
"""


def run() -> None:
    # our own flags, wherever they stand; the other words are RECIPE and its flags
    flags = parser()
    own, words = flags.parse_known_args()
    recipe = recipe_from(words, flags.flags())
    from stillroom.planning.describe_plan import describe
    from stillroom.planning.measure import PlanOptions
    from stillroom.planning.run_plan import run_plan

    given = {field.name: getattr(own, field.name) for field in fields(PlanOptions)}
    print(describe(run_plan(recipe, PlanOptions(**given))))


def parser() -> Parser:
    """Return the parser of the flags that are not the recipe's."""
    own = Parser(
        usage="%(prog)s RECIPE [recipe flags] [flags]",
        description=(__doc__ or "").partition("\n")[0],
        epilog=EPILOG,
    )
    add = own.add_argument
    add("--gpus", type=int, default=1, metavar="N", help="GPUs, or processes, that share the work"
        " and the disk (default: 1)")  # fmt: skip
    add(
        "--cores",
        type=int,
        metavar="N",
        help="cores of each GPU (default: this machine's, divided by its GPUs)",
    )
    add("--pictures", type=int, metavar="N", help="training pictures (default: those of"
        " data.shards; the validation split grows alike)")  # fmt: skip
    add("--disk-gb-per-s", type=float, metavar="X", help="what the disk writes and reads, of all"
        " GPUs together (default: measured, and the free room is compared)")  # fmt: skip
    add("--teacher-ms", type=float, metavar="X", help="ms a row of all teachers, on a device beside"
        " the cores (default: measured here)")  # fmt: skip
    add("--student-ms", type=float, metavar="X", help="ms a row of a training step, likewise"
        " (default: measured here)")  # fmt: skip
    add("--pictures-measured", type=int, default=200, metavar="N", help="training pictures that the"
        " teachers are run on, at most (default: 200)")  # fmt: skip
    add("--minutes", type=float, default=4.0, metavar="X", help="about how long to measure; slow"
        " teachers are run on fewer pictures (default: 4)")  # fmt: skip
    add("--debug", action="store_true", help="show tracebacks (default: one paragraph)")
    return own
