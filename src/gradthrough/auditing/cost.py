"""What a step costs: seconds, taken in turn with others, and the bytes it holds at its peak."""

from __future__ import annotations

import statistics
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
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
    inside is not seen: see `allocated_bytes`.
    """
    with _Allocations() as seen:
        step()
    return seen.peak


def allocated_bytes(step: Callable[[], object], device: torch.device) -> int:
    """Return the most bytes that a step takes from torch's allocator, beyond those held before.

    What a kernel allocates inside is in it, unlike in `peak_bytes`, and so is compiled code, which
    `peak_bytes` makes torch leave: it watches the dispatcher. On CPU the profiler tells what is
    taken and given back.

    Args:
        step: to measure.
        device: whose memory.

    Example:
        >>> import torch
        >>> from gradthrough.auditing.cost import allocated_bytes
        >>> x = torch.zeros(1000)
        >>> allocated_bytes(lambda: x.neg().neg(), torch.device("cpu"))
        8000
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        step()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        step()
    held = peak = 0
    for _, change in sorted(_allocations(profiled)):
        held += change
        peak = max(peak, held)
    return peak


def _allocations(profiled: profile) -> Iterator[tuple[int, int]]:
    """Yield (nanosecond, bytes taken or, negative, given back)."""
    inner: Any = profiled.profiler
    todo: list[Any] = list(inner.kineto_results.experimental_event_tree())
    while todo:
        event = todo.pop()
        todo += event.children
        if event.tag.name == "Allocation":
            yield event.start_time_ns, event.extra_fields.alloc_size
