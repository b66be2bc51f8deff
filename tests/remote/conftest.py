"""A real S3 server process (moto's) for the tests of this folder; each has a bucket of its own."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stillroom.remote import store


def free_port() -> int:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return held.getsockname()[1]


class S3Server:
    """moto's server on one port; `kill` and `start` lose what it held, `pause` and `go_on` do not:
    to a client a stopped process is a server that does not answer.
    """

    def __init__(self) -> None:
        self.port = free_port()
        self.process: subprocess.Popen | None = None
        self.start()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        words = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen(words, **quiet)
        until = time.monotonic() + 30
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return
            except OSError:
                assert self.process.poll() is None and time.monotonic() < until
                time.sleep(0.05)

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def pause(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)

    def make_bucket(self, name: str) -> None:
        asked = urllib.request.Request(f"{self.endpoint}/{name}", method="PUT")
        urllib.request.urlopen(asked).close()


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    pytest.importorskip("obstore")
    pytest.importorskip("moto")
    pytest.importorskip("flask")
    server = S3Server()
    yield server
    server.kill()


@pytest.fixture
def s3(s3_server: S3Server, monkeypatch, tmp_path) -> Any:
    """The server, with `url` of a fresh bucket; clients find it in the environment."""
    bucket = f"b{uuid.uuid4().hex[:12]}"
    s3_server.make_bucket(bucket)
    s3_server.url = f"s3://{bucket}"
    use(monkeypatch, s3_server.endpoint)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user-cache"))
    monkeypatch.setattr(store, "PATIENCE_S", 5.0)
    return s3_server


def use(monkeypatch, endpoint: str) -> None:
    values = {
        "AWS_ACCESS_KEY_ID": "any",
        "AWS_SECRET_ACCESS_KEY": "any",
        "AWS_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ALLOW_HTTP": "true",
    }
    for name, value in values.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def upload():
    """Copies a folder's files below a URL."""

    def copy(folder: Path, url: str) -> None:
        there = store.Store(url)
        for parent, _, names in os.walk(folder):
            for name in names:
                path = Path(parent, name)
                there.put(path.relative_to(folder).as_posix(), path.read_bytes())

    return copy
