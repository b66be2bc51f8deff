"""The average of the weights is evaluated and kept, and the training does not know of it."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.optim.swa_utils import AveragedModel

import stillroom.training.loop as loop
from stillroom.errors import DamageError
from stillroom.jsonfile import read_json
from stillroom.recipe import Recipe
from stillroom.training.average import Average
from stillroom.training.context import TrainContext

pytestmark = pytest.mark.usefixtures("undrawn")


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1))


def move(net: nn.Module, step: int) -> None:
    """Change weights and running buffers, as a step does."""
    torch.manual_seed(step)
    net(torch.rand(2, 3, 6, 6) + step)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter += 0.1 * torch.randn_like(parameter)


def test_it_is_that_of_torch_at_these_decays_running_buffers_included():
    net, decays = network(), iter([(1 + step) / (10 + step) for step in range(3)] + [0.3] * 5)

    def lerp(mean, value, _):
        return mean if not value.is_floating_point() else torch.lerp(value, mean, next_decay[0])

    wanted, next_decay = AveragedModel(net, avg_fn=lerp, use_buffers=True), [0.0]
    wanted.n_averaged += 1  # so that it does not begin with the first values that it sees
    average = Average(net, 0.3)
    for step in range(8):
        move(net, step)
        average.update(step)
        next_decay[0] = next(decays)
        wanted.update_parameters(net)
    reference = wanted.module.state_dict()
    found = average.state_dict()
    assert found.keys() == {n for n, t in reference.items() if t.is_floating_point()}
    for name, tensor in found.items():
        assert torch.allclose(tensor, reference[name], atol=1e-6), name
        assert not torch.allclose(tensor, net.state_dict()[name], atol=1e-3), name


def test_in_place_the_network_has_it_and_afterwards_its_own_to_the_last_bit():
    net = network()
    average = Average(net, 0.9)
    for step in range(3):
        move(net, step)
        average.update(step)
    own = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    mean = {name: tensor.clone() for name, tensor in average.state_dict().items()}
    with pytest.raises(ZeroDivisionError), average.in_place():
        assert all(torch.equal(net.state_dict()[name], mean[name]) for name in mean)
        _ = 1 / 0
    assert all(torch.equal(net.state_dict()[name], own[name]) for name in own)
    assert all(torch.equal(average.state_dict()[name], mean[name]) for name in mean)


def test_shared_weights_are_averaged_and_swapped_once():
    net = nn.Sequential(nn.Conv2d(1, 1, 1), nn.Conv2d(1, 1, 1))
    net[1].weight = net[0].weight
    average = Average(net, 0.5)
    assert list(average.state_dict()) == ["0.bias", "0.weight", "1.bias"]
    with torch.no_grad():
        net[0].weight += 1
    own = net[0].weight.item()
    with average.in_place():
        assert net[1].weight.item() == pytest.approx(own - 1)
    assert net[1].weight.item() == own


def test_an_average_of_another_network_is_refused():
    average = Average(network(), 0.5)
    stored = Average(nn.Conv2d(3, 4, 3), 0.5).state_dict()
    with pytest.raises(DamageError, match="of another network"):
        average.load_state_dict(stored)


def stored(run: Path, step: int, name: str) -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoints" / f"step-{step:06d}" / f"{name}.safetensors")


def named(recipe: Recipe, name: str, **changes: object) -> Recipe:
    return replace(recipe, run=replace(recipe.run, name=name, keep=9), **changes)


def test_the_average_is_what_is_evaluated_and_kept_and_the_training_is_as_without(
    tiny_recipe, monkeypatch
):
    seen, evaluate = [], loop.evaluate

    def noting(context: TrainContext, *words):
        before = {n: t.clone() for n, t in context.distiller.state_dict().items()}
        done = evaluate(context, *words)
        after = context.distiller.state_dict()
        seen.append(all(torch.equal(after[name], before[name]) for name in before))
        return done

    monkeypatch.setattr(loop, "evaluate", noting)
    run = loop.train(named(tiny_recipe, "averaged", ema=0.9))
    plain = loop.train(named(tiny_recipe, "plain"))
    assert seen == [True] * 4
    for name in ("model", "optimizer"):
        one, two = stored(run, 6, name), stored(plain, 6, name)
        assert all(torch.equal(one[n], two[n]) for n in two)
    best = read_json(run / "student.json")["step"]
    average = stored(run, best, "average")
    student = load_file(run / "student.safetensors")
    differs = stored(run, best, "model")
    for name, tensor in student.items():
        if tensor.is_floating_point():
            assert torch.equal(tensor, average[f"student.{name}"])
    assert not torch.equal(
        student["segmentation_head.weight"], differs["student.segmentation_head.weight"]
    )
    assert not (plain / "checkpoints" / "step-000006" / "average.safetensors").exists()


def test_a_resume_before_a_damaged_average_makes_it_again_to_the_last_bit(tiny_recipe, capsys):
    recipe = named(tiny_recipe, "averaged", ema=0.95)
    run = loop.train(recipe)
    whole = {name: t.clone() for name, t in stored(run, 6, "average").items()}  # it is mapped
    path = run / "checkpoints" / "step-000006" / "average.safetensors"
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    loop.train(replace(recipe, run=replace(recipe.run, resume=True)))
    assert "step-000006 is damaged and passed over" in capsys.readouterr().out
    again = stored(run, 6, "average")  # made anew from step 3, to the last bit
    assert all(torch.equal(again[name], whole[name]) for name in whole)
