"""Options as plain data, and options that are added once records have been written."""

from dataclasses import asdict, field, fields
from typing import Any, TypeVar

_T = TypeVar("_T")
_ADDED = "added"


def added(default: _T) -> _T:
    """Declare a field of a config or a task that came after records had been written.

    At its default it is left out of the plain data, so the records of before keep their key. The
    default must stand for what happened before there was the option, and can never change.

    Args:
        default: of the field, immutable.

    Example:
        >>> from dataclasses import dataclass
        >>> from gradthrough.bench.options import added, plain
        >>> @dataclass(frozen=True)
        ... class Options:
        ...     old: int = 1
        ...     new: int | None = added(None)
        >>> plain(Options()), plain(Options(new=3))
        ({'old': 1}, {'old': 1, 'new': 3})
    """
    return field(default=default, metadata={_ADDED: True})


def plain(x: Any) -> dict[str, Any]:  # noqa: ANN401 - any dataclass
    """Return the fields of a dataclass as plain data, but for `added` ones at their default."""
    data = asdict(x)
    for one in fields(x):
        if one.metadata.get(_ADDED) and data[one.name] == one.default:
            del data[one.name]
    return data
