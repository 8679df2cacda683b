"""A classifier of mixtures of experts: an eighth of the experts' work, if the router learns."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..._errors import ConfigError, DomainError
from ...estimators.base import AbstractEstimator
from ...estimators.straight_through import StraightThrough
from ...laws.categorical import Categorical
from ...rollout import Bound
from ...routing import check_eps, sparsemixer_v2
from ..seeds import Seeds
from ..task import AbstractTask, Metric, bare
from ._labelled import LABELLED, Labelled, load_labelled
from ._moe_model import Choice, Classifier, Output, Route

Routing = Literal["estimator", "sparsemixer_v2", "dense"]
_AT_ONCE = 1000  # images, in an evaluation


@dataclass(frozen=True)
class MoE(AbstractTask):
    r"""Classify images with layers of which each row passes through one expert of several.

    ``x + w_D E_D(norm(x))``, twice by default, between two linear layers. In training
    ``D ~ softmax(router(norm(x)))``, in evaluation D is the most probable expert. An expert
    computes the rows that were sent to it and no others, so the experts' work is 1 / `experts` of
    the dense.

    * ``routing="estimator"``: w_D is the 1 of the one-hot sample, which has the gradient of the
      run's estimator; those that look at values (rloo) see the cross entropy of each image. Since
      the other experts do not run, the slope in the other entries of the one-hot is 0, and no
      pathwise estimator is what its paper says. In evaluation w_D is 1.
    * ``routing="sparsemixer_v2"``: D and w_D are those of `gradthrough.routing.sparsemixer_v2`.
    * ``routing="dense"``: all experts run, with weights softmax(router(norm(x))).

    The last two use no estimator: the config names "st", whose Jacobian is that of the softmax, as
    theirs is. To each loss comes ``balance`` times the mean over layers of
    `gradthrough.routing.load_balance`.

    Args:
        dataset: digits, mnist or fashion-mnist.
        routing: estimator, sparsemixer_v2 or dense.
        layers: how many mixtures.
        experts: of each; one of them, with routing="dense", is a network without a router.
        width: between the layers.
        hidden: units of an expert.
        balance: weight of the balance in the loss, >= 0.
        eps: of sparsemixer_v2: how far below the best an expert may be; None: any distance.
        valid: training images held out, the last ones.

    Raises:
        ConfigError: unknown names.
        DomainError: a number out of range.

    Example:
        >>> from gradthrough.bench.seeds import Seeds
        >>> from gradthrough.bench.tasks.moe import MoE
        >>> task = MoE("digits", layers=1, experts=4, width=8, hidden=8)
        >>> found = task.evaluate(task.model(Seeds(0)), "test", Seeds(0))
        >>> found["work"], sorted(found)
        (25.0, ['accuracy', 'balance', 'evaluations', 'loss', 'work'])

    Reference:
        Liu, Gao, Chen, 2023, arXiv:2310.00811; Liu et al., 2024, arXiv:2409.12136.
    """

    dataset: str = "mnist"
    routing: Routing = "estimator"
    layers: int = 2
    experts: int = 8
    width: int = 64
    hidden: int = 128
    balance: float = 0.01
    eps: float | None = 0.1
    valid: int = 0

    name: ClassVar[str] = "moe"
    # The training loop records the loss under the first.
    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric("loss", "nats", "lower", "cross entropy"),
        Metric("accuracy", "%", "higher", "accuracy"),
        Metric("evaluations", "-", "lower", "experts for each image and layer"),
        Metric("work", "%", "lower", "share of the experts' work"),
        Metric("balance", "-", "lower", "balance of the experts"),
    )
    watched: ClassVar[str] = "accuracy"

    def __post_init__(self) -> None:
        for option, known in (("dataset", LABELLED), ("routing", get_args(Routing))):
            if (value := getattr(self, option)) not in known:
                raise ConfigError(f"{option} is {value!r}, but must be one of {', '.join(known)}.")
        for option, least in {
            "layers": 1,
            "experts": 1,
            "width": 1,
            "hidden": 1,
            "valid": 0,
        }.items():
            if getattr(self, option) < least:
                raise DomainError(
                    f"{option} must be at least {least}, but is {getattr(self, option)}."
                )
        if not 0 <= self.balance < float("inf"):
            raise DomainError(f"balance must be finite and at least 0, but is {self.balance}.")
        check_eps(self.eps)

    @functools.cached_property
    def _held(self) -> dict[str, Labelled]:
        return {}

    def split(self, name: str) -> Labelled:
        """Return a split, on the device that `prepare` was given."""
        if not self._held:
            self.prepare(torch.device("cpu"))
        return self._held[name]

    def prepare(self, device: torch.device) -> None:
        """Load the images and put them on the device."""
        train, test = (part.to(device) for part in load_labelled(self.dataset))
        kept = len(train) - self.valid
        if kept < 1:
            raise DomainError(
                f"valid is {self.valid}, but {self.dataset} has {len(train)} to train on."
            )
        self._held.update(train=train[:kept], valid=train[kept:], test=test)

    def model(self, seeds: Seeds) -> Classifier:
        """Return a classifier in torch's default initialisation."""
        pixels = self.split("test").images[0].numel()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seeds.of("init"))
            return Classifier(pixels, self.layers, self.experts, self.width, self.hidden)

    def batches(self, split: str, seeds: Seeds, *, epoch: int, size: int) -> Iterator[Labelled]:
        """Yield images with labels, those of "train" in random order."""
        data = self.split(split)
        if split == "train":
            generator = torch.Generator().manual_seed(seeds.of("order", epoch))
            data = data[torch.randperm(len(data), generator=generator).to(data.labels.device)]
        yield from (data[start : start + size] for start in range(0, len(data), size))

    def losses(self, model: nn.Module, batch: Labelled, expect: Bound) -> Tensor:
        """Return the cross entropy of each image, in nats, with the weighted balance."""
        if self.routing == "estimator":
            rollout = expect.rollout()

            def sampled(logits: Tensor) -> Choice:
                return _of_one_hot(rollout.sample(logits))

            out: Output = model(batch.images, expect.samples, sampled)
            values = rollout.combine(_cross_entropy(out.scores, batch.labels))
        else:
            expect.evaluations += len(batch)
            out = model(batch.images, 1, self._route(True, expect.generator))
            values = _cross_entropy(out.scores, batch.labels).squeeze(0)
        return values + self.balance * out.balance

    def _route(self, training: bool, generator: torch.Generator | None = None) -> Route:
        """Return how rows are routed without an estimator."""

        def sparse(logits: Tensor) -> Choice:
            return Choice(
                *sparsemixer_v2(logits, eps=self.eps, training=training, generator=generator)
            )

        if self.routing == "sparsemixer_v2":
            return sparse
        return _dense if self.routing == "dense" else _best

    def latent(self, model: nn.Module, batch: Labelled) -> Categorical:
        """Return the law of the first layer's expert."""
        return Categorical(bare(model).first_logits(batch.images))

    def law(self) -> Categorical:
        """Return the law of an expert, one row."""
        return Categorical(torch.zeros(1, self.experts))

    def refuses(self, estimator: AbstractEstimator) -> str | None:
        """Return why the routers cannot be trained so, or None."""
        name = type(estimator).__name__
        if self.routing != "estimator":
            if estimator == StraightThrough():
                return None
            return (
                f"routing is {self.routing!r}, which uses no estimator, but {name} came. Name "
                'estimator="st" with its defaults, or take routing="estimator".'
            )
        if not estimator.traits.many_draws:
            return (
                f"{name} estimates one latent at a time, but each layer draws an expert and there "
                "is one loss at the end."
            )
        if estimator.traits.relaxed:
            return f"{name} draws soft samples, but one expert runs for each row."
        return super().refuses(estimator)

    @torch.no_grad()
    def evaluate(
        self, model: nn.Module, split: str, seeds: Seeds, *, final: bool = False
    ) -> dict[str, float]:
        """Return loss and accuracy of the best experts, their work and how evenly they are used."""
        data = self.split(split)
        if final or not len(data):
            return {}
        sums = {metric.name: 0.0 for metric in self.metrics}
        for batch in self.batches(split, seeds, epoch=0, size=_AT_ONCE):
            out: Output = bare(model)(batch.images, 1, self._route(False))
            sums["loss"] += float(_cross_entropy(out.scores, batch.labels).double().sum())
            right = out.scores[0].argmax(-1) == batch.labels
            sums["accuracy"] += 100.0 * float(right.sum())
            sums["evaluations"] += out.evaluated / self.layers
            sums["work"] += 100.0 * out.evaluated / (self.layers * self.experts)
            sums["balance"] += float(out.balance) * len(batch)
        return {name: total / len(data) for name, total in sums.items()}


def _of_one_hot(z: Tensor) -> Choice:
    expert = z.detach().argmax(-1, keepdim=True)
    return Choice(z.gather(-1, expert), expert)


def _best(logits: Tensor) -> Choice:
    expert = logits.argmax(-1, keepdim=True)
    return Choice(torch.ones_like(expert, dtype=logits.dtype), expert)


def _dense(logits: Tensor) -> Choice:
    return Choice(logits.softmax(-1), None)


def _cross_entropy(scores: Tensor, labels: Tensor) -> Tensor:
    """Return the cross entropies (N, B) of scores (N, B, 10)."""
    wanted = labels.expand(scores.shape[:-1]).flatten()
    return F.cross_entropy(scores.flatten(0, 1), wanted, reduction="none").view(scores.shape[:-1])
