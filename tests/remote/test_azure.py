"""Both stages in a container of Azure's emulator, Azurite; needs it on PATH, or at $AZURITE.

npm install --global azurite
"""

import base64
import hmac
import http.client
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from email.utils import formatdate
from pathlib import Path

import pytest

from stillroom.checking.run_check import CheckOptions, run_check
from stillroom.errors import UserError
from stillroom.extraction.extract import cache_teacher
from stillroom.extraction.process import ProcessContext
from stillroom.jsonfile import file_sha256
from stillroom.remote.store import Store
from stillroom.training.loop import train

ACCOUNT = "devstoreaccount1"  # with a key that is no secret
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="


def make_container(port: int, name: str) -> None:
    said = f"x-ms-date:{formatdate(usegmt=True)}\nx-ms-version:2021-08-06\n"
    text = "PUT" + "\n" * 12 + said + f"/{ACCOUNT}/{ACCOUNT}/{name}\nrestype:container"
    digest = hmac.digest(base64.b64decode(KEY), text.encode(), "sha256")
    headers = dict(line.split(":", 1) for line in said.splitlines())
    headers["Authorization"] = f"SharedKey {ACCOUNT}:{base64.b64encode(digest).decode()}"
    asked = http.client.HTTPConnection("127.0.0.1", port)
    asked.request("PUT", f"/{ACCOUNT}/{name}?restype=container", headers=headers)
    assert asked.getresponse().status == 201
    asked.close()


@pytest.fixture
def container(monkeypatch, tmp_path) -> Iterator[str]:
    """The URL of an empty container."""
    pytest.importorskip("obstore")
    program = os.environ.get("AZURITE") or shutil.which("azurite-blob")
    if program is None or shutil.which("node") is None:
        pytest.skip("no azurite-blob on PATH nor at $AZURITE")
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
    words = [program, "--inMemoryPersistence", "--skipApiVersionCheck", "--silent"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": tmp_path}
    process = subprocess.Popen([*words, "--blobPort", str(port)], **quiet)
    until = time.monotonic() + 60
    while True:
        try:
            make_container(port, "box")
            break
        except OSError:
            assert process.poll() is None and time.monotonic() < until
            time.sleep(0.1)
    monkeypatch.setenv("AZURE_STORAGE_USE_EMULATOR", "true")
    monkeypatch.setenv("AZURITE_BLOB_STORAGE_URL", f"http://127.0.0.1:{port}")
    yield "az://box"
    process.kill()
    process.wait()


def test_what_is_wrong_is_the_user_s_mistake_and_said_at_once(container, monkeypatch):
    with pytest.raises(UserError, match="there is no az://nowhere"):
        Store("az://nowhere/x").names()
    with pytest.raises(UserError, match="there is no az://nowhere"):
        Store("az://nowhere/x").put("a", b"")
    monkeypatch.delenv("AZURE_STORAGE_USE_EMULATOR")
    with pytest.raises(UserError, match="AZURE_STORAGE_ACCOUNT_NAME"):
        Store("az://box/x").get("a")
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", ACCOUNT)
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", "d3Jvbmc=")
    there = os.environ["AZURITE_BLOB_STORAGE_URL"]
    monkeypatch.setenv("AZURE_STORAGE_ENDPOINT", f"{there}/{ACCOUNT}")
    with pytest.raises(UserError, match="may not be read or written"):
        Store("az://box/x").get("a")


def test_both_stages_and_a_check_work_in_a_container(
    tiny_recipe, container, upload, tiny_world, tmp_path
):
    upload(tiny_world / "shards", f"{container}/shards")
    run = replace(tiny_recipe.run, cache=f"{container}/cache", local=str(tmp_path / "local"))
    data = replace(tiny_recipe.data, shards=f"{container}/shards")
    recipe = replace(tiny_recipe, data=data, run=replace(run, name="far"))
    cache = cache_teacher(recipe, ProcessContext())
    assert cache.is_complete
    result = run_check(run.place(run.cache), recipe, None, CheckOptions(gc=True))
    assert result.is_well and result.num_shards == len(cache.shard_ids()) and not result.removed
    there = Store(f"{container}/cache/{cache.path.name}")
    assert not there.put("train-000000.json", b"of a second writer", replace=False)
    shutil.rmtree(tmp_path / "local")  # what follows reads the container
    train(recipe)
    train(replace(tiny_recipe, run=replace(tiny_recipe.run, name="near")))
    students = [tmp_path / "runs" / name / "student.safetensors" for name in ("far", "near")]
    assert len({file_sha256(Path(student)) for student in students}) == 1
    assert list((tmp_path / "local").rglob("train-000000.tar"))
