"""What callbacks do in the loop of any trainer, and how they become callbacks of its package."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import inspect
import sys
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, cast

from torch import nn

from ._errors import BackendError, ConfigError, UnsupportedError
from .estimators.base import AbstractEstimator
from .monitoring.monitor import Monitor
from .nn.temperature import Schedule, Temperature, step_temperatures
from .swapping.swap import Swap, swap


class AbstractCallback:
    """A callback whose base class is imported when one is made, and not before."""

    _packages: ClassVar[tuple[str, ...]]  # the first that the program has imported, or that exists
    _base_name: ClassVar[str]
    _instead: ClassVar[str]  # what to do without the package
    _plain: ClassVar[type]

    if not TYPE_CHECKING:  # the arguments are those of __init__

        def __new__(cls, *args: object, **options: object) -> Self:
            """Make it one of the package in use."""
            return object.__new__(_joined(cls, cls._base()))

        def __init_subclass__(cls) -> None:
            # What writes pages of reference would show those of __new__.
            whole = inspect.signature(cls.__init__)
            cls.__signature__ = whole.replace(parameters=list(whole.parameters.values())[1:])

    @classmethod
    def _base(cls) -> type:
        # A trainer takes callbacks of its own package: of two, the one that is imported.
        for name in sorted(cls._packages, key=lambda name: name not in sys.modules):
            try:
                return cast(type, getattr(importlib.import_module(name), cls._base_name))
            except ImportError:
                continue
        raise BackendError(
            f"{cls.__name__} needs {' or '.join(cls._packages)}, which cannot be imported. "
            f"{cls._instead}"
        )

    def __reduce__(self) -> tuple[object, ...]:  # the class made here has no name of its own
        return _made, (self._plain,), self.__getstate__()


@functools.cache
def _joined(cls: type, base: type) -> Any:  # noqa: ANN401 - a class made here
    if issubclass(cls, base):
        return cls
    body = {"__module__": cls.__module__, "__doc__": cls.__doc__, "_plain": cls}
    return type(cls.__name__, (cls, base), body)


def _made(cls: type[AbstractCallback]) -> AbstractCallback:
    return cls.__new__(cls)


class HoldsSwap(AbstractCallback):
    """A callback that turns a swap on for as long as a trainer trains."""

    def __init__(
        self,
        estimator: str | AbstractEstimator,
        *,
        model: nn.Module | Literal["trained"] | None = "trained",
        also: str | Iterable[str] = (),
        **options: object,
    ) -> None:
        super().__init__()
        also = (also,) if isinstance(also, str) else tuple(also)
        self._make = functools.partial(swap, estimator, also=also, **options)
        self._model = model
        self._swapped: Swap | None = None
        self._open: Swap | None = None
        self._make(model=None if model == "trained" else model)  # refused here, not at the start

    @property
    def swapped(self) -> Swap | None:
        """The swap of this run, or of the last one; None before the first."""
        return self._swapped

    def close(self) -> None:
        """Turn the swap off, if it is on."""
        self._leave(RuntimeError)

    def _enter(self, model: nn.Module) -> None:
        self.close()  # a run before this one broke off
        made = self._make(model=model if self._model == "trained" else self._model)
        self._swapped = self._open = made.__enter__()

    def _leave(self, kind: type[BaseException] | None = None) -> None:
        open_, self._open = self._open, None
        if open_ is not None:
            open_.__exit__(kind)

    def __getstate__(self) -> dict[str, object]:  # a copy has no swap on
        return {**self.__dict__, "_swapped": None, "_open": None}


class HoldsMonitor(AbstractCallback):
    """A callback that feeds a monitor."""

    def __init__(self, monitor: Monitor) -> None:
        super().__init__()
        self.monitor = monitor


Target = Swap | HoldsSwap | Monitor | HoldsMonitor | Callable[[float], object]


class StepsTemperatures(AbstractCallback):
    """A callback that moves temperatures with the steps of an optimizer."""

    def __init__(
        self,
        schedule: Schedule | Temperature | None = None,
        targets: Target | Iterable[Target] = (),
    ) -> None:
        super().__init__()
        self._targets = tuple(map(_checked, _several(targets)))
        if (schedule is None) != (not self._targets):
            missing = "schedule" if schedule is None else "targets"
            raise ConfigError(
                f"schedule and targets={self._targets} came: {missing} is missing. A schedule is "
                "for targets: a Swap, a Monitor, a callback that holds one, a callable that takes "
                "tau. The temperatures of layers have schedules of their own, and need neither."
            )
        self._schedule = schedule
        # Refuses a bad schedule here.
        self._tau = None if schedule is None else _temperature(schedule)
        self._seen: int | None = None  # steps of the optimizer that the layers have followed

    def _begin(self, model: nn.Module, step: int) -> None:
        layers = step_temperatures(model, 0)
        if not layers and not self._targets:
            raise ConfigError(
                "TemperatureCallback has nothing to do: the model has no gradthrough.nn.Temperature"
                ", and no targets came. Give a layer tau=, or pass schedule and targets."
            )
        if isinstance(self._schedule, Temperature):
            if all(self._schedule is not module for module in model.modules()):
                raise ConfigError(
                    "the schedule is a Temperature that the model does not have, so nobody would "
                    "count its steps. Pass the tau of one of its layers, or the schedule itself."
                )
        elif self._schedule is not None:
            self._tau = _temperature(self._schedule)  # counts from 0, whatever run came before
        # A checkpoint that was saved between a step of the optimizer and ours is behind by one.
        behind = 0 if self._seen is None else step - self._seen
        step_temperatures(model, behind)
        self._seen = step

    def _before(self, step: int) -> None:
        if self._tau is None:
            return
        if self._tau is not self._schedule:
            self._tau.step(step - self._tau.steps)
        for target in self._targets:
            _give(target, self._tau.value)

    def _after(self, model: nn.Module, step: int) -> None:
        if self._seen is not None and step > self._seen:
            step_temperatures(model, step - self._seen)
            self._seen = step


def _temperature(schedule: Schedule | Temperature) -> Temperature:
    return schedule if isinstance(schedule, Temperature) else Temperature(schedule)


def _several(targets: object) -> Iterable[object]:
    if isinstance(targets, Iterable) and not isinstance(targets, nn.Module):
        return cast("Iterable[object]", targets)
    return [targets]


def _checked(target: object) -> Target:
    if isinstance(target, Temperature):
        raise ConfigError(
            "a Temperature has a schedule of its own, and is stepped with the model that it is "
            "part of. Leave it out of targets."
        )
    if isinstance(target, Swap | HoldsSwap | Monitor | HoldsMonitor):
        return target
    if isinstance(target, nn.Module) or not callable(target):
        raise UnsupportedError(
            "a target must be a Swap, a Monitor, a callback that holds one, or a callable that "
            f"takes tau, but a {type(target).__name__} came."
        )
    return cast("Callable[[float], object]", target)


def _give(target: Target, tau: float) -> None:
    if isinstance(target, HoldsSwap):
        if target.swapped is None:
            raise ConfigError(
                "a target is a SwapCallback whose swap was never on. Give it to the trainer, too."
            )
        target = target.swapped
    if isinstance(target, HoldsMonitor):
        target = target.monitor
    if isinstance(target, Swap):
        _give_swap(target, tau)
    elif isinstance(target, Monitor):
        target.tau = tau
    else:
        target(tau)


def _give_swap(target: Swap, tau: float) -> None:
    one: Any = target.estimator
    if not hasattr(one, "tau"):
        raise ConfigError(
            f"the swap's estimator, {one!r}, has no tau for the schedule to set. Take one that has "
            "it: gradthrough.ReinMax(), gradthrough.StraightThroughGumbelSoftmax()."
        )
    if one.tau != tau or not target.own_tau:  # what is compiled is compiled again for another one
        target.estimator = dataclasses.replace(one, tau=tau)
