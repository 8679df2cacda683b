"""What a task is: a model, its data, a loss that leaves the estimator open, and its metrics."""

from __future__ import annotations

import abc
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias, cast

import torch
from torch import Tensor, nn

from .._errors import UnsupportedError
from ..estimators.base import AbstractEstimator
from ..expect import admit, ask
from ..laws.base import Distribution
from ..rollout import Bound
from . import optimizers
from .config import RunConfig
from .options import plain
from .seeds import Seeds


@dataclass(frozen=True)
class Metric:
    """A number that a task reports.

    Args:
        name: as it stands in the records.
        unit: of the number.
        better: which way is better.
        title: as it stands in tables and figures.
    """

    name: str
    unit: str
    better: str
    title: str


# Examples: a tensor, or whatever has a length and gives a share of itself for a slice.
Batch: TypeAlias = Any


# Where the classes come from that stand around a model while it trains or is compiled.
_WRAPPERS = ("lightning_fabric.", "torch.nn.parallel.", "torch._dynamo.")


def bare(model: nn.Module) -> Any:  # noqa: ANN401 - the task knows its own model
    """Return a model without what trains or compiles it around it.

    Example:
        >>> import torch
        >>> from gradthrough.bench.task import bare
        >>> layer = torch.nn.Linear(2, 2)
        >>> bare(torch.nn.DataParallel(layer)) is bare(layer) is layer
        True
    """
    # By its class, since a model may have a part that it calls "module" itself.
    while type(model).__module__.startswith(_WRAPPERS):
        model = getattr(model, "_orig_mod", None) or cast(nn.Module, model.module)
    return model


class AbstractTask(abc.ABC):
    """A problem to train on. Subclasses are frozen dataclasses: their fields are the options."""

    name: ClassVar[str]
    metrics: ClassVar[tuple[Metric, ...]]  # the first is the headline
    # What the schedule "plateau" looks at on the split "valid"; "": the headline.
    watched: ClassVar[str] = ""

    @property
    def watched_metric(self) -> Metric:
        """What the schedule "plateau" looks at on the split "valid"."""
        named = {metric.name: metric for metric in self.metrics}
        return named.get(self.watched, self.metrics[0])

    @abc.abstractmethod
    def prepare(self, device: torch.device) -> None:
        """Load the data and put it on the device."""

    @abc.abstractmethod
    def model(self, seeds: Seeds) -> nn.Module:
        """Return a model with fresh weights; torch's global state is left as it was."""

    @abc.abstractmethod
    def batches(self, split: str, seeds: Seeds, *, epoch: int, size: int) -> Iterator[Batch]:
        """Yield the batches of one pass, shuffled for the split "train"."""

    @abc.abstractmethod
    def losses(self, model: nn.Module, batch: Batch, expect: Bound) -> Tensor:
        """Return the losses (B,) of a batch; every random choice goes through `expect`."""

    @abc.abstractmethod
    def evaluate(
        self, model: nn.Module, split: str, seeds: Seeds, *, final: bool = False
    ) -> dict[str, float]:
        """Return the metrics of a split, with `final` the costly ones only; {} without data."""

    @abc.abstractmethod
    def latent(self, model: nn.Module, batch: Batch) -> Distribution:
        """Return the law of the latents of a batch, for probes of the gradient."""

    @abc.abstractmethod
    def law(self) -> Distribution:
        """Return a law of one row, of the family and shape of `latent`."""

    def refuses(self, estimator: AbstractEstimator) -> str | None:
        """Return why the task cannot be trained with an estimator, or None."""
        samples = estimator.traits.min_samples
        try:
            # It knows best what it cannot serve: a family, or a space that is too large.
            rows = admit(self.law(), estimator, samples).expand(samples)
            ask(estimator, rows, torch.Generator(), None)
        except UnsupportedError as error:
            return str(error)
        return None

    def options(self) -> dict[str, Any]:
        """Return the options as plain data, as a config wants them."""
        return plain(self)

    def optimizers(self, model: nn.Module, config: RunConfig) -> Sequence[torch.optim.Optimizer]:
        """Return the optimizers, which all step after each batch; `schedule` moves the first."""
        return (optimizers.build(config, model.parameters()),)

    def probe(self, model: nn.Module, config: RunConfig, *, epoch: int) -> dict[str, float]:
        """Return what else there is to measure, of the model as it is, {} for nothing.

        Args:
            model: in evaluation mode.
            config: of the run: whose estimator, and how it trains.
            epoch: how many are done.
        """
        return {}

    def pictures(self, model: nn.Module, seeds: Seeds) -> dict[str, Tensor]:
        """Return grey pictures (height, width) in [0, 1] to look at, by name."""
        return {}
