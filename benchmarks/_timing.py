"""How a kernel is measured: paired times, peak and saved bytes, launches."""

import gc
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from _contestants import Forward, Shape
from torch import Tensor
from torch.autograd import DeviceType
from torch.autograd.graph import saved_tensors_hooks
from torch.profiler import ProfilerActivity, profile

from gradthrough.auditing.cost import allocated_bytes

PARTS = ("forward", "backward", "both")
# Bytes that must move, in units of the logits: forward, logits in and sample out; backward,
# upstream gradient and logits in, gradient out. A copy moves 2.
FLOOR_UNITS = (2, 3, 5)
_QUICK = 5e-3  # seconds; what runs shorter is run once, untimed, just before it is timed


class Numbers(NamedTuple):
    """One number for each part."""

    forward: float
    backward: float
    both: float


@dataclass(frozen=True)
class Problem:
    """Logits, an upstream gradient, and a place to copy to."""

    logits: Tensor
    upstream: Tensor
    target: Tensor

    @staticmethod
    def make(shape: Shape, dtype: torch.dtype, device: torch.device) -> "Problem":
        """Return a problem with a fixed seed."""
        generator = torch.Generator(device).manual_seed(0)

        def normal() -> Tensor:
            return torch.randn(shape, dtype=dtype, device=device, generator=generator)

        return Problem(normal().requires_grad_(), normal(), normal())

    @property
    def size(self) -> int:
        """Return the bytes of the logits."""
        return self.logits.numel() * self.logits.element_size()

    def gradient(self, z: Tensor) -> Tensor:
        """Return the gradient that reaches the logits."""
        return torch.autograd.grad(z, self.logits, self.upstream)[0]

    def timer(self, forward: Forward) -> Callable[[], Numbers]:
        """Return a function that runs both ways once and returns microseconds."""

        def timed() -> Numbers:
            with _stopwatch(self.logits.device) as watch:
                watch.mark()
                z = forward(self.logits)
                watch.mark()
                gradient = self.gradient(z)
                watch.mark()
            del z, gradient  # not inside of the watch: to free is the caller's business
            return Numbers(watch.between(0, 1), watch.between(1, 2), watch.between(0, 2))

        return timed

    def floor_timer(self) -> Callable[[], Numbers]:
        """Return a function that copies once and returns the microseconds of the byte floor."""
        source = self.logits.detach()

        def timed() -> Numbers:
            with _stopwatch(source.device) as watch:
                watch.mark()
                self.target.copy_(source)
                watch.mark()
            per_unit = watch.between(0, 1) / 2
            return Numbers(*(units * per_unit for units in FLOOR_UNITS))

        return timed


class _Watch:
    """Points in time: of the processor, or of the stream of a GPU."""

    def __init__(self, cuda: bool) -> None:
        self._cuda = cuda
        self._marks: list[Any] = []

    def mark(self) -> None:
        """Note this moment."""
        if self._cuda:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._marks.append(event)
        else:
            self._marks.append(time.perf_counter_ns())

    def between(self, first: int, second: int) -> float:
        """Return the microseconds from one mark to another."""
        a, b = self._marks[first], self._marks[second]
        return a.elapsed_time(b) * 1e3 if self._cuda else (b - a) / 1e3


@contextmanager
def _stopwatch(device: torch.device) -> Iterator[_Watch]:
    """Give a watch; the device is idle before and after."""
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.synchronize(device)
    yield _Watch(cuda)
    if cuda:
        torch.cuda.synchronize(device)


def warm_up(timers: Mapping[str, Callable[[], Numbers]]) -> dict[str, float]:
    """Run each, which also builds what is built at first use; return its seconds after that."""
    seconds: dict[str, float] = {}
    for name, timer in timers.items():
        began = time.perf_counter()
        timer()
        for _ in range(2 if time.perf_counter() - began < 1.0 else 1):
            began = time.perf_counter()
            timer()
            seconds[name] = time.perf_counter() - began
    return seconds


def round_seconds(seconds: Mapping[str, float]) -> float:
    """Return how long one repeat of all will take."""
    return sum(s * (2 if s < _QUICK else 1) for s in seconds.values())


def paired(
    timers: Mapping[str, Callable[[], Numbers]], seconds: Mapping[str, float], repeats: int
) -> dict[str, list[Numbers]]:
    """Time all in turn, in an order that rotates, so that a slow moment hits all alike.

    Whoever is quick runs once untimed first: else it would pay for the caches that its
    predecessor in the turn left behind.
    """
    names = list(timers)
    out: dict[str, list[Numbers]] = {name: [] for name in names}
    with _no_collection():
        for repeat in range(repeats):
            turn = repeat % len(names)
            for name in names[turn:] + names[:turn]:
                if seconds[name] < _QUICK:
                    timers[name]()
                out[name].append(timers[name]())
    return out


@contextmanager
def _no_collection() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def peak_bytes(problem: Problem, forward: Forward) -> Numbers:
    """Return the most bytes held at a time beyond those held before, for each part."""
    device = problem.logits.device
    z = forward(problem.logits)
    return Numbers(
        allocated_bytes(lambda: forward(problem.logits), device),
        allocated_bytes(lambda: problem.gradient(z), device),
        allocated_bytes(lambda: problem.gradient(forward(problem.logits)), device),
    )


def saved_bytes(problem: Problem, forward: Forward) -> int:
    """Return the bytes that the graph keeps for the backward, each storage counted once."""
    storages: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return x

    with saved_tensors_hooks(pack, lambda x: x):
        z = forward(problem.logits)
    del z  # alive until here, so no two storages had one address
    return sum(storages.values())


def launches(problem: Problem, forward: Forward) -> Numbers | None:
    """Return the number of kernels that each part launches on a GPU, None elsewhere."""
    if problem.logits.device.type != "cuda":
        return None
    with _kernels() as first:
        z = forward(problem.logits)
    with _kernels() as second:
        problem.gradient(z)
    return Numbers(len(first), len(second), len(first) + len(second))


@contextmanager
def _kernels() -> Iterator[list[str]]:
    """Give a list that afterwards holds the kernels launched inside, copies and fills left out."""
    names: list[str] = []
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiled:
        yield names
        torch.cuda.synchronize()
    for event in profiled.events() or ():
        on_gpu = event.device_type == DeviceType.CUDA and not event.is_user_annotation
        if on_gpu and not event.name.startswith(("Memcpy", "Memset", "Activity Buffer")):
            names.append(event.name)
