"""Options as their class declares them: a file or a command line writes 1 where 1.0 is meant."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal

from .._errors import ConfigError


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

    A fraction where it wants a whole number, or true where it wants a number, is refused.

    An option of that name may be a whole number elsewhere, and the key of a config tells the two
    apart.

    Raises:
        ConfigError: such a value.

    Example:
        >>> import gradthrough as gt
        >>> from gradthrough.bench.typed import as_declared
        >>> as_declared(gt.GumbelRao, {"tau": 1, "k": 10})
        {'tau': 1.0, 'k': 10}
    """
    types_of = typed_options(kind)
    return {name: _declared(name, x, types_of.get(name, [])) for name, x in options.items()}


def _declared(name: str, value: Any, known: list[object]) -> Any:  # noqa: ANN401 - of a file
    if (int not in known and float not in known) or not isinstance(value, int | float):
        return value
    if isinstance(value, bool):
        fine = bool in known  # an int to Python, and not to who writes a file
    else:
        fine = float in known or isinstance(value, int)
    if not fine:
        kind = "number" if float in known else "whole number"
        raise ConfigError(f"{name} is {value!r}, but must be a {kind}.")
    return float(value) if type(value) is int and int not in known else value
