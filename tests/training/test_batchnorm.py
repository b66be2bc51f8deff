"""BatchNorm's running buffers are those of one process, whatever the number of ranks."""

import copy

import pytest
import torch
from torch import Tensor, nn

from stillroom.training.batchnorm import RunningBuffers


def network() -> nn.Sequential:
    """Every kind of module that has running statistics, and a constant buffer."""
    torch.manual_seed(0)
    layers = nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.BatchNorm2d(4, momentum=0.01, affine=False),
        nn.Conv2d(4, 5, 1),
        nn.BatchNorm2d(5, momentum=None),
        nn.InstanceNorm2d(5, track_running_stats=True),
        nn.BatchNorm2d(5, track_running_stats=False),
    )
    layers.register_buffer("constant", torch.tensor(0.1))
    return layers.train()


def pictures(k: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(2, 3, 6, 8, generator=generator) * (i + 1) + i for i in range(k)]


def alone(steps: int, k: int) -> nn.Sequential:
    """Plain torch."""
    layers = network()
    for _ in range(steps):
        for image in pictures(k):
            layers(image)
    return layers


class Rank:
    """One of several processes: its network, and what it would hand to the others."""

    def __init__(self, rank: int, world: int, k: int) -> None:
        self.layers, self.micros = network(), range(rank, k, world)
        self.buffers = RunningBuffers(self.layers, k)

    def forward(self, images: list[Tensor]) -> "Rank":
        self.buffers.begin()
        for micro in self.micros:
            self.layers(images[micro]).sum().backward()
            self.buffers.keep(micro)
        return self

    def handed(self) -> Tensor:
        caught = []
        copy.deepcopy(self.buffers).finish(lambda seen: (caught.append(seen.clone()), seen)[1])
        return caught[0]


def run(world: int, steps: int, k: int, images: list[Tensor] | None = None) -> list[nn.Sequential]:
    """Take steps in `world` ranks; return their networks."""
    ranks = [Rank(rank, world, k) for rank in range(world)]
    for _ in range(steps):
        handed = [rank.forward(images or pictures(k)).handed() for rank in ranks]
        for rank in ranks:
            rank.buffers.finish(lambda _, handed=handed: torch.stack(handed).sum(0))
    return [rank.layers for rank in ranks]


@pytest.mark.parametrize("world", [1, 2, 4])
def test_they_are_what_one_process_has_that_runs_all_micro_batches_in_order(world):
    wanted = dict(alone(3, 4).named_buffers())
    first = dict(run(1, 3, 4)[0].named_buffers())
    for layers in run(world, 3, 4):
        found = dict(layers.named_buffers())
        assert found.keys() == wanted.keys()
        for name, buffer in found.items():
            assert torch.allclose(buffer, wanted[name], rtol=1e-6, atol=1e-6), name
            assert torch.equal(buffer, first[name]), name  # to the last bit over worlds
        assert [layers[i].momentum for i in (1, 2, 4)] == [0.1, 0.01, None]


@pytest.mark.parametrize("world", [1, 2])
def test_a_micro_batch_that_overflowed_moves_nothing_and_spoils_no_other(world):
    images = pictures(4)
    images[1][0, 0, 0, 0] = torch.inf
    layers = network()
    for image in (images[0], *images[2:]):
        layers(image)
    for found in run(world, 1, 4, images):
        for i in (1, 2):
            assert torch.allclose(found[i].running_mean, layers[i].running_mean, rtol=1e-6)
            assert torch.allclose(found[i].running_var, layers[i].running_var, rtol=1e-6)


def test_frozen_statistics_stay_as_they_are_until_they_move_again():
    rank = Rank(0, 1, 2)
    start = copy.deepcopy(rank.layers)
    rank.layers[1].eval()
    rank.forward(pictures(2)).buffers.finish(lambda seen: seen)
    assert torch.equal(rank.layers[1].running_var, start[1].running_var)
    assert not torch.equal(rank.layers[2].running_var, start[2].running_var)
    rank.layers[1].train()
    rank.forward(pictures(2)).buffers.finish(lambda seen: seen)
    wanted = network()[:2]
    for image in pictures(2):
        wanted(image)
    assert torch.allclose(rank.layers[1].running_var, wanted[1].running_var, rtol=1e-6)
    assert rank.layers[1].num_batches_tracked == 2
    assert rank.layers[2].num_batches_tracked == 4


def test_a_network_without_running_statistics_needs_nothing():
    layers = nn.Conv2d(3, 1, 1)
    buffers = RunningBuffers(layers, 1)
    buffers.begin()
    layers(torch.zeros(1, 3, 2, 2)).sum().backward()
    buffers.keep(0)
    buffers.finish(pytest.fail)
