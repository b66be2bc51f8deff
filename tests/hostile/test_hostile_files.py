"""Every hostile file is refused soon and small, and nothing that is read is ever run.

What is legal and odd is accepted. `benchmarks/hostile_inputs.py` keeps the figures of all cases.
That no file of ours calls what runs or fetches is the linter's rule (S102 to S605).
"""

import subprocess
import sys
from pathlib import Path

import pytest

CASES = Path(__file__).with_name("cases.py")


@pytest.mark.timeout(600)
@pytest.mark.parametrize("every", [4, pytest.param(1, marks=pytest.mark.slow)])
def test_every_hostile_file_is_refused_for_its_own_reason_soon_and_small(every):
    command = [sys.executable, str(CASES), str(every)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
    assert int(done.stdout.splitlines()[-1].split()[0]) * every > 120


# Python itself reports such acts; torch's own restricted unpickler is written in Python.
READ_ALL = """
import pickle, sys, tempfile
from pathlib import Path
sys.path.insert(0, {here!r})
import cases, world

watched = ("pickle.find_class", "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.forkpty",
           "subprocess.Popen", "socket.connect", "socket.getaddrinfo", "urllib.Request",
           "shutil.unpack_archive", "code.__new__")
folder = Path(tempfile.mkdtemp(), "world")
folder.mkdir()
world.make_world(folder)
for way in cases.WAYS:  # what is imported on the way may do as it likes
    if way is not world.pack_again:
        way(folder)

is_armed, happened = True, []

def hook(event, arguments):
    if is_armed and event in watched:
        refuse(event)

def refuse(*what, **more):
    happened.append(what)
    raise RuntimeError(what)

sys.addaudithook(hook)
pickle.Unpickler, pickle._Unpickler, pickle.load, pickle.loads = [refuse] * 4
for way in cases.WAYS:
    way(folder)
is_armed = False
assert not happened, happened
is_armed = True
try:
    import _pickle
    _pickle.loads(b"cos\\nsystem\\n.")
except RuntimeError:
    print("read without unpickling; the watch is awake")
"""


def test_everything_is_read_without_unpickling_starting_or_fetching_anything(tmp_path):
    command = [sys.executable, "-c", READ_ALL.format(here=str(CASES.parent))]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "the watch is awake" in done.stdout
