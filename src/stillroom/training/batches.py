"""Micro-batches on the device: labels of a whole step, because a loss is divided by counts over all
of it; pictures and targets of one micro-batch at a time, copied as they are stored and decoded when
their turn comes.
"""

from collections import deque
from collections.abc import Collection, Iterable, Iterator
from dataclasses import replace
from functools import lru_cache, partial
from itertools import islice

import torch
from torch import Tensor

from stillroom.cache.folder import Cache
from stillroom.training.stream import StoredBatch
from stillroom.types import Batch


def with_labels_on(stored: StoredBatch, device: torch.device) -> StoredBatch:
    """Copy masks and boxes, small beside all else, to the device."""
    move = partial(_move, device=device)
    boxes = None if stored.boxes is None else move(stored.boxes)
    return replace(stored, mask=move(stored.mask), inside=move(stored.inside), boxes=boxes)


def countable_batch(
    stored: StoredBatch, device: torch.device, cache: Cache | None, counted: Collection[str] = ()
) -> Batch:
    """Return what terms count: labels, the targets named in `counted`, and of pictures and all
    other targets the shapes alone (tensors on the device `meta`).
    """
    b, h, w, _ = stored.image.shape
    # These are decoded again for the loss: no gradient is due before the counts of the whole step,
    # and of its decoded targets memory holds one micro-batch.
    targets = _targets(stored, device, cache, counted)
    for name in {part.partition(".")[0] for part in stored.parts} - targets.keys():
        assert cache is not None
        targets[name] = torch.empty((b, *cache.specs[name].shape), device="meta")
    return _batch(stored, torch.empty((b, 3, h, w), device="meta"), targets)


def decoded_batches(
    stored: Iterable[StoredBatch], device: torch.device, cache: Cache | None
) -> Iterator[Batch]:
    """Yield each micro-batch decoded on the device; while it is worked on, the next is copied, on a
    stream of its own. What was yielded is not kept.
    """
    source = iter(stored)
    moved = deque(_moved(one, device) for one in islice(source, 2))
    while moved:
        yield _decoded(*moved.popleft(), cache)
        moved.extend(_moved(one, device) for one in islice(source, 1))


def to_batch(stored: StoredBatch, device: torch.device, cache: Cache | None) -> Batch:
    """Copy one micro-batch to the device and decode it there."""
    return next(decoded_batches([stored], device, cache))


def _moved(stored: StoredBatch, device: torch.device) -> tuple[StoredBatch, torch.Event | None]:
    """Begin to copy a micro-batch; on a GPU it is there after the event."""
    if device.type != "cuda":
        return stored, None
    move = partial(_move, device=device)
    stored = with_labels_on(stored, device)
    with torch.cuda.stream(_copy_stream(device)):
        moved = replace(
            stored,
            image=move(stored.image),
            parts={name: move(part) for name, part in stored.parts.items()},
            noise={name: move(value) for name, value in stored.noise.items()},
            mirrored=None if stored.mirrored is None else move(stored.mirrored),
        )
        return moved, _copy_stream(device).record_event()


@lru_cache
def _copy_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


def _decoded(stored: StoredBatch, there: torch.Event | None, cache: Cache | None) -> Batch:
    assert cache is not None or not stored.parts
    if there is not None:
        current = torch.cuda.current_stream(stored.image.device)
        current.wait_event(there)
        copied = [stored.image, stored.mirrored, *stored.parts.values(), *stored.noise.values()]
        for tensor in copied:
            if tensor is not None:
                tensor.record_stream(current)  # whose work must end before its memory is reused
    targets = _targets(stored, stored.image.device, cache)
    image = stored.image.permute(0, 3, 1, 2).float().div_(255)  # stays channels-last
    return _batch(stored, image, targets)


def _parts(stored: StoredBatch, names: Collection[str] | None) -> dict[str, Tensor]:
    """Return the parts of the targets that are named, of all where None."""
    return {
        part: value
        for part, value in stored.parts.items()
        if names is None or part.partition(".")[0] in names
    }


def _targets(
    stored: StoredBatch,
    device: torch.device,
    cache: Cache | None,
    names: Collection[str] | None = None,
) -> dict[str, Tensor]:
    """Return the targets that are named, decoded and mirrored where their pictures are."""
    targets = {} if cache is None else cache.decode(_parts(stored, names), device)
    if stored.mirrored is None:
        return targets
    mirrored = _move(stored.mirrored, device)[:, None, None, None]
    return {name: torch.where(mirrored, t.flip(3), t) for name, t in targets.items()}


def _batch(stored: StoredBatch, image: Tensor, targets: dict[str, Tensor]) -> Batch:
    return Batch(
        keys=stored.keys,
        image=image,
        mask=stored.mask.long(),
        inside=stored.inside,
        boxes=stored.boxes,
        targets=targets,
        noise=stored.noise,
    )


def _move(tensor: Tensor, device: torch.device) -> Tensor:
    return tensor.to(device, non_blocking=True)
