"""Files that are read at offsets, from many threads: any number may be known, few are open."""

import os
import resource
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import ClassVar, Protocol, TypeVar, runtime_checkable

from stillroom.errors import DamageError

_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW  # a FIFO would block
_ASK_S = 10.0  # a file that may go is asked for again after so long: it is in use
_MAX_OPEN = resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2  # the rest is for others
_Value = TypeVar("_Value")


@runtime_checkable
class Fetch(Protocol):
    """Has a file here that may be elsewhere; a copy that is `damaged` goes first."""

    def __call__(self, damaged: DamageError | None = None) -> bool:
        """Return whether it had to be brought; False for what is no copy."""
        ...


class Descriptor:
    """An open file, `number` to the system; closed with its last reference: under no reader."""

    def __init__(self, path: Path) -> None:
        self.number = os.open(path, _FLAGS)
        # not in __del__, in which weak references, and so other threads, still find this
        weakref.finalize(self, os.close, self.number)


def read_fetched(fetch: Fetch, read: Callable[[], _Value]) -> _Value:
    """Return what is read of files once they are here; a damaged copy is brought again, once."""
    fetch()
    try:
        return read()
    except DamageError as error:
        if not fetch(error):
            raise
    return read()


class RandomAccessFile:
    """A file that is opened when it is read, and closed once many others were opened since.

    `fetch` is told by being called that the file is in use.
    """

    _recent: ClassVar[deque[Descriptor]] = deque(maxlen=_MAX_OPEN)  # the only lasting references

    def __init__(self, path: Path, fetch: Fetch | None = None) -> None:
        self.path, self._fetch, self._ask_at = path, fetch, 0.0
        self._last: weakref.ref[Descriptor] | None = None
        self._lock, self._renewing = threading.Lock(), threading.Lock()

    def read(self, take: Callable[[int], _Value]) -> _Value:
        """Return what `take` makes of the open file; where that is damage, and the file a copy, it
        is brought again and read once more. Raises DamageError.
        """
        opened = self.open()
        try:
            return take(opened.number)
        except DamageError as error:
            if self._fetch is None:
                raise
            with self._renewing:
                is_old = self._last is not None and self._last() is opened
                if is_old and not self._fetch(error):  # no other thread was faster
                    raise
                self.close()
        opened = self.open()
        return take(opened.number)

    def open(self) -> Descriptor:
        """Return the open file, to be held while it is read; DamageError where it is gone."""
        if self._fetch is not None and (now := time.monotonic()) > self._ask_at:
            self._fetch()
            self._ask_at = now + _ASK_S
        last = self._last
        return (None if last is None else last()) or self._opened()

    def _opened(self) -> Descriptor:
        with self._lock:  # two threads would open it twice, and close one of both
            last = self._last
            if last is not None and (descriptor := last()) is not None:
                return descriptor
            try:
                descriptor = Descriptor(self.path)
            except FileNotFoundError:
                if self._fetch is None or not self._fetch():  # it may have gone since it was asked
                    raise DamageError(f"{self.path} is missing") from None
                descriptor = Descriptor(self.path)
            self._last = weakref.ref(descriptor)
            self._recent.append(descriptor)
            return descriptor

    def close(self) -> None:
        """Close the file as soon as nobody reads it; also done when this is collected."""
        last, self._last = self._last, None
        if last is not None and (descriptor := last()) is not None:
            with suppress(ValueError):  # others were opened since
                self._recent.remove(descriptor)

    __del__ = close

    @classmethod
    def forget_removed(cls) -> None:
        """Close files that have no name any more, so that the disk has their space."""
        for descriptor in tuple(cls._recent):
            if os.fstat(descriptor.number).st_nlink == 0:
                with suppress(ValueError):
                    cls._recent.remove(descriptor)
