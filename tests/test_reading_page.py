"""What docs/reading.md shows is what happens."""

import contextlib
import io
import re
from pathlib import Path

from stillroom.cache import find_caches

PAGE = Path(__file__).resolve().parents[1] / "docs" / "reading.md"


def test_the_code_of_the_page_runs_on_a_cache(tiny_world: Path):
    code = "\n".join(re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.M | re.S))
    assert code.count("cache/people-few-0105ae54") == code.count("shards/people") == 1
    (cache,) = find_caches(tiny_world / "cache")
    code = code.replace("cache/people-few-0105ae54", str(cache.path))
    code = code.replace("shards/people", str(tiny_world / "shards"))
    names: dict = {}
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(compile(code, PAGE.name, "exec"), names)  # noqa: S102  (the page's own code)
    assert names["row"].key == names["picture"].key
    assert names["seen"].image.shape[:2] == cache.geometry
    assert set(names["stored"]) == {f"{name}.value" for name in names["row"].targets}
    assert f"{len(cache)} {{" in printed.getvalue()
