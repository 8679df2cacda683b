"""Options as their class declares them: a file or a command line writes 1 where 1.0 is meant."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal


def _simple(hint: object) -> list[object]:
    """Return the members of a type that plain text can give: no tensor, no network."""
    members = typing.get_args(hint) if _is_union(hint) else (hint,)
    plain = (float, int, bool, str)
    return [m for m in members if m in plain or typing.get_origin(m) is Literal]


def _is_union(hint: object) -> bool:
    return typing.get_origin(hint) in (typing.Union, types.UnionType)


def typed_options(kind: type) -> dict[str, list[object]]:
    """Return, for each field of a dataclass that plain text can give, the types it takes."""
    if not dataclasses.is_dataclass(kind):
        return {}
    hints = typing.get_type_hints(kind)
    found = {f.name: _simple(hints[f.name]) for f in dataclasses.fields(kind)}
    return {name: members for name, members in found.items() if members}


def as_declared(kind: type, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options as a dataclass declares them: 1 is 1.0 where it wants a float.

    An option of that name may be a whole number elsewhere, and the key of a config tells the two
    apart.

    Example:
        >>> import gradthrough as gt
        >>> from gradthrough.bench.typed import as_declared
        >>> as_declared(gt.GumbelRao, {"tau": 1, "k": 10})
        {'tau': 1.0, 'k': 10}
    """
    types_of = typed_options(kind)
    return {
        name: float(value) if type(value) is int and int not in types_of.get(name, [int]) else value
        for name, value in options.items()
    }
