"""A student begins from that of a finished run, in place of its first weights."""

from pathlib import Path

from stillroom.errors import UserError
from stillroom.networks.build import Network
from stillroom.networks.finished_run import WEIGHTS, read_run, require_finished
from stillroom.networks.weights import load_weights
from stillroom.students.definitions import Student


def begin_of(student: Student) -> str | None:
    """Return the run that a student begins from; one of the user's own need not have the field."""
    return getattr(student, "begin", None)


def load_begin(begin: str, student: Student, network: Network) -> str:
    """Put the weights of the run `begin` into a student's network; return their sha256.

    UserError where the run is not finished or its student is another one, DamageError where its
    weights are not those that it names.
    """
    run = Path(begin)
    require_finished(run)
    about = read_run(run)
    found, wanted = about["network"], student.architecture()
    if found != wanted:
        names = sorted(n for n in found.keys() | wanted.keys() if found.get(n) != wanted.get(n))
        raise UserError(
            f"the student of {run} is another one, and this one cannot begin from it",
            found=", ".join(f"{name} = {found.get(name)}" for name in names),
            wanted=", ".join(f"{name} = {wanted.get(name)}" for name in names),
            fix="the same --student flags as in that run",
        )
    load_weights(network, run / WEIGHTS)
    return about["weights_sha256"]
