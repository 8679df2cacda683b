"""swap: another estimator wherever gumbel_softmax is called, without editing the code."""

from __future__ import annotations

import dataclasses
import inspect
import warnings
from collections.abc import Callable, Iterable
from contextlib import ContextDecorator
from typing import Any, Self

import torch
from torch import Tensor, nn

from .._errors import ConfigError, UnsupportedError
from ..estimators import AbstractEstimator
from ..estimators import estimator as build
from ..estimators.pathwise import AbstractPathwise
from ..sampling import check_pathwise, sample
from . import copies, functional, rsample
from .active import enter, leave
from .scope import Scope
from .sites import Sites


class SwapWarning(UserWarning):
    """A swap that no call met."""


class Swap(ContextDecorator):
    """A swap: a context manager, and a decorator. `swap` makes one, and says what it does."""

    def __init__(
        self,
        estimator: AbstractPathwise,
        *,
        own_tau: bool,
        model: nn.Module | None,
        also: tuple[str, ...],
    ) -> None:
        self._estimator = estimator
        self._own_tau = own_tau
        self._also = also
        self._scope = None if model is None else Scope(model)
        self._sites = Sites()
        self._met = False
        self._open: list[list[object]] = []
        self._watched = functional.Watched()

    @property
    def estimator(self) -> AbstractPathwise:
        """What the calls get. It may be set anew while the swap is on; its tau then holds."""
        return self._estimator

    @estimator.setter
    def estimator(self, value: AbstractEstimator) -> None:
        self._estimator, self._own_tau = check_pathwise(value), True

    @property
    def own_tau(self) -> bool:
        """Whether the estimator's tau holds for every call, and not the tau of each."""
        return self._own_tau

    @property
    def sites(self) -> dict[str, int]:
        """How many calls came from each place; those inside compiled code are not counted."""
        return self._sites.counts()

    @property
    def calls(self) -> int:
        """How many calls were taken; those inside compiled code are not counted."""
        return sum(self.sites.values())

    def __call__(self, func: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function whose calls are made within the swap."""
        if inspect.isgeneratorfunction(func) or inspect.iscoroutinefunction(func):
            raise UnsupportedError(
                "a swap cannot decorate a generator or a coroutine, whose body runs after the call "
                "has ended. Write `with gradthrough.swap(...):` inside of it."
            )
        return super().__call__(func)

    def __enter__(self) -> Self:
        if torch.compiler.is_dynamo_compiling():
            raise UnsupportedError(
                "a swap cannot begin inside of compiled code. Begin it outside: "
                "with gradthrough.swap(...): compiled(x)."
            )
        wanted = [functional.PATCH, *rsample.patches()]
        keys = enter(self, [*wanted, *copies.patches(self._also)])
        try:
            if self._scope is not None and not self._open:
                self._scope.open()
        except BaseException:
            leave(self, keys)
            raise
        self._watched.__enter__()
        self._open.append(keys)
        return self

    def __exit__(self, kind: object, *error: object) -> None:
        keys = self._open.pop()
        self._watched.__exit__()
        if self._scope is not None and not self._open:
            self._scope.close()
        leave(self, keys)
        if kind is None and not self._met:
            warnings.warn(
                "the swap met no call: nothing in it called torch.nn.functional.gumbel_softmax or "
                "a distribution that is replaced"
                + (", inside of the model" if self._scope else "")
                + ". A private copy is replaced when it is named: also="
                + f"{' or '.join(map(repr, copies.COPIES))}.",
                SwapWarning,
                stacklevel=2,
            )

    def applies(self) -> bool:
        """Return whether the call in progress is one of its own."""
        return self._scope is None or self._scope.holds()

    def draw(
        self,
        logits: Tensor,
        *,
        hard: bool,
        tau: Any = None,
        dim: int = -1,
        uniform: Tensor | None = None,
    ) -> Tensor:
        """Return the sample for a call: the same as torch's, where law and noise allow."""
        self._met = True
        if not torch.compiler.is_compiling():
            self._sites.count()
        if logits.ndim == 0:
            return self._sample(logits.unsqueeze(0), hard, tau, -1, uniform).squeeze(0)
        return self._sample(logits, hard, tau, dim, uniform)

    def _sample(
        self,
        logits: Tensor,
        hard: bool,
        tau: Any,
        dim: int,
        uniform: Tensor | None,
    ) -> Tensor:
        one: Any = self._estimator.form(hard=hard)
        if tau is not None and not self._own_tau and hasattr(one, "tau"):
            one = dataclasses.replace(one, tau=tau)
        if uniform is not None:
            _check_one_uniform(one)
            return sample(logits, one, dim=dim, noise=uniform.to(torch.float64))
        return sample(logits, one, dim=dim, like_torch=True)


def _check_one_uniform(one: AbstractPathwise) -> None:
    if one.traits.noise != "variable":
        raise UnsupportedError(
            f"the caller hands in one uniform for each variable, and {type(one).__name__} takes "
            "more noise than that. Take an estimator that does with it: gradthrough.ReinMax()."
        )


def swap(
    estimator: str | AbstractEstimator,
    *,
    model: nn.Module | None = None,
    also: str | Iterable[str] = (),
    **options: object,
) -> Swap:
    r"""Take another estimator wherever gumbel_softmax is called, without editing the code.

    Within the block every call of ``torch.nn.functional.gumbel_softmax``, under whatever name and
    in whatever library, gets the estimator's sample; so does ``rsample`` of torch's
    ``OneHotCategoricalStraightThrough`` and ``RelaxedOneHotCategorical``, and of Pyro's relaxed
    straight-through one. On leaving, also by an exception, torch is as it was. Swaps nest: the
    innermost that a call belongs to has it. Threads that run meanwhile are swapped, too.

    The sample is drawn from the numbers that torch would draw: on CPU, in float32 and float64, the
    same class, and only the gradient is another one. (ReDGE, whose law is only near the softmax,
    draws its own; so do relaxed distributions, several samples at once, and private copies.)
    A call with ``hard=False`` gets a soft sample from `gumbel_softmax` and `stgs`, which are one
    estimator in two forms; from others it raises.

    Where a checkpoint draws again in the backward, the backward belongs into the block. Code that
    torch.compile has compiled is compiled again, for as long as the block lasts; the block is to be
    entered in the thread that calls it. Functions of torch.jit are out of reach.

    Args:
        estimator: a key of ``ESTIMATORS``, or a pathwise estimator.
        model: only calls made inside of this module, for long runs: other models in the process
            stay as they are.
        also: private copies to replace as well: "groupvit" (Hugging Face), "torchrl" (the
            categorical states of DreamerV3), "vector_quantize_pytorch".
        options: of the estimator. A tau given here holds for every call; without it, and with a
            key, the tau of each call holds, for estimators that have one.

    Returns:
        What to put behind ``with ... as swapped`` (or, as ``@gt.swap(...)``, before a function).
        ``swapped.sites`` counts the calls by where they came from; ``swapped.estimator`` may be set
        anew.

    Raises:
        ConfigError: unknown key, option or name of a copy.
        UnsupportedError: an estimator without a sample that carries the gradient, such as RLOO;
            raised by a call: a soft sample wanted of a hard estimator, a tau that is learned and
            that the estimator cannot learn.
        BackendError: a copy whose package cannot be imported; raised by torch.compile: a call that
            it comes upon in another thread.

    Example:
        >>> import torch, gradthrough as gt
        >>> import torch.nn.functional as F
        >>> logits = torch.zeros(5, 3, requires_grad=True)
        >>> with gt.swap("reinmax", tau=1.3) as swapped:
        ...     z = F.gumbel_softmax(logits, tau=0.5, hard=True)
        >>> swapped.calls, z.grad_fn.name().startswith("_Launch")
        (1, True)
    """
    own_tau = True
    one: object = estimator
    if isinstance(estimator, str):
        one, own_tau = build(estimator, **options), "tau" in options
    elif options:
        raise ConfigError(
            f"options {', '.join(options)} came beside an estimator that is made already. Pass the "
            "key and its options, or the estimator alone."
        )
    if model is not None and not isinstance(model, nn.Module):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise UnsupportedError(
            f"model must be a torch.nn.Module, but a {type(model).__name__} came."
        )
    names = (also,) if isinstance(also, str) else tuple(also)
    copies.check_names(names)
    return Swap(check_pathwise(one), own_tau=own_tau, model=model, also=names)
