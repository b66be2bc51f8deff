"""Whatever the operating system refuses is told as what, found and fix, with the right status."""

import errno
import os
from pathlib import Path

import pytest

from stillroom.errors import FailureError, StillroomError, UserError
from stillroom.os_errors import explain_os_errors, free_bytes


def told(number: int, cache: Path, filename: str | None = None) -> StillroomError:
    with pytest.raises((UserError, FailureError)) as caught, explain_os_errors("it ended", cache):
        raise OSError(number, os.strerror(number), filename)
    assert isinstance(caught.value.__cause__, OSError)
    return caught.value


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_a_failure_that_says_how_much_is_free(tmp_path, number):
    error = told(number, tmp_path)
    assert isinstance(error, FailureError)
    assert f"it ended: the disk of {tmp_path} is full" in str(error)
    assert os.strerror(number) in str(error)
    assert "MB free" in str(error)
    assert "--run.cache" in str(error)


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM, errno.EROFS])
def test_a_place_that_may_not_be_used_is_the_users_to_mend_and_is_named(tmp_path, number):
    (tmp_path / "cache" / "tmp").mkdir(parents=True)
    error = told(number, tmp_path / "cache", str(tmp_path / "cache" / "tmp" / "x"))
    assert isinstance(error, UserError)
    assert f"{tmp_path / 'cache' / 'tmp'} may not be read or written" in str(error)
    assert "--run.cache" in str(error.fix)


def test_a_picture_that_may_not_be_read_is_not_blamed_on_the_cache(tmp_path):
    (tmp_path / "shards").mkdir()
    error = told(errno.EACCES, tmp_path / "cache", str(tmp_path / "shards"))
    assert f"{tmp_path / 'shards'} may not be read" in str(error)
    assert "--run.cache" not in str(error)


@pytest.mark.parametrize("number", [errno.EEXIST, errno.ENOTDIR])
def test_a_file_where_a_folder_should_be_is_the_users_mistake(tmp_path, number):
    assert "cannot be a folder" in str(told(number, tmp_path))
    assert isinstance(told(number, tmp_path), UserError)


def test_too_many_open_files_names_the_limit_and_how_to_raise_it(tmp_path):
    error = told(errno.EMFILE, tmp_path)
    assert isinstance(error, FailureError)
    assert "ulimit -n" in str(error)


def test_any_other_refusal_is_a_failure_with_the_systems_own_words(tmp_path):
    error = told(errno.EIO, tmp_path)
    assert isinstance(error, FailureError)
    assert os.strerror(errno.EIO) in str(error)


def test_another_place_is_named_by_its_own_flag(tmp_path):
    with (
        pytest.raises(FailureError, match=r"name another place with --run\.out, then again"),
        explain_os_errors("it ended", tmp_path, "--run.out", "then again"),
    ):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_what_is_no_refusal_passes_unchanged(tmp_path):
    with pytest.raises(UserError, match=r"^mine$"), explain_os_errors("it ended", tmp_path):
        raise UserError("mine")


def test_free_space_is_known_before_the_folder_exists(tmp_path):
    assert free_bytes(tmp_path / "not" / "there") > 0
