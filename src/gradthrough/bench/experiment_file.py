"""Reading an experiment from its file: every name in it is checked."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

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
    Where,
)


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
            for name, parts in data.get("budgets", {}).items()
        }
        if sorted(budgets) != sorted(BUDGETS):
            raise ConfigError(f"budgets are {sorted(budgets)}, but must be {', '.join(BUDGETS)}.")
        search = data.get("search")
        parsed: dict[str, Any] = {
            "axes": self.axes,
            "budgets": budgets,
            "overrides": self._all(Override, "overrides"),
            "skip": tuple(self._where(w, "skip") for w in data.get("skip", ())),
            "search": None if search is None else self._build(Search, search, "search"),
            "tables": self._all(TableView, "tables"),
            "figures": self._all(FigureView, "figures"),
        }
        out = self._build(Experiment, data | parsed | {"name": self.name}, "the file")
        for view in (*out.tables, *out.figures):
            self._check_spread(view)
        return out

    def _check_axes(self) -> None:
        for axis, levels in self.axes.items():
            if axis in VIRTUAL or not levels:
                raise ConfigError(
                    f"axes.{axis}: an axis needs levels, and a name besides {', '.join(VIRTUAL)}."
                )

    def _all(self, kind: type[Any], key: str) -> tuple[Any, ...]:
        parts: list[dict[str, Any]] = self.data.get(key, [])
        return tuple(self._build(kind, x, f"{key}[{i}]") for i, x in enumerate(parts))

    def _build(self, kind: type[Any], data: Mapping[str, Any], place: str) -> Any:  # noqa: ANN401
        known: dict[str, Any] = kind.__dataclass_fields__
        if unknown := sorted(set(data) - set(known)):
            raise ConfigError(
                f"{place} has {', '.join(unknown)}. Known: {', '.join(sorted(known))}."
            )
        values: dict[str, Any] = {
            k: tuple(_listed(v)) if isinstance(v, list) else v for k, v in data.items()
        }
        if kind is not Experiment and "where" in data:
            values["where"] = self._where(data["where"], place)
        try:
            return kind(**values)
        except TypeError as error:
            raise ConfigError(f"{place}: {error}.") from None

    def _where(self, data: Mapping[str, Any], place: str) -> Where:
        where = {axis: tuple(_listed(levels)) for axis, levels in data.items()}
        for axis, levels in where.items():
            if axis not in self.axes:
                raise ConfigError(f"{place}: no axis {axis!r}. Known: {', '.join(self.axes)}.")
            for level in levels:
                if level not in self.axes[axis]:
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


def _listed(x: Any) -> list[Any]:  # noqa: ANN401 - of TOML
    return cast("list[Any]", x) if isinstance(x, list) else [x]
