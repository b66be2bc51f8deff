"""The device that a teacher was asked to run on: parsed, and there."""

import torch

from stillroom.errors import UserError


def open_device(text: str) -> torch.device:
    """Return the device of "cpu", "cuda" or "cuda:N"; raises UserError where it is not there."""
    kind, _, number = text.partition(":")
    if kind not in ("cpu", "cuda") or not (number == "" or (kind == "cuda" and number.isdecimal())):
        raise UserError("no such device", found=repr(text), wanted="cpu, cuda or cuda:N")
    if kind == "cpu":
        return torch.device("cpu")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if int(number or 0) >= count:
        raise UserError(
            f"the device {text} is not there",
            found=f"{count} CUDA devices",
            fix="ask for cpu, or install a torch that fits this machine's driver",
        )
    return torch.device("cuda", int(number or 0))
