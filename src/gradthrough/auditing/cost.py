"""What a step costs: seconds, taken in turn with others, and the bytes it holds at its peak."""

from __future__ import annotations

import statistics
import time
import weakref
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_BUDGET = 0.5  # seconds spent on timing one step


def step_times(
    steps: Mapping[str, Callable[[], object]], *, rounds: int = 60
) -> dict[str, list[float]]:
    """Return the seconds of each step, taken in turn so that a slow moment hits all alike."""
    for step in steps.values():
        step()
    seconds: dict[str, list[float]] = {label: [] for label in steps}
    for _ in range(rounds):
        for label, step in steps.items():
            began = now()
            step()
            seconds[label].append(now() - began)
    return seconds


def median_milliseconds(seconds: Mapping[str, list[float]]) -> dict[str, float]:
    """Return the median of each, in milliseconds."""
    return {label: 1000 * statistics.median(values) for label, values in seconds.items()}


def halves(
    steps: Mapping[str, Callable[[], Callable[[], object]]], *, rounds: int = 15
) -> dict[str, tuple[float, float]]:
    """Return the median seconds of a forward, and of the backward that it returns.

    All are taken in turn; one that is slow is taken fewer times.
    """
    first = {label: _halves(step) for label, step in steps.items()}
    first = {label: _halves(step) for label, step in steps.items()}  # the first is a warm-up
    taken = {label: [pair] for label, pair in first.items()}
    for i in range(rounds):
        for label, step in steps.items():
            if (i + 1) * sum(first[label]) <= _BUDGET:
                taken[label].append(_halves(step))
    return {
        label: (statistics.median(a for a, _ in pairs), statistics.median(b for _, b in pairs))
        for label, pairs in taken.items()
    }


def _halves(forward: Callable[[], Callable[[], object]]) -> tuple[float, float]:
    began = now()
    backward = forward()
    middle = now()
    backward()
    return middle - began, now() - middle


def now() -> float:
    """Return the time at which everything asked of the device is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


class _Allocations(TorchDispatchMode):
    """Counts the bytes of the storages that operators return, for as long as they live."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(
        self,
        func: Any,  # noqa: ANN401 - torch's own signature
        types: Any,  # noqa: ANN401
        args: Any = (),  # noqa: ANN401
        kwargs: Any = None,  # noqa: ANN401
    ) -> Any:  # noqa: ANN401
        # What comes in unknown was there before, and a view of it takes no memory.
        for x in tree_leaves((args, kwargs)):
            if isinstance(x, Tensor):
                self._see(x.untyped_storage(), 0)
        out = func(*args, **(kwargs or {}))
        for x in tree_leaves(out):
            if isinstance(x, Tensor):
                self._see(x.untyped_storage(), x.untyped_storage().nbytes())
        return out

    def _see(self, storage: torch.UntypedStorage, size: int) -> None:
        key = storage._cdata  # pyright: ignore[reportPrivateUsage]
        if key in self._known:
            return
        self._known.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


def peak_bytes(step: Callable[[], object]) -> int:
    """Return the most bytes of tensors that a step holds at a time, beyond what was there before.

    Counted at torch's operators, so it is the same on every machine; what a kernel allocates
    inside is not seen.
    """
    with _Allocations() as seen:
        step()
    return seen.peak
