"""A network's plain JSON description: its name, and the bounded fields of a dataclass."""

from dataclasses import fields
from typing import Annotated, Any

import msgspec

from stillroom.errors import UserError

# timm takes `hf-hub:USER/NAME` for a name too, and fetches it
Name = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_.+-]{1,80}\Z")]
Classes = Annotated[int, msgspec.Meta(ge=1, le=4096)]
Width = Annotated[int, msgspec.Meta(ge=1, le=1024)]
Depth = Annotated[int, msgspec.Meta(ge=1, le=16)]
_Level = Annotated[float, msgspec.Meta(ge=-1e6, le=1e6)]
Triple = tuple[_Level, _Level, _Level]


def describe(name: str, kind: type, values: Any) -> dict[str, Any]:
    """Return the description of `values`, which has the fields of the dataclass `kind`."""
    found = {f.name: getattr(values, f.name) for f in fields(kind)}
    return {"name": name} | {n: list(v) if isinstance(v, tuple) else v for n, v in found.items()}


def read_description(architecture: dict[str, Any], kinds: dict[str, type]) -> Any:
    """Return the dataclass that a description fills; UserError for what it does not fit."""
    members = dict(architecture)
    name = members.pop("name", None)
    kind = kinds.get(name) if isinstance(name, str) else None
    if kind is None:
        raise UserError("no such network", found=name, wanted="one of " + ", ".join(kinds))
    wanted = [field.name for field in fields(kind)]
    if sorted(members) != sorted(wanted):
        raise UserError(
            f"a {name} network's description is wrong",
            found=", ".join(members),
            wanted=", ".join(wanted),
        )
    try:
        return msgspec.convert(members, kind)
    except msgspec.ValidationError as error:
        raise UserError(f"a {name} network's description is wrong", found=error) from None
