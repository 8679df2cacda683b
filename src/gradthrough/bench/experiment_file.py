"""Reading an experiment from its file: every name in it is checked."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from types import UnionType
from typing import Any, Literal, cast, get_args, get_origin, get_type_hints

from .._errors import ConfigError
from .experiment import (
    BUDGETS,
    VIRTUAL,
    Experiment,
    FigureView,
    Override,
    Part,
    Search,
    TableView,
    View,
    Where,
)

# Where a run has its numbers; under "run" stands what follows from them.
SPLITS = ("train", "valid", "test", "probe", "run")


def load(path: Path) -> Experiment:
    """Read an experiment.

    Raises:
        ConfigError: there is no such file, it is not TOML, or something in it is not known; the
            message names the file and the place.
    """
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"there is no experiment {path}. Name a file: {_known(path)}.") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not TOML: {error}.") from None
    try:
        return _Reader(path.stem, data).experiment()
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def _known(path: Path) -> str:
    names = sorted(p.name for p in path.parent.glob("*.toml"))
    return f"{path.parent} has {', '.join(names)}" if names else f"{path.parent} has no *.toml"


class _Reader:
    """Turns parsed TOML into an Experiment; every name is checked."""

    def __init__(self, name: str, data: dict[str, Any]) -> None:
        self.name, self.data = name, data
        self.axes: dict[str, dict[str, Any]] = data.get("axes", {})

    def experiment(self) -> Experiment:
        data = self.data
        if "axes" in data:
            self._check_axes()
        budgets = {
            name: tuple(self._build(Part, part, f"budgets.{name}") for part in _listed(parts))
            for name, parts in _table(data.get("budgets", {}), "budgets").items()
        }
        if sorted(budgets) != sorted(BUDGETS):
            raise ConfigError(f"budgets are {sorted(budgets)}, but must be {', '.join(BUDGETS)}.")
        search = data.get("search")
        parsed: dict[str, Any] = {
            "axes": self.axes,
            "budgets": budgets,
            "overrides": self._all(Override, "overrides"),
            "skip": tuple(self._where(w, "skip") for w in _listed(data.get("skip", []))),
            "search": None if search is None else self._build(Search, search, "search"),
            "tables": self._all(TableView, "tables"),
            "figures": self._all(FigureView, "figures"),
        }
        out = self._build(Experiment, data | parsed | {"name": self.name}, "the file")
        _check_seeds(out)
        for view in (*out.tables, *out.figures):
            self._check_spread(view)
            self._check_metrics(view)
        return out

    def _check_axes(self) -> None:
        for axis, levels in _table(self.axes, "axes").items():
            if axis in VIRTUAL or not _table(levels, f"axes.{axis}"):
                raise ConfigError(
                    f"axes.{axis}: an axis needs levels, and a name besides {', '.join(VIRTUAL)}."
                )
            for level, settings in levels.items():
                _table(settings, f"axes.{axis}.{level}")

    def _all(self, kind: type[Any], key: str) -> tuple[Any, ...]:
        parts: list[dict[str, Any]] = self.data.get(key, [])
        if not isinstance(parts, list):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ConfigError(f"{key} is one table, but there may be several: write [[{key}]].")
        return tuple(self._build(kind, x, f"{key}[{i}]") for i, x in enumerate(parts))

    def _build(self, kind: type[Any], data: Mapping[str, Any], place: str) -> Any:  # noqa: ANN401
        known: dict[str, Any] = kind.__dataclass_fields__
        data = _table(data, place)
        if unknown := sorted(set(data) - set(known)):
            raise ConfigError(
                f"{place} has {', '.join(unknown)}. Known: {', '.join(sorted(known))}."
            )
        values: dict[str, Any] = {
            k: tuple(_listed(v)) if isinstance(v, list) else v for k, v in data.items()
        }
        if kind is not Experiment and "where" in data:
            values["where"] = self._where(data["where"], place)
        hints = get_type_hints(kind)
        for name, value in values.items():
            if not fits(hints[name], value):
                raise ConfigError(
                    f"{place}: {name} is {data[name]!r}, but must be {_in_words(hints[name])}."
                )
        needed = (f.name for f in fields(kind) if f.default is f.default_factory is MISSING)
        if lacking := sorted(set(needed) - set(values)):
            raise ConfigError(f"{place} lacks {', '.join(lacking)}.")
        return kind(**values)

    def _where(self, data: Mapping[str, Any], place: str) -> Where:
        where = {axis: tuple(_listed(levels)) for axis, levels in _table(data, place).items()}
        for axis, levels in where.items():
            if axis not in self.axes:
                raise ConfigError(f"{place}: no axis {axis!r}. Known: {', '.join(self.axes)}.")
            for level in levels:
                if not isinstance(level, str) or level not in self.axes[axis]:
                    known = ", ".join(self.axes[axis])
                    raise ConfigError(f"{place}: {axis} has no level {level!r}. Known: {known}.")
        return where

    def _check_spread(self, view: TableView | FigureView) -> None:
        if isinstance(view, TableView):
            used, required = (view.rows, view.columns), True
        else:
            own = (view.x,) if view.x not in ("epoch", "step") else ()
            used, required = (view.lines, view.panels, *own), False
        for axis in used:
            if axis not in (*self.axes, *VIRTUAL) and (axis or required):
                known = ", ".join((*self.axes, *VIRTUAL))
                raise ConfigError(f"{view.title!r} spreads {axis!r}. Known: {known}.")
        for axis, levels in self.axes.items():
            if axis not in used and len(view.where.get(axis, levels)) > 1:
                raise ConfigError(
                    f"{view.title!r} does not say which {axis} it shows. Spread it, or fix it: "
                    f"where = {{ {axis} = ... }}."
                )

    def _check_metrics(self, view: View) -> None:
        for metric in view.metrics.values():
            split, _, name = metric.partition("/")
            if split not in SPLITS or not name.strip():
                raise ConfigError(
                    f"{view.title!r} has the metric {metric!r}, but must have 'split/metric', with "
                    f"one of the splits {', '.join(SPLITS)}."
                )


def _check_seeds(experiment: Experiment) -> None:
    """Refuse a seed beside those of the budgets, which alone count."""
    runs = {"run": experiment.run}
    for axis, levels in experiment.axes.items():
        runs |= {f"axes.{axis}.{level}": run for level, run in levels.items()}
    runs |= {f"overrides[{i}].run": x.run for i, x in enumerate(experiment.overrides)}
    for name, parts in experiment.budgets.items():
        runs |= {f"budgets.{name}[{i}].run": part.run for i, part in enumerate(parts)}
    for place, run in runs.items():
        if "seed" in run:
            raise ConfigError(
                f"{place} has a seed. Seeds are those of the budgets: seeds = '0..9'."
            )


def fits(hint: object, value: Any) -> bool:  # noqa: ANN401 - of TOML
    """Return whether a value is what a field of an experiment declares."""
    kind, members = get_origin(hint) or hint, get_args(hint)
    if kind is Any:
        return True
    if kind is UnionType:
        return any(fits(member, value) for member in members)
    if kind is Literal:
        return value in members
    if isinstance(value, Mapping) and kind is Mapping:
        inner = cast("Mapping[str, object]", value)
        return all(fits(members[1], x) for x in inner.values())
    if isinstance(value, tuple) and kind is tuple:
        return all(fits(members[0], x) for x in cast("tuple[object, ...]", value))
    if isinstance(value, bool):  # an int to Python, and not to who writes a file
        return kind is bool
    return isinstance(kind, type) and isinstance(value, kind)


def _in_words(hint: object) -> str:
    """Return what a field declares, in the words of TOML."""
    if get_origin(hint) is Literal:
        return " or ".join(map(str, get_args(hint)))
    if get_origin(hint) is UnionType:
        return _in_words(get_args(hint)[0])
    names = {str: "text in quotes", int: "a whole number", bool: "true or false"}
    kind = cast("type[Any]", get_origin(hint) or hint)
    return names.get(kind, "a list of them" if kind is tuple else "a table")


def _table(x: Any, place: str) -> Mapping[str, Any]:  # noqa: ANN401 - of TOML
    if not isinstance(x, Mapping):
        raise ConfigError(f"{place} is {x!r}, but must be a table.")
    return cast("Mapping[str, Any]", x)


def _listed(x: Any) -> list[Any]:  # noqa: ANN401 - of TOML
    return cast("list[Any]", x) if isinstance(x, list) else [x]
