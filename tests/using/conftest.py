"""A finished run with random weights over a few letterboxed pictures, its export beside it."""

from pathlib import Path

import pytest
import torch

from stillroom.networks.taps import Network
from stillroom.pictures.synthetic import CLASSES
from stillroom.students.definitions import UNetStudent
from stillroom.training.checkpoint import save_student
from stillroom.using.evaluation import open_data
from stillroom.using.onnx_export import export
from stillroom.using.student import load_student


@pytest.fixture(scope="session")
def used_run(make_tiny, tmp_path_factory) -> Path:
    """`runs/shapes` beside `shards`; nobody writes into it."""
    folder = tmp_path_factory.mktemp("used")
    make_tiny.make_pictures(folder, train=8, val=4)
    config = UNetStudent(width=4, depth=1, classes=4)
    torch.manual_seed(3)
    network = say_every_class(config.build())
    about = {
        "recipe": "shapes",
        "network": config.architecture(),
        "classes": list(CLASSES),
        "palette": [[0, 0, 0], [200, 0, 0], [0, 200, 0], [0, 0, 200]],
        "geometry": {"height": 32, "width": 48, "fit": "letterbox"},
        "pictures": {"path": str(folder / "shards")},
        "batch": 3,
        "step": 7,
        "score": {"miou": 0.5, "iou": [0.9, 0.7, 0.4, None], "agreement": 0.8},
    }
    save_student(folder / "runs" / "shapes", network, about)
    return folder / "runs" / "shapes"


def say_every_class(network: Network) -> Network:
    """Set the last layer so that each class is the largest somewhere in noise and in a ramp."""
    ramp = torch.linspace(0, 1, 48).expand(3, 32, 48)
    with torch.no_grad():
        network.segmentation_head.weight *= 10
        logits = network.eval()(torch.stack([ramp, torch.rand(3, 32, 48)]))
        network.segmentation_head.bias -= logits.mean((0, 2, 3))
        found = network(torch.stack([ramp, torch.rand(3, 32, 48)])).argmax(1)
    assert all(len(one.unique()) > 1 for one in found)
    return network


@pytest.fixture(scope="session")
def exported(used_run) -> tuple[Path, dict[str, str]]:
    """The folder of an export with everything, and what was said of each file."""
    trained, out = load_student(used_run), used_run.parent.parent / "export"
    found = export(trained, open_data(trained, None), out, fp16=True, int8=True, pth=True)
    return out, found
