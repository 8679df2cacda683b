"""One epoch of several seeds at once; a seed that diverges leaves, and the others go on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from .._errors import UnsoundLogitsError
from ..estimators import AbstractEstimator
from . import loop, records
from .config import RunConfig
from .journal import Journal
from .noise import Given, NoisePlan
from .progress import Progress
from .seeds import Seeds
from .stacked import Stack
from .task import AbstractTask


@dataclass(eq=False)
class Member:
    """One of the seeds that train together.

    Args:
        config: of its own run.
        journal: of its own run.
        state: "model" and "optimizer" after its last whole epoch, as its own run would have them.
        ended: whether there is nothing left to do.
        whole: whether it trained to the end, and `state` is what came out.
    """

    config: RunConfig
    journal: Journal
    state: dict[str, Any] = field(default_factory=dict[str, Any])
    ended: bool = False
    whole: bool = False

    def __post_init__(self) -> None:
        self.seeds = Seeds(self.config.seed)
        self._generator = torch.Generator(self.journal.device)
        self._batches: Iterator[Tensor] = iter(())

    def begin(self, task: AbstractTask, epoch: int) -> None:
        """Start the batches and the noise of an epoch."""
        self._generator.manual_seed(self.seeds.of("noise", epoch, 0))
        size = self.config.batch_size
        self._batches = task.batches("train", self.seeds, epoch=epoch, size=size)

    def following(self, plan: NoisePlan) -> tuple[Tensor, tuple[Tensor, ...]] | None:
        """Return the next batch and the noise of its step, None at the end of the epoch."""
        batch = next(self._batches, None)
        return None if batch is None else (batch, plan.draw(batch, self._generator))

    def end(
        self,
        status: records.Status,
        reason: str | None = None,
        found: dict[tuple[str, str], float] | None = None,
    ) -> None:
        """Write how it ended."""
        self.journal.end(status, reason, found)
        self.ended, self.whole = True, status == "done"


def following(
    members: Sequence[Member], plan: NoisePlan
) -> tuple[Tensor, tuple[Tensor, ...]] | None:
    """Return the next batches (n, B, ...) and noise (n, ...) of all, None at the end."""
    parts = [part for m in members if (part := m.following(plan)) is not None]
    if not parts:
        return None
    noise = zip(*(noise for _, noise in parts), strict=True)
    return torch.stack([batch for batch, _ in parts]), tuple(torch.stack(x) for x in noise)


@dataclass(frozen=True)
class Setting:
    """What all members have in common.

    Args:
        fabric: the device.
        config: all but the seed.
        task: of the config, prepared.
        estimator: of the config.
        network: whose weights are overwritten with those of the member that is looked at.
        plan: of the noise.
        turned: the matrices that are kept transposed: see `Stack`.
    """

    fabric: Fabric
    config: RunConfig
    task: AbstractTask
    estimator: AbstractEstimator
    network: nn.Module
    plan: NoisePlan
    turned: frozenset[str]

    def stack(self, states: Sequence[dict[str, Any]]) -> Stack:
        """Return the models of some members as one."""
        return Stack(self.task, self.network, self.config, self.estimator, states, self.turned)


class Epoch:
    """One pass over the data by members that have done equally many.

    Args:
        setting: what they have in common.
        members: at least one.
        stack: their models.
        bar: told of each step.

    Attributes:
        members: those that are left.
        stack: their models; None if nobody is left.
        losses: float64 (n,), the sums of their losses.
        count: of examples, for each of them.
        evaluations: of f, for each of them.
    """

    def __init__(
        self, setting: Setting, members: Sequence[Member], stack: Stack, bar: Progress
    ) -> None:
        self._setting, self._bar = setting, bar
        self.members = list(members)
        self.stack: Stack | None = stack
        device = setting.fabric.device
        self.losses = torch.zeros(len(members), dtype=torch.float64, device=device)
        self.count = self.evaluations = 0

    def run(self) -> None:
        """Train; what diverges writes its end and leaves."""
        for m in self.members:
            m.begin(self._setting.task, m.journal.epoch)
        while self.members and (drawn := following(self.members, self._setting.plan)):
            self._step(*drawn)
            self._bar.advance(1)
            if self.members and self.members[0].journal.step % loop.CHECK_EVERY == 0:
                self._check()
                self._bar.show(float(self.losses.mean()) / self.count)
        self._check()

    def _step(self, batches: Tensor, noise: tuple[Tensor, ...]) -> None:
        self.evaluations += self._setting.plan.evaluations(batches[0])
        self.count += batches.shape[1]
        while self.stack is not None:
            try:
                with self._setting.fabric.autocast():
                    losses = self.stack.losses(batches, noise)
            except UnsoundLogitsError:
                reasons = self._unsound(self.stack, batches, noise)
                if not reasons:
                    raise
                kept = self._leave(reasons)
                batches, noise = batches[kept], tuple(x[kept] for x in noise)
                continue
            self.stack.step(losses)
            self.losses += losses.detach().sum(-1)
            for m in self.members:
                m.journal.step += 1
            return

    def _unsound(self, stack: Stack, batches: Tensor, noise: tuple[Tensor, ...]) -> dict[int, str]:
        """Return which members have logits without a distribution, and what their own run says."""
        setting, found = self._setting, dict[int, str]()
        for i, m in enumerate(self.members):
            given = Given(setting.estimator, setting.config.samples or 1, [x[i] for x in noise])
            try:
                with torch.no_grad(), setting.fabric.autocast():
                    setting.task.losses(stack.model(i), batches[i], given)
            except UnsoundLogitsError as error:
                found[i] = f"step {m.journal.step}: {error}"
        return found

    def _check(self) -> None:
        bad = cast("list[int]", (~self.losses.isfinite()).nonzero().flatten().tolist())
        if bad:
            mean = self.losses / self.count
            at = self.members[bad[0]].journal
            self._leave({i: loop.diverged(at.step, at.epoch, float(mean[i])) for i in bad})

    def _leave(self, reasons: dict[int, str]) -> list[int]:
        """End the members that diverged; return the places of those that go on."""
        kept = [i for i in range(len(self.members)) if i not in reasons]
        states = [self.stack.state(i) for i in kept] if self.stack else []
        for i, why in reasons.items():
            self.members[i].end("diverged", why)
        self.members = [self.members[i] for i in kept]
        self.losses = self.losses[kept]
        self.stack = self._setting.stack(states) if states else None
        return kept
