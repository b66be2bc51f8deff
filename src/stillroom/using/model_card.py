"""The page beside a student's weights: what it is, data, teacher, scores, preprocessing, limits."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stillroom.jsonfile import read_json
from stillroom.metrics import SCORES
from stillroom.networks.smp import SmpNetwork
from stillroom.pictures.dataset import PictureSet
from stillroom.using.student import Trained
from stillroom.using.student_rows import class_names

_WEAK = 0.5  # IoU
Ious = Mapping[str, float | None]  # of each class; None where it is nowhere


def write_card(
    trained: Trained, pictures: PictureSet, path: Path, files: Mapping[str, str]
) -> None:
    """Write the card; `files` says what is to be said of each file beside it."""
    classes = class_names(trained, pictures)
    score = trained.about.get("score", {})
    ious = dict(zip(classes, score.get("iou") or [], strict=False))
    sections = {
        "Data and teacher": _data(trained, pictures, classes),
        "Score on the validation pictures": _scores(score, ious),
        "Preprocessing": _preprocessing(trained),
        "Without stillroom": _plain_weights(trained) if "student.pth" in files else [],
        "Limits": _limits(ious),
    }
    lines = _what(trained, files)
    for title, body in sections.items():
        lines += ["", f"## {title}", "", *body] if body else []
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _what(trained: Trained, files: Mapping[str, str]) -> list[str]:
    about = trained.about
    network = ", ".join(f"{k} {v}" for k, v in about["network"].items() if v is not None)
    return [
        f"# {about.get('recipe', 'student')}",
        "",
        f"A segmentation network of {trained.num_parameters / 1e6:.2f} M parameters ({network}),"
        f" after {about.get('step', '?')} steps.",
        f"Weights: sha256 {about['weights_sha256']}.",
        "",
        *(f"- `{name}`: {said}" for name, said in files.items()),
    ]


def _data(trained: Trained, pictures: PictureSet, classes: Sequence[str]) -> list[str]:
    recipe = _recipe(trained.run)
    share = recipe.get("data", {}).get("label_share", 1.0)
    height, width = trained.size
    return [
        f"- Pictures: {pictures.path.name}, {pictures.num_rows('train')} to train and"
        f" {pictures.num_rows('val')} to validate, at {height} x {width} px (digest"
        f" {pictures.digest}).",
        f"- Share of the training masks that was used: {share:g}.",
        f"- Classes: {', '.join(classes) or 'unnamed, no masks'}.",
        f"- Teacher: {'; '.join(map(_teacher, recipe.get('teachers', []))) or 'none'}.",
    ]


def _recipe(run: Path) -> dict[str, Any]:
    """Return what was trained, where the run says it; `best/` lies inside its run."""
    for folder in (run, run.parent):
        if (folder / "recipe.json").is_file():
            return read_json(folder / "recipe.json").get("recipe", {})
    return {}


def _teacher(about: Mapping[str, Any]) -> str:
    path, tensor = about.get("path"), about.get("tensor")
    words = [about.get("class"), path and Path(path).name, tensor and f"tensor {tensor}"]
    return " ".join(filter(None, words))


def _scores(score: Mapping[str, Any], ious: Ious) -> list[str]:
    names = {**SCORES, "teacher_miou": "mIoU of the teacher"}
    lines = [
        f"- {name}: {score[key]:.4f}" for key, name in names.items() if score.get(key) is not None
    ]
    rows = [f"| {c} | {'absent' if iou is None else f'{iou:.4f}'} |" for c, iou in ious.items()]
    lines += ["", "| class | IoU |", "|---|---|", *rows] if rows else []
    return lines or ["- none"]


def _preprocessing(trained: Trained) -> list[str]:
    geometry, normalise = trained.geometry, trained.network.normalise
    mean, std = (
        ", ".join(f"{v:g}" for v in value.flatten().tolist())
        for value in (normalise.mean, normalise.std)
    )
    answer = "mask = student.mask(picture)  # RGB (h w 3) uint8; class indices (h w)"
    if trained.regions is not None:
        answer = "mask = student.mask(picture, box)  # x0 y0 x1 y1 in pixels; background outside it"
    fit = "stretched" if geometry.fit == "stretch" else "letterboxed in grey (128)"
    return [
        f"RGB, float32 in [0, 1], (b 3 h w), {fit} to {geometry.height} x {geometry.width} px"
        " (bilinear, antialiased). The ONNX files and stillroom normalise for themselves; for"
        f" bare weights: mean {mean}, deviation {std}, channels {normalise.channels}, after"
        f" multiplication by {normalise.scale:g}.",
        "Output: logits (b k h w); of one channel, above 0 is class 1, of several the largest.",
        "",
        "```python",
        "import stillroom",
        'student = stillroom.load_student("student.onnx")',
        answer,
        "```",
    ]


def _plain_weights(trained: Trained) -> list[str]:
    about = trained.about["network"]
    if not isinstance(trained.network, SmpNetwork):
        return []
    channels = about.get("decoder_channels")
    extra = "" if channels is None else f", decoder_channels={tuple(channels)}"
    return [
        "```python",
        "import segmentation_models_pytorch as smp, torch",
        f'network = smp.create_model("{about["arch"]}", "{about["encoder"]}",'
        f" encoder_weights=None, classes={about['classes']}{extra})",
        'network.load_state_dict(torch.load("student.pth", weights_only=True))',
        "```",
    ]


def _limits(ious: Ious) -> list[str]:
    weak = [name for name, iou in ious.items() if iou is not None and iou < _WEAK]
    absent = [name for name, iou in ious.items() if iou is None]
    return [
        "- The score is that of pictures like those it was trained on, at the size above; of other"
        " cameras, places, light or people nothing was measured.",
        "- What the teacher got wrong, the student may have learned.",
        *([f"- Weak classes (IoU below {_WEAK}): {', '.join(weak)}."] if weak else []),
        *([f"- Never seen in validation: {', '.join(absent)}."] if absent else []),
        "- Pictures, teacher and first weights have licences of their own.",
    ]
