"""`accelerate launch` for jobs, with the same words: what happened is a line, not a traceback.

Exit status: 0 done, 75 told to stop (SIGTERM, Ctrl-C), 1 a process failed, whose rank is said.
One process is started as several are, so that signals reach it.
"""

import os
import socket
import sys
from argparse import Namespace

from accelerate.commands import launch
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

_STOPPED = 75


def _start(args: Namespace) -> None:
    """In place of Accelerate's own start of what is no `MULTI_GPU`, one process or on a CPU."""
    os.environ["ACCELERATE_USE_CPU"] = str(args.cpu or args.use_cpu)
    launch.multi_gpu_launcher(args)


def main() -> int:
    """Run Accelerate's launcher and return the exit status."""
    launch.simple_launcher = _start
    try:
        launch.main()
    except SignalException as told:
        print(f"launcher on {socket.gethostname()}: told to stop ({told.sigval.name})", flush=True)
        return _STOPPED
    except ChildFailedError as failed:
        for rank, failure in sorted(failed.failures.items()):
            how = failure.signal_name() if failure.exitcode < 0 else f"status {failure.exitcode}"
            print(f"launcher on {socket.gethostname()}: rank {rank} ended with {how}", flush=True)
        statuses = {failure.exitcode for failure in failed.failures.values()}
        return _STOPPED if statuses == {_STOPPED} else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
