"""Round numbers for plans: what a row costs, where and how long."""

from types import SimpleNamespace

import pytest


@pytest.fixture
def numbers():
    """`costs` and `setting` with round numbers, and the class of a codec's cost."""
    from stillroom.planning.arithmetic import CodecCost, Costs, Setting

    big = CodecCost(
        row_bytes=10e6,
        error=0.001,
        encode_ms=5.0,
        write_ms=20.0,
        publish_ms=4.0,
        read_ms=6.0,
        decode_ms=2.0,
    )
    costs = Costs(
        teacher_ms=30.0,
        student_ms=10.0,
        teacher_picture_ms=2.0,
        student_picture_ms=4.0,
        picture_bytes=0.1e6,
        write_gb_per_s=1.0,
        read_gb_per_s=2.0,
        shard_s=0.5,
        codecs={"inner": {"float16": big}},
        read_targets=frozenset({"inner"}),
    )
    setting = Setting(
        num_pictures=1000, num_rows=1100, epochs=10, num_shards=4, fit_rows=64, cores=4, readers=4
    )
    return SimpleNamespace(costs=costs, setting=setting, big=big)
