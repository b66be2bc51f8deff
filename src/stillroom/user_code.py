"""Functions in a user's own files: recipes, and the networks that only the user's code can build.

Such a file is code and is run; only what the user names is, never what stands in a run folder.
"""

import functools
import importlib.util
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from stillroom.errors import StillroomError, UserError

_WANTED = "path/to/file.py:function"


def load_function(name: str) -> Callable[[], Any]:
    """Return the function that `path/to/file.py:function` names; a file runs once a process.

    What the file or the function raises is a UserError.
    """
    path, _, function = name.rpartition(":")
    if not Path(path).is_file():
        raise UserError(f"there is no file {path or name}", found=name, wanted=_WANTED)
    found = getattr(_module(str(Path(path).resolve())), function, None)
    if not callable(found):
        raise UserError(f"{path} has no function {function}", wanted=_WANTED)

    def called() -> Any:
        with _told(path):
            return found()

    return called


@contextmanager
def _told(path: str) -> Iterator[None]:
    """Within, what a user's file raises becomes a UserError that names its line."""
    try:
        yield
    except StillroomError:
        raise
    except Exception as error:  # a user's code raises what it likes
        frames = traceback.extract_tb(error.__traceback__)
        lines = [f.lineno for f in frames if Path(f.filename).resolve() == Path(path).resolve()]
        at = f" (line {lines[-1]})" if lines else ""
        what = f"{path} cannot be run{at}"
        found = f"{type(error).__name__}: {error}"
        raise UserError(what, found=found, fix="mend it; --debug shows more") from error


@functools.cache
def _module(path: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path, path)
    if spec is None or spec.loader is None:
        raise UserError(f"{path} is not a Python file", wanted=_WANTED)
    module = importlib.util.module_from_spec(spec)
    sys.modules[path] = module  # dataclasses look there for the names in their annotations
    with _told(path):
        spec.loader.exec_module(module)
    return module
