"""One call at a time in a thread of its own: shards are published while the teachers go on."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor


class Background:
    """A context manager; leaving it waits for the call under way and raises what that raised, but
    for a KeyboardInterrupt, which is raised at once.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="publish")
        self._under_way: Future[None] | None = None

    def begin(self, call: Callable[[], None]) -> None:
        """Begin a call; the one before must have been waited for."""
        assert self._under_way is None
        self._under_way = self._pool.submit(call)

    def look(self) -> None:
        """Raise what the call raised, if it has ended."""
        if self._under_way is not None and self._under_way.done():
            self.wait()

    def wait(self) -> None:
        """Wait until the call has ended, and raise what it raised."""
        call, self._under_way = self._under_way, None
        if call is not None:
            call.result()

    def __enter__(self) -> "Background":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        waits = kind is not KeyboardInterrupt
        try:
            if waits:
                self.wait()
        except KeyboardInterrupt:
            waits = False
            raise
        finally:
            self._pool.shutdown(waits)
