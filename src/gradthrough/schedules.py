"""Temperature schedules: plain callables from the number of steps to tau."""

from __future__ import annotations

import abc
import math
import numbers
from dataclasses import dataclass
from typing import Any

from ._errors import DomainError, UnsupportedError


def _check(name: str, value: object, *, least: float = 0.0, strict: bool = True) -> None:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise UnsupportedError(f"{name} must be a number, but a {type(value).__name__} came.")
    number = float(value)
    above = number > least if strict else number >= least
    if not (above and math.isfinite(number)):
        word = "above" if strict else "at least"
        raise DomainError(f"{name} must be finite and {word} {least:g}, but is {value}.")


def _check_steps(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise UnsupportedError(f"{name} must be an int, but a {type(value).__name__} came.")
    if value < 1:
        raise DomainError(f"{name} must be at least 1, but is {value}.")


def _check_step(step: Any) -> None:  # noqa: ANN401 - what trainers count with
    try:
        sound = float(step) >= 0.0
    except (TypeError, ValueError) as error:
        raise UnsupportedError(
            f"step must be a number of steps, but a {type(step).__name__} came."
        ) from error
    if not sound:
        raise DomainError(f"steps are counted from 0, but step is {step}.")


@dataclass(frozen=True)
class Constant:
    """The same temperature at every step.

    Args:
        tau: > 0.

    Raises:
        DomainError: tau is not finite and above 0.

    Example:
        >>> import gradthrough as gt
        >>> gt.schedules.Constant(0.7)(1_000)
        0.7
    """

    tau: float

    def __post_init__(self) -> None:
        _check("tau", self.tau)

    def __call__(self, step: int) -> float:
        """Return the temperature of a step, counted from 0."""
        _check_step(step)
        return float(self.tau)


@dataclass(frozen=True)
class Exponential:
    r"""Exponential decay to a floor, in stairs.

    ``tau_t = max(floor, start exp(-rate t'))`` with ``t' = every floor(t / every)``: looked at
    anew every so many steps, as Jang et al. do, with start 1, floor 0.5, a rate of 1e-5 to 1e-4 and
    every 500 to 1,000 steps. (At 1e-5 the floor is reached after 69,315 steps.)

    Args:
        start: tau at step 0, > 0.
        rate: r, >= 0, for each step.
        floor: the least tau, > 0.
        every: steps between two looks, >= 1.

    Raises:
        DomainError: one of them out of range.

    Example:
        >>> import gradthrough as gt
        >>> tau = gt.schedules.Exponential(1.0, rate=1e-3, floor=0.5, every=100)
        >>> [round(tau(step), 3) for step in (0, 99, 100, 650, 5_000)]
        [1.0, 1.0, 0.905, 0.549, 0.5]

    Reference:
        Jang, Gu, Poole, ICLR 2017, arXiv:1611.01144.
    """

    start: float
    rate: float
    floor: float
    every: int = 1

    def __post_init__(self) -> None:
        _check("start", self.start)
        _check("rate", self.rate, strict=False)
        _check("floor", self.floor)
        _check_steps("every", self.every)

    def __call__(self, step: int) -> float:
        """Return the temperature of a step, counted from 0."""
        _check_step(step)
        looked = step // self.every * self.every
        return max(float(self.floor), float(self.start) * math.exp(-self.rate * looked))


@dataclass(frozen=True)
class _Way(abc.ABC):
    """From one temperature to another, which then stays."""

    start: float
    end: float
    steps: int

    def __post_init__(self) -> None:
        _check("start", self.start)
        _check("end", self.end)
        _check_steps("steps", self.steps)

    def __call__(self, step: int) -> float:
        """Return the temperature of a step, counted from 0."""
        _check_step(step)
        share = self._share(min(step / self.steps, 1.0))
        return float(share * self.start + (1.0 - share) * self.end)

    @abc.abstractmethod
    def _share(self, done: float) -> float:
        """Return the share of `start`, after so much of the steps."""


@dataclass(frozen=True)
class Linear(_Way):
    r"""A straight line from one temperature to another, which then stays.

    ``tau_t = start + (end - start) min(t / steps, 1)``.

    Args:
        start: tau at step 0, > 0.
        end: tau from step `steps` on, > 0.
        steps: how long the way is, >= 1.

    Raises:
        DomainError: one of them out of range.

    Example:
        >>> import gradthrough as gt
        >>> tau = gt.schedules.Linear(2.0, 0.5, steps=100)
        >>> [tau(step) for step in (0, 50, 100, 1_000)]
        [2.0, 1.25, 0.5, 0.5]
    """

    def _share(self, done: float) -> float:
        return 1.0 - done


@dataclass(frozen=True)
class Cosine(_Way):
    r"""Half a cosine from one temperature to another, which then stays.

    ``tau_t = end + (start - end) (1 + cos(pi min(t / steps, 1))) / 2``.

    Args:
        start: tau at step 0, > 0.
        end: tau from step `steps` on, > 0.
        steps: how long the way is, >= 1.

    Raises:
        DomainError: one of them out of range.

    Example:
        >>> import gradthrough as gt
        >>> tau = gt.schedules.Cosine(1.0, 0.1, steps=100)
        >>> [round(tau(step), 3) for step in (0, 25, 50, 100, 1_000)]
        [1.0, 0.868, 0.55, 0.1, 0.1]

    Reference:
        Loshchilov, Hutter, ICLR 2017, arXiv:1608.03983, for learning rates.
    """

    def _share(self, done: float) -> float:
        return (1.0 + math.cos(math.pi * done)) / 2.0
