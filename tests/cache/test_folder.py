"""One folder has one identity, and stage 2 finds exactly one cache or says why not."""

import math
from dataclasses import fields
from pathlib import Path
from typing import get_args

import pytest
import torch
from safetensors.torch import save

from stillroom.cache import Cache, claim_cache, find_caches, match_cache, open_cache
from stillroom.cache.folder import BODIES
from stillroom.cli import recipe_from
from stillroom.errors import DamageError, UserError
from stillroom.jsonfile import read_json, write_json
from stillroom.recipe import Recipe
from stillroom.types import ShardId

DIGEST = "ef" * 32


def test_the_folder_is_named_by_name_and_fingerprint(tmp_path: Path, make):
    identity = make.identity()
    cache = claim_cache(tmp_path, "people", identity)
    data = (cache.path / "identity.json").read_bytes()
    assert cache.fingerprint.encode() == data[-67:-3]
    assert cache.path == tmp_path / f"people-{cache.fingerprint[:8]}"
    assert cache.identity == identity
    again = claim_cache(tmp_path, "people", identity)
    assert again.path == cache.path and (cache.path / "identity.json").read_bytes() == data


def test_the_recipe_can_ask_for_every_body_there_is():
    bodies = next(field.type for field in fields(Recipe) if field.name == "body")
    assert get_args(bodies) == tuple(BODIES)
    assert recipe_from(["tiny", "--body", "tar"]).body == "tar"


def test_anything_that_could_change_a_row_changes_the_fingerprint(tmp_path: Path, make):
    def with_target(**changes):
        targets = make.identity()["targets"]
        targets["mask"] = targets["mask"] | changes
        return make.identity(targets=targets)

    teacher = make.identity()["targets"]["mask"]["teacher"]
    identities = [
        make.identity(),
        make.identity(geometry=(40, 32)),
        make.identity(calibration=["a"]),
        make.identity(pictures=make.identity()["pictures"] | {"digest": "00" * 32}),
        with_target(teacher=teacher | {"weights_sha256": "00" * 32}),
        with_target(teacher=teacher | {"mean": [0.5, 0.5, 0.4]}),
        with_target(stride=16),
        with_target(kind="features"),
    ]
    paths = {claim_cache(tmp_path, "people", identity).path for identity in identities}
    assert len(paths) == len(identities)


def test_two_identities_in_one_folder_are_refused_with_both_sides(tmp_path: Path, make):
    mine, theirs = make.identity(), make.identity(geometry=(64, 80))
    cache = claim_cache(tmp_path, "people", mine)
    write_json(cache.path / "identity.json", theirs)
    with pytest.raises(UserError) as caught:
        claim_cache(tmp_path, "people", mine)
    assert "geometry.height = 64" in str(caught.value)
    assert "geometry.height = 32" in str(caught.value)
    assert read_json(cache.path / "identity.json") == theirs


def test_a_cache_named_exactly_is_that_one_or_refused_and_nothing_is_nested_in_it(
    tmp_path: Path, make
):
    cache = claim_cache(tmp_path, "people", make.identity())
    before = sorted(path.name for path in cache.path.iterdir())
    assert claim_cache(cache.path, "people", make.identity()).path == cache.path
    assert claim_cache(cache.path, "renamed", make.identity()).path == cache.path
    with pytest.raises(UserError, match="was made for something else") as refused:
        claim_cache(cache.path, "people", make.identity(geometry=(64, 40)))
    assert "geometry.height = 32" in str(refused.value.found)
    assert "geometry.height = 64" in str(refused.value.wanted)
    assert f"--run.cache {tmp_path}" in str(refused.value.fix)
    assert sorted(path.name for path in cache.path.iterdir()) == before


def test_a_cache_may_be_named_exactly_before_it_exists(tmp_path: Path, make):
    wanted = claim_cache(tmp_path / "elsewhere", "people", make.identity()).path.name
    (tmp_path / wanted / "tmp").mkdir(parents=True)  # as one leaves it who dies too early
    assert claim_cache(tmp_path / wanted, "people", make.identity()).path == tmp_path / wanted
    assert not list((tmp_path / wanted).glob("people-*"))


@pytest.mark.parametrize("name", ["", "a/b", "..", "a b", "-x"])
def test_names_that_are_no_folder_are_refused(tmp_path: Path, make, name: str):
    with pytest.raises(UserError, match="name"):
        claim_cache(tmp_path, name, make.identity())


@pytest.mark.parametrize(
    ("member", "value"),
    [
        ("geometry", {"height": 0, "width": 5}),
        ("geometry", {"height": 10**12, "width": 5}),
        ("geometry", None),
        ("views", {"class": "Views", "count": 0, "regions": False}),
        ("views", {"class": "Views", "regions": False}),
        ("targets", {}),
        ("pictures", {"digest": DIGEST, "shards": []}),
        ("calibration", ["../x y"]),
        ("body", "gopher"),
        ("format", "stillroom cache 2"),
        ("surprise", 1),
    ],
)
def test_identities_with_impossible_members_are_refused(tmp_path: Path, make, member, value):
    identity = make.identity() | {member: value}
    write_json(tmp_path / "identity.json", identity)
    with pytest.raises(UserError):
        open_cache(tmp_path)


@pytest.mark.parametrize(
    ("member", "value"),
    [
        ("shape", [10**12, 4, 5]),
        ("shape", [1 << 20, 1 << 20, 1]),
        ("shape", [4, 5]),
        ("shape", [0, 4, 5]),
        ("shape", [1.0, 4, 5]),
        ("shape", "123"),
        ("stride", 0),
        ("kind", "probabilities"),
        ("codec", "pickle"),
        ("teacher", "resnet"),
        ("extra", 1),
    ],
)
def test_targets_with_impossible_members_are_refused(tmp_path: Path, make, member, value):
    identity = make.identity()
    identity["targets"]["mask"][member] = value
    with pytest.raises(UserError):
        claim_cache(tmp_path, "people", identity)
    write_json(tmp_path / "identity.json", identity)
    with pytest.raises(UserError):
        open_cache(tmp_path)


@pytest.mark.parametrize("name", ["Mask", "../mask", "mask.value", "", "1"])
def test_target_names_never_leave_the_folder(tmp_path: Path, make, name: str):
    identity = make.identity()
    identity["targets"][name] = identity["targets"]["mask"]
    with pytest.raises(UserError, match="not an identity"):
        claim_cache(tmp_path, "people", identity)


@pytest.mark.parametrize(
    "changes", [{"number": -1}, {"number": 10**6}, {"rows": 0}, {"split": "../x"}, {"rows": True}]
)
def test_shards_with_impossible_members_are_refused(tmp_path: Path, make, changes):
    identity = make.identity()
    identity["pictures"]["shards"][0] |= changes
    with pytest.raises(UserError):
        claim_cache(tmp_path, "people", identity)


def test_a_damaged_identity_is_damage(tmp_path: Path, make):
    cache = claim_cache(tmp_path, "people", make.identity())
    path = cache.path / "identity.json"
    path.write_bytes(path.read_bytes().replace(b'"height":32', b'"height":33'))
    with pytest.raises(DamageError, match="identity"):
        open_cache(cache.path)
    with pytest.raises(UserError, match="not a cache"):
        open_cache(tmp_path / "absent")


def test_not_a_number_has_no_place_in_an_identity(make):
    targets = make.identity()["targets"]
    targets["mask"]["teacher"]["mean"] = [math.nan]
    with pytest.raises(ValueError, match="JSON"):
        make.identity(targets=targets)


def test_the_first_fitted_values_win_and_everyone_loads_them(tmp_path: Path, make):
    first = claim_cache(tmp_path, "people", make.identity())
    second = claim_cache(tmp_path, "people", make.identity())
    assert not first.is_fitted
    with pytest.raises(UserError, match="never fitted"):
        first.shard_spec(ShardId("train", 0))
    first.publish_fitted({"mask": {"step": torch.tensor([0.5])}})
    second.publish_fitted({"mask": {"step": torch.tensor([0.7])}})
    assert first.is_fitted and first.codecs_sha256 == second.codecs_sha256
    for cache in (first, second):
        assert cache.fitted["detector"] == {}
        assert torch.equal(cache.fitted["mask"]["step"], torch.tensor([0.5]))


def test_fitted_values_of_no_target_are_damage_and_named_in_short(tmp_path: Path, make):
    cache = claim_cache(tmp_path, "people", make.identity())
    tensors = {"mask/step": torch.ones(1), f"{'stranger' * 20}/step": torch.ones(1)}
    (cache.path / "codecs.safetensors").write_bytes(save(tensors))
    with pytest.raises(DamageError, match="values of no target") as caught:
        _ = cache.fitted
    assert caught.value.found == "stranger" * 10


def teachers_of(cache: Cache) -> dict[str, dict]:
    return {name: entry["teacher"] for name, entry in cache.identity["targets"].items()}


def test_the_one_cache_that_fits_is_found_below_a_root_or_by_its_own_path(tmp_path: Path, make):
    cache = make.cache(tmp_path, "people")
    assert [found.path for found in find_caches(tmp_path)] == [cache.path]
    for root in (tmp_path, cache.path):
        assert match_cache(root, DIGEST, (32, 40), teachers_of(cache)).path == cache.path
        partial = {"mask": {"class": "Fake", "mean": (0.5, 0.5, 0.5)}}
        assert match_cache(root, DIGEST, None, partial).path == cache.path


def test_a_cache_that_cannot_be_opened_is_told_and_passed_over(tmp_path: Path, make, capsys):
    good, bad = (claim_cache(tmp_path, name, make.identity()) for name in ("b", "a"))
    (bad.path / "identity.json").write_text("{}")
    assert [found.path for found in find_caches(tmp_path)] == [good.path]
    assert f"warning: the cache {bad.path} is passed over: " in capsys.readouterr().out


def test_no_cache_at_all_names_the_command(tmp_path: Path):
    assert find_caches(tmp_path / "absent") == ()
    with pytest.raises(UserError, match="stillroom cache"):
        match_cache(tmp_path, DIGEST, None, {"mask": {}})


def test_none_that_fits_shows_the_nearest_with_both_sides(tmp_path: Path, make):
    far = claim_cache(tmp_path, "far", make.identity(geometry=(64, 64)))
    near = claim_cache(tmp_path, "near", make.identity())
    wanted = teachers_of(near)
    wanted["mask"] = wanted["mask"] | {"weights_sha256": "00" * 32}
    with pytest.raises(UserError) as caught:
        match_cache(tmp_path, DIGEST, (32, 40), wanted)
    text = str(caught.value)
    assert str(near.path) in text and str(far.path) not in text
    assert "= abab" in text and "= 0000" in text and "teacher of mask.weights_sha256" in text


@pytest.mark.parametrize(
    ("digest", "geometry", "teachers"),
    [
        ("00" * 32, (32, 40), {"mask": {}}),
        (DIGEST, (40, 32), {"mask": {}}),
        (DIGEST, (32, 40), {"absent": {}}),
        (DIGEST, (32, 40), {"mask": {"class": "Fake", "tensor": "x"}}),
        (DIGEST, (32, 40), {"mask": {"mean": [0.5, 0.5]}}),
    ],
)
def test_each_thing_that_must_match_is_compared(tmp_path: Path, make, digest, geometry, teachers):
    claim_cache(tmp_path, "people", make.identity())
    assert match_cache(tmp_path, DIGEST, (32, 40), {"mask": {}})
    with pytest.raises(UserError, match="none of the 1"):
        match_cache(tmp_path, digest, geometry, teachers)


def test_several_that_fit_are_listed(tmp_path: Path, make):
    caches = [claim_cache(tmp_path, name, make.identity()) for name in ("a", "b")]
    with pytest.raises(UserError, match="2 caches fit") as caught:
        match_cache(tmp_path, DIGEST, None, teachers_of(caches[0]))
    assert all(str(cache.path) in str(caught.value) for cache in caches)
    assert match_cache(caches[1].path, DIGEST, None, {"mask": {}}).path == caches[1].path


def test_of_caches_that_differ_only_in_their_body_the_asked_one_is_taken(tmp_path: Path, make):
    zarr = claim_cache(tmp_path, "people", make.identity(body="zarr"))
    teachers = teachers_of(zarr)
    assert match_cache(tmp_path, DIGEST, None, teachers, body="tar").path == zarr.path
    tar = claim_cache(tmp_path, "people", make.identity(body="tar"))
    assert zarr.path != tar.path
    for cache, body in ((zarr, "zarr"), (tar, "tar")):
        assert match_cache(tmp_path, DIGEST, None, teachers, body=body).path == cache.path
    claim_cache(tmp_path, "more", make.identity(body="tar", calibration=["a"]))
    with pytest.raises(UserError, match="3 caches fit"):
        match_cache(tmp_path, DIGEST, None, teachers, body="tar")


def test_the_manifest_follows_from_the_shards_alone(tmp_path: Path, make):
    cache = make.cache(tmp_path / "a")
    assert not cache.is_complete and cache.finalize() and cache.is_complete
    path = cache.path / "manifest.json"
    data = path.read_bytes()
    body = read_json(path)
    assert body["rows"] == 13
    assert [(s["split"], s["number"], s["rows"]) for s in body["shards"]] == [
        ("train", 0, 5),
        ("train", 1, 5),
        ("val", 0, 3),
    ]
    for entry, shard_id in zip(body["shards"], cache.shard_ids(), strict=True):
        tail = (cache.path / f"{shard_id}{cache.body.suffix}/shard.json").read_bytes()[-67:-3]
        assert entry["sha256"].encode() == tail
    path.unlink()
    assert open_cache(cache.path).finalize() and path.read_bytes() == data


def test_a_manifest_that_is_older_than_a_shard_is_written_anew(tmp_path: Path, make):
    cache = make.cache(tmp_path)
    assert cache.finalize()
    path = cache.path / "manifest.json"
    data = path.read_bytes()
    cache.quarantine(ShardId("val", 0), "to be made with another provenance")
    assert not path.exists()
    path.write_bytes(data)  # as another process would that had listed the shards before
    assert not cache.is_complete
    with cache.writer(ShardId("val", 0)) as writer:
        for i in range(3):
            said = make.values(cache, ShardId("val", 0), i)
            writer.append(make.row(ShardId("val", 0), i), said, make.statistics(said), pixels=0)
        assert writer.publish({"device": "another"})
    assert cache.finalize() and path.read_bytes() != data
