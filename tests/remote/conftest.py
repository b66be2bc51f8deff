"""A real S3 server process (moto's) for the tests of this folder; each has a bucket of its own."""

import http.client
import math
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
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
        asked = http.client.HTTPConnection("127.0.0.1", self.port)
        asked.request("PUT", f"/{name}")
        assert asked.getresponse().status == 200
        asked.close()


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


@pytest.fixture(scope="session")
def pictures(grey_world, tmp_path_factory) -> Any:
    """Eight train shards of three pictures of 4 x 4 px; picture i is all grey level i."""
    return grey_world.pack_grey(tmp_path_factory.mktemp("grey") / "shards", 8)


@pytest.fixture
def claim(grey_world, pictures):
    """Claims a cache of these pictures in a folder, which may be a mirror."""
    return partial(grey_world.claim_grey, pictures)


@pytest.fixture
def write(grey_world, pictures):
    """Writes a shard, in which the target of picture i is i; returns whether it was the first."""
    return partial(grey_world.write_grey, pictures)


@pytest.fixture
def downloads(monkeypatch) -> list[tuple[str, int]]:
    """Name and bytes of each file that is fetched, of tars and teacher shards."""
    seen, plain = [], store.Store.download

    def download(self, name, path, size, sha256):
        plain(self, name, path, size, sha256)
        seen.append((name, size))

    monkeypatch.setattr(store.Store, "download", download)
    return seen


class Proxy(ThreadingHTTPServer):
    """Hands requests on to a server, but for those that `faults` spoils: 500, 503, or "cut" =
    half of the answer and then nothing.
    """

    def __init__(self, to: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.to, self.faults, self.spoilt = to, [], 0
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request, client_address) -> None: ...  # a client that has gone


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_) -> None: ...

    def _hand_on(self) -> None:
        proxy: Any = self.server
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        fault = proxy.faults.pop(0) if proxy.faults else None
        proxy.spoilt += fault is not None
        if isinstance(fault, int):
            self.send_response(fault)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        asked = http.client.HTTPConnection(proxy.to.removeprefix("http://"), timeout=20)
        asked.request(self.command, self.path, body or None, dict(self.headers))
        answer = asked.getresponse()
        data = answer.read()
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                self.send_header(name, value)
        length = answer.getheader("Content-Length") if self.command == "HEAD" else len(data)
        self.send_header("Content-Length", str(length or 0))
        self.end_headers()
        self.wfile.write(data[: len(data) // 2] if fault == "cut" else data)
        self.close_connection = fault == "cut"

    do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = _hand_on


@pytest.fixture
def proxy(s3, monkeypatch) -> Iterator[Proxy]:
    """A proxy before the server, which clients now find in its place."""
    made = Proxy(s3.endpoint)
    use(monkeypatch, made.endpoint)
    yield made
    made.shutdown()
    made.server_close()


class Line:
    """A TCP line to a server, which stays: it goes away with all connections, and comes back."""

    def __init__(self, to: int) -> None:
        self.to, self.port, self.cuts, self._open = to, free_port(), 0, []
        self.left, self.away_s = {"up": math.inf, "down": math.inf}, None
        self._lock = threading.Lock()
        self.come_back()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def cut(self, direction: str, num_bytes: int, away_s: float | None = None) -> None:
        """Go away once so many bytes more have gone "up" or "down"; None = until `come_back`."""
        self.away_s, self.left[direction] = away_s, num_bytes

    def come_back(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def go_away(self) -> None:
        self.left = {"up": math.inf, "down": math.inf}
        for held in (self._listener, *self._open):
            with suppress(OSError):
                held.shutdown(socket.SHUT_RDWR)
            held.close()
        self._open.clear()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client = listener.accept()[0]
            except OSError:  # gone
                return
            server = socket.create_connection(("127.0.0.1", self.to))
            self._open += [client, server]
            for words in ((client, server, "up"), (server, client, "down")):
                threading.Thread(target=self._pump, args=words, daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, direction: str) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 12):
                with self._lock:
                    self.left[direction] -= len(data)
                    if self.left[direction] <= 0:
                        self.cuts += 1
                        self.go_away()
                        if self.away_s is not None:
                            threading.Timer(self.away_s, self.come_back).start()
                        return
                sink.sendall(data)
        with suppress(OSError):
            sink.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def line(s3, monkeypatch) -> Iterator[Line]:
    """A line to the server, at which clients now find it."""
    made = Line(s3.port)
    use(monkeypatch, made.endpoint)
    yield made
    made.go_away()
