"""Files under a URL: s3://, gs://, az://, http(s):// (read-only), file://.

Reached through obstore, which takes credentials and endpoints from the environment (`AWS_...`,
`GOOGLE_...`, `AZURE_...`). What a server refuses for the moment, or cuts off, is asked for again
with growing pauses for about a minute. Large files come in blocks: a slow network meets no time
limit.
"""

import hashlib
import re
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from stillroom.errors import DamageError, FailureError, UserError, first_line

PATIENCE_S = 60.0  # how long a failing server is asked again
_BLOCK_BYTES = 8 << 20
_BLOCKS = 4  # that are under way at once, of a file
_LISTERS = 16  # small files that are asked for at once
_Answer = TypeVar("_Answer")


def is_url(word: str) -> bool:
    """Whether a word names a place that is reached through a store."""
    return re.match(r"[a-z][a-z0-9]*://", word) is not None


class Store:
    """The files below a URL; safe to share between threads. Raises UserError where nobody may look
    there, FailureError where the server does not answer as it should.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self.is_listable = not url.startswith("http")

    @cached_property
    def _store(self) -> Any:
        return _open(self.url)

    def get(self, name: str) -> bytes | None:
        """Return a small file, None where there is none."""
        import obstore

        try:
            return self._again(name, lambda: bytes(obstore.get(self._store, name).bytes()))
        except FileNotFoundError:
            return None

    def get_many(self, names: Sequence[str]) -> list[bytes | None]:
        """Return several small files."""
        with ThreadPoolExecutor(_LISTERS) as pool:
            return list(pool.map(self.get, names))

    def put(self, name: str, data: bytes | Path, *, replace: bool = True) -> bool:
        """Write a file whole; without `replace`, one that is there stays and False is returned
        (unless it is the same: an answer may have been lost on its way).
        """
        import obstore
        from obstore.exceptions import AlreadyExistsError

        if not self.is_listable:
            raise UserError(f"{self.url} can only be read", fix="write to s3://, gs:// or az://")
        try:
            mode: Any = "overwrite" if replace else "create"
            self._again(name, lambda: obstore.put(self._store, name, data, mode=mode))
        except AlreadyExistsError:
            return self.get(name) == data
        except FileNotFoundError as error:
            raise self._nowhere(error) from None
        return True

    def download(self, name: str, path: Path, size: int, sha256: str) -> None:
        """Write a file here; raises DamageError where it is not the one that is wanted."""
        total = hashlib.sha256()
        starts = range(0, size, _BLOCK_BYTES)
        try:
            with path.open("wb") as file, ThreadPoolExecutor(_BLOCKS) as pool:
                for at in range(0, len(starts), _BLOCKS):
                    few = starts[at : at + _BLOCKS]
                    for block in pool.map(lambda start: self._block(name, start, size), few):
                        file.write(block)
                        total.update(block)
        except FileNotFoundError as error:
            if error.filename is not None:
                raise  # ours
            raise DamageError(f"{self.url}/{name} is missing") from None
        if (found := total.hexdigest()) != sha256:
            what = f"{self.url}/{name} is not the file that was written: its sha256 differs"
            raise DamageError(what, found=found, wanted=sha256)

    def _block(self, name: str, start: int, size: int) -> bytes:
        import obstore

        end = min(size, start + _BLOCK_BYTES)
        if start == 0 and end == size:  # whole, whatever its size is there
            return self._again(name, lambda: bytes(obstore.get(self._store, name).bytes()))

        def read() -> bytes:
            found = obstore.head(self._store, name)["size"] if start == 0 else size
            if found != size:
                what = f"{self.url}/{name} has the wrong size"
                raise DamageError(what, found=found, wanted=size)
            return bytes(obstore.get_range(self._store, name, start=start, end=end))

        return self._again(name, read)

    def names(self, folder: str = "") -> tuple[list[str], list[str]]:
        """Return the names of files and of folders directly below a folder, from one listing."""
        import obstore

        try:
            found = self._again(
                folder, lambda: obstore.list_with_delimiter(self._store, folder or None)
            )
        except FileNotFoundError as error:
            raise self._nowhere(error) from None
        files = [item["path"].rpartition("/")[2] for item in found["objects"]]
        return files, [path.rstrip("/").rpartition("/")[2] for path in found["common_prefixes"]]

    def below(self, folder: str) -> dict[str, datetime]:
        """Return the paths of all files below a folder, and when each was written."""
        import obstore

        found = self._again(folder, lambda: list(obstore.list(self._store, folder)))
        return {item["path"]: item["last_modified"] for some in found for item in some}

    def delete(self, names: Sequence[str]) -> None:
        """Delete files; one that is gone is none the worse."""
        import obstore

        for name in names:
            try:
                self._again(name, lambda name=name: obstore.delete(self._store, name))
            except FileNotFoundError:
                continue

    def _nowhere(self, error: FileNotFoundError) -> UserError:
        fix = "make the bucket, or set the endpoint in the environment"
        return UserError(f"there is no {self.url}", found=_short(error), fix=fix)

    def _again(self, name: str, ask: Callable[[], _Answer]) -> _Answer:
        """Ask until there is an answer or patience ends; what will not change is raised."""
        from obstore import exceptions as known

        until, pause = time.monotonic() + PATIENCE_S, 0.1
        refused = (known.PermissionDeniedError, known.UnauthenticatedError)
        final = (known.AlreadyExistsError, known.PreconditionError, known.NotSupportedError)
        while True:
            try:
                return ask()
            except refused as error:
                raise UserError(
                    f"{self.url} may not be read or written with these credentials",
                    found=_short(error),
                    fix="set the environment's (AWS_ACCESS_KEY_ID, AZURE_STORAGE_ACCOUNT_KEY,"
                    " GOOGLE_APPLICATION_CREDENTIALS and the like), or its endpoint",
                ) from None
            except final:
                raise
            except known.BaseError as error:
                if "404 Not Found" in str(error):  # Azure's, of a list where there is no container
                    raise FileNotFoundError(_short(error)) from None
                if time.monotonic() + pause > until:
                    raise FailureError(
                        f"{self.url} does not give or take {name or 'its list of names'}",
                        found=f"{_short(error)}, again for {PATIENCE_S:.0f} s",
                        fix="see to the server, the network and the endpoint in the environment,"
                        " then run the same command again: nothing is lost",
                    ) from None
            time.sleep(pause)
            pause = min(2 * pause, 5.0)


def _open(url: str) -> Any:
    from obstore.store import from_url

    client: Any = {} if url.startswith(("file:", "memory:")) else {
        "client_options": {"timeout": "30s", "connect_timeout": "5s", "allow_http": True},
        "retry_config": {"max_retries": 3, "retry_timeout": timedelta(seconds=PATIENCE_S / 4)},
    }  # fmt: skip
    if url.startswith("file:"):
        client["mkdir"] = True
    try:
        return from_url(url, **client)
    except Exception as error:  # whatever an address or an environment can be wrong in
        raise UserError(
            f"{url} cannot be opened",
            found=_short(error),
            wanted="s3://BUCKET/PATH, gs://, az:// or https://HOST/PATH, and what belongs to it in"
            " the environment (AWS_REGION, AZURE_STORAGE_ACCOUNT_NAME and the like)",
        ) from None


def _short(error: BaseException) -> str:
    """Return the first line of what obstore says, without the page that a server sent along."""
    return re.sub(r"\s*<\?xml.*|\s*<html.*", "", first_line(error))[:300]
