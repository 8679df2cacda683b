"""Temperatures that follow a schedule, as modules of the model that they belong to."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .._errors import ConfigError, GradthroughError
from ..estimators.base import AbstractEstimator
from ..estimators.checks import check_count, check_positive
from ..estimators.pathwise import AbstractPathwise
from ..sampling import check_pathwise

Schedule = float | Callable[[int], float]


class Temperature(nn.Module):
    """A temperature tau: a number, or a function of the steps that were counted.

    ``value = schedule(steps)``. Steps are counted by `step` alone, never by a forward: activation
    checkpointing runs a forward twice, and gradient accumulation runs several for one step of the
    optimizer. `steps` travels in the ``state_dict``, so a run that is taken up again goes on where
    it was; it is held as an int, so nothing waits for a device.

    A graph of ``torch.compile`` takes the temperature as an input once it has seen a few of them.
    Not so that of ``gt.GumbelRao`` and ``gt.ReinMaxRao``, which is traced for each, and torch keeps
    8 graphs of one piece of code: with these, let the schedule go down in a few stairs.

    Args:
        schedule: tau itself, or a callable from the number of steps, an int >= 0, to tau. It is
            called once for each step, with one number; a lambda cannot be pickled.

    Raises:
        DomainError: a tau that is not finite and above 0.
        UnsupportedError: neither a number nor a callable; a schedule that returns no number.

    Example:
        >>> import gradthrough as gt
        >>> tau = gt.nn.Temperature(lambda step: max(0.5, 2.0 * 0.999**step))
        >>> tau.step(100)
        >>> tau.steps, round(tau.value, 3)
        (100, 1.81)
    """

    def __init__(self, schedule: Schedule) -> None:
        super().__init__()
        self.schedule = schedule if callable(schedule) else check_positive("tau", schedule)
        self._set(0)

    @property
    def steps(self) -> int:
        """How many steps were counted."""
        return self._steps

    @property
    def value(self) -> float:
        """The temperature at this step."""
        return self._value

    def step(self, n: int = 1) -> None:
        """Count n steps more: call it once after each step of the optimizer.

        Args:
            n: >= 0.

        Raises:
            DomainError: the schedule returns no temperature there; then nothing is counted.
            UnsupportedError: n is no int, or the schedule returns no number.
        """
        self._set(self._steps + check_count("n", n, 0))

    def _set(self, steps: int) -> None:
        # Here, not where it is read: a graph that read the steps would be traced for each of them.
        self._value = self._at(steps)
        self._steps = steps

    def _at(self, steps: int) -> float:
        if not callable(self.schedule):
            return self.schedule
        came: object = self.schedule(steps)
        try:
            return check_positive("tau", came)
        except GradthroughError as error:
            raise type(error)(
                f"{error} The schedule {self.schedule!r} returned {came!r} at step {steps}. Let "
                "it end at a temperature above 0: max(0.5, ...)."
            ) from None

    def get_extra_state(self) -> Tensor:
        """Return the steps for the ``state_dict``."""
        # Not an int: who writes a state_dict down as tensors would stumble over it.
        return torch.tensor(self._steps, dtype=torch.int64, device="cpu")

    def set_extra_state(self, state: Any) -> None:  # noqa: ANN401 - as nn.Module has it
        """Take the steps up from a ``state_dict``."""
        self._set(int(state))

    def extra_repr(self) -> str:
        """Return the schedule, and where it is."""
        if not callable(self.schedule):
            return f"{self.schedule}"
        return f"{self.schedule!r}, steps={self.steps}, value={self.value:.4g}"


def step_temperatures(model: nn.Module, n: int = 1) -> int:
    """Count n steps more in each `Temperature` of a model, once where several layers share it.

    Args:
        model: with any wrappers around it.
        n: >= 0.

    Returns:
        How many temperatures the model has.

    Raises:
        DomainError: a schedule returns no temperature there.

    Example:
        >>> import gradthrough as gt
        >>> tau = gt.nn.Temperature(lambda step: 1.0 / (1 + step))
        >>> layer = gt.nn.CategoricalLayer(4, 3, tau=tau)
        >>> gt.nn.step_temperatures(layer)
        1
        >>> tau.value
        0.5
    """
    found = [module for module in model.modules() if isinstance(module, Temperature)]
    for one in found:
        one.step(n)
    return len(found)


def check_tempered(
    estimator: object, tau: Schedule | Temperature | None
) -> tuple[AbstractPathwise, Temperature | None]:
    """Return a pathwise estimator and the temperature that replaces its own, if there is one."""
    one = check_pathwise(estimator)
    if tau is None:
        return one, None
    if "tau" not in {field.name for field in _fields(one)}:
        raise ConfigError(
            f"tau={tau!r} came, but {type(one).__name__} has no tau. Leave tau out, or take an "
            "estimator that has one: gradthrough.ReinMax(), "
            "gradthrough.StraightThroughGumbelSoftmax()."
        )
    return one, tau if isinstance(tau, Temperature) else Temperature(tau)


def _fields(estimator: AbstractEstimator) -> tuple[dataclasses.Field[Any], ...]:
    moved: Any = estimator  # a dataclass, if it has options
    return dataclasses.fields(moved) if dataclasses.is_dataclass(estimator) else ()


def at_temperature(estimator: AbstractPathwise, tau: Temperature | None) -> AbstractPathwise:
    """Return the estimator at the temperature of this step."""
    if tau is None:
        return estimator
    # Not dataclasses.replace: the temperature was checked where it was set, and to check it in a
    # compiled graph would make a constant of it.
    moved = copy.copy(estimator)
    object.__setattr__(moved, "tau", tau.value)
    return moved
