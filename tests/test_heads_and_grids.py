"""Heads of their own, taps averaged to a stride and balanced classes go through both stages."""

import json
import shutil
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from stillroom.cache import find_caches
from stillroom.cli import recipe_from
from stillroom.errors import UserError
from stillroom.extraction.extract import cache_teacher
from stillroom.extraction.process import ProcessContext
from stillroom.pictures.class_pixels import class_pixels
from stillroom.pictures.dataset import open_pictures
from stillroom.recipe import Recipe
from stillroom.training.loop import train
from stillroom.training.setup import prepare, with_class_counts

FILE = Path(__file__).parent / "using" / "own_heads.py"


@pytest.fixture(scope="module")
def recipe(tiny_world, tmp_path_factory) -> Recipe:
    """The recipe over pictures of its own, with its cache."""
    folder = tmp_path_factory.mktemp("heads")
    shutil.copytree(tiny_world / "shards", folder / "shards")
    flags = {
        "data.shards": folder / "shards",
        "run.cache": folder / "cache",
        "run.out": folder / "runs",
        "run.device": "cpu",
        "batch": 8,
        "micro-batch": 4,
        "epochs": 1,
        "gate": "off",
    }
    words = [word for flag, value in flags.items() for word in (f"--{flag}", str(value))]
    made = recipe_from([f"{FILE}:recipe", *words])
    assert cache_teacher(made, ProcessContext()).is_complete
    return made


def test_a_tap_is_kept_at_the_stride_that_it_is_averaged_to(recipe):
    (cache,) = find_caches(Path(recipe.run.cache))
    specs = cache.specs
    assert (specs["inner"].shape, specs["inner"].stride) == ((12, 4, 6), 8)
    assert (specs["said_round"].shape, specs["said_round"].stride) == ((2, 8, 12), 4)
    assert cache.identity["targets"]["inner"]["teacher"]["tensor"] == {
        "tensor": "stem",
        "stride": 8,
    }
    plain = replace(
        recipe.teachers[0], outputs=(*recipe.teachers[0].outputs[:2], ("inner", "stem"))
    )
    with pytest.raises(UserError, match=r"teacher of inner\.tensor"):
        prepare(replace(recipe, teachers=(plain,)))


def test_every_term_trains_its_head(recipe):
    before = {n: p.clone() for n, p in prepare(recipe).distiller.student.state_dict().items()}
    run = train(recipe)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    terms = {name for line in lines for name in line if name.startswith("term_")}
    assert len(terms) == len(recipe.terms)
    assert all(line[name] > 0 for line in lines for name in terms)
    after = load_file(run / "student.safetensors")
    heads = {name for name in after if name.startswith(("module.first", "module.round"))}
    assert len(heads) == 4
    assert all(not torch.equal(after[name], before[name]) for name in heads)


def test_balanced_weights_stand_as_numbers_in_what_the_run_records(recipe):
    pixels = class_pixels(open_pictures(Path(recipe.data.shards)), recipe.data.label_share)
    context = prepare(replace(recipe, run=replace(recipe.run, name="balanced")))
    inverse = [1 / count for count in pixels]
    wanted = [4 * value / sum(inverse) for value in inverse]
    for term in context.recipe.terms[:2]:
        assert term.class_weights == pytest.approx(wanted)
    assert context.recipe.terms[2:] == recipe.terms[2:]


def test_a_run_with_balanced_weights_resumes(recipe):
    named = replace(recipe, run=replace(recipe.run, name="again"))
    train(named)
    train(replace(named, run=replace(named.run, resume=True)))
    written = json.loads((Path(named.run.out) / "again" / "recipe.json").read_text())
    assert len(written["recipe"]["terms"][0]["class_weights"]) == 4


def test_regions_have_no_masks_to_count(recipe):
    with pytest.raises(UserError, match=r"regions(.|\n)*--terms\.N\.class-weights"):
        with_class_counts(
            replace(recipe, data=replace(recipe.data, regions=(8, 6))),
            open_pictures(Path(recipe.data.shards)),
            nullcontext(),
        )


def test_labels_of_another_number_of_classes_are_refused(recipe):
    terms = (replace(recipe.terms[2], relabel=(0, 1)),)
    with pytest.raises(UserError, match=r"relabels(.|\n)*found:  2(.|\n)*wanted: 4"):
        prepare(replace(recipe, terms=terms))
