"""A real Slurm on this machine: one controller and two nodes, in a folder of its own."""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

NODES = ("n1", "n2")
_CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
SlurmdUser=root
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
MailProg=/bin/true
ReturnToService=2
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=1,bf_interval=1
NodeName=n1 NodeAddr=127.0.0.1 NodeHostname=localhost Port={ports[1]} CPUs=4
NodeName=n2 NodeAddr=127.0.0.1 NodeHostname=localhost Port={ports[2]} CPUs=4
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def why_not() -> str:
    """Why there can be no Slurm here, or nothing."""
    if os.geteuid() != 0:
        return "Slurm's daemons are started as root"
    missing = [n for n in ("munged", "slurmctld", "slurmd", "sbatch") if not shutil.which(n)]
    return f"no {', '.join(missing)}: Debian's slurm-wlm and munge are not installed" * bool(
        missing
    )


class Slurm:
    """The cluster; jobs are submitted from `checkout` and see `environment`."""

    def __init__(self, folder: Path, checkout: Path) -> None:
        self.folder, self.checkout = folder, checkout
        self.environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}
        self.environment.update(OMP_NUM_THREADS="1", TMPDIR=str(folder))
        self._began = time.monotonic()

    def call(self, *words: object) -> str:
        """Run one of Slurm's commands and return what it says."""
        command = [str(word) for word in words]
        done = subprocess.run(
            command, cwd=self.checkout, env=self.environment, capture_output=True, text=True
        )
        assert done.returncode == 0, (command, done.stdout, done.stderr)
        return done.stdout.strip()

    def submit(self, *words: object, **environment: object) -> int:
        """Queue a job as a user would and return its number."""
        more = ",".join(["ALL", *(f"{name}={value}" for name, value in environment.items())])
        said = self.call("sbatch", "--parsable", f"--export={more}", "--cpus-per-task=1", *words)
        self.event(f"job {said}: {' '.join(map(str, words[-3:]))[-60:]}")
        return int(said)

    def job(self, number: int, field: str) -> str:
        """Return a field of a job as `scontrol show job` has it."""
        words = self.call("scontrol", "show", "job", number).split()
        return next(w for w in words if w.startswith(f"{field}=")).removeprefix(f"{field}=")

    def wait_for(self, what: str, is_true: Callable[[], object], patience_s: float = 90) -> float:
        """Wait until something is true, note it as an event and return the seconds it took."""
        began = time.monotonic()
        while not is_true():
            seconds = time.monotonic() - began
            assert seconds < patience_s, f"not within {patience_s} s: {what}\n{self.logs()}"
            time.sleep(0.1)
        seconds = time.monotonic() - began
        self.event(f"{what} ({seconds:.1f} s)")
        return seconds

    def end(self, number: int, state: str, patience_s: float = 90) -> float:
        """Wait for the end of a job, in this state."""
        ends = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
        seconds = self.wait_for(
            f"job {number}: {state}", lambda: self.job(number, "JobState") in ends, patience_s
        )
        assert self.job(number, "JobState") == state, self.logs()
        return seconds

    def event(self, text: str) -> None:
        """Print what has happened, and after how many seconds."""
        print(f"  {time.monotonic() - self._began:6.1f} s  {text}", flush=True)

    def log(self, number: int | str) -> str:
        """Return what a job has printed."""
        path = self.checkout / f"slurm-{number}.out"
        return path.read_text() if path.exists() else ""

    def logs(self) -> str:
        """Return the ends of all logs."""
        paths = [*sorted(self.checkout.glob("slurm-*.out")), *self.folder.glob("*.log")]
        return "\n".join(f"--- {path.name}\n{path.read_text()[-3000:]}" for path in paths)


def processes_of(folder: Path) -> list[int]:
    """Every process that was started by this cluster: its environment names the folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):
            if f"SLURM_CONF={folder}/".encode() in path.read_bytes():
                found.append(int(path.parent.name))
    return found


@contextmanager
def start_slurm(checkout: Path) -> Iterator[Slurm]:
    """Start it; afterwards none of its processes is left, whatever has happened."""
    folder, daemons = Path(tempfile.mkdtemp(prefix="slurm-")), []
    slurm = Slurm(folder, checkout)
    try:
        _start(slurm, daemons)
        slurm.wait_for(
            "two nodes are idle", lambda: slurm.call("sinfo", "-h", "-o", "%D%t") == "2idle"
        )
        yield slurm
    finally:
        while left := processes_of(folder):
            for number in left:
                with suppress(ProcessLookupError):
                    os.kill(number, signal.SIGKILL)
            time.sleep(0.1)
        for daemon in daemons:
            daemon.wait()
        shutil.rmtree(folder)


def _start(slurm: Slurm, daemons: list[subprocess.Popen]) -> None:
    """Write the configuration and start the daemons; each goes to the list at once."""
    folder, key = slurm.folder, slurm.folder / "munge.key"
    host, ports = socket.gethostname().split(".")[0], [_free_port() for _ in range(3)]
    text = _CONFIGURATION.format(folder=folder, host=host, ports=ports)
    (folder / "slurm.conf").write_text(text)
    (folder / "state").mkdir()
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    names = ("socket", "pid-file", "log-file", "seed-file")
    files = [f"--{name}={folder}/munge.{name.removesuffix('-file')}" for name in names]
    slurmds = [["slurmd", "-D", "-N", node] for node in NODES]
    munge = ["munged", "--foreground", "--force", f"--key-file={key}", *files]
    for command in (munge, ["slurmctld", "-D"], *slurmds):
        with (folder / f"{command[0]}-{command[-1][-2:]}.out").open("w") as out:
            daemons.append(
                subprocess.Popen(
                    command,
                    env=slurm.environment,
                    stdout=out,
                    stderr=out,
                    start_new_session=True,  # Ctrl-C is for the test, which ends them
                )
            )
        if command is munge:
            slurm.wait_for("munge listens", (folder / "munge.socket").exists, 10)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]
