"""Neural architecture search: the cell of NAS-Bench-201, by gradients through sampled cells."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..._errors import ConfigError, DomainError
from ...estimators import AbstractEstimator
from ...laws.categorical import Categorical
from ...rollout import Bound
from .. import optimizers
from ..config import RunConfig
from ..nas_tables import EDGES, OPS, AccuracyTable, cell_number, load_table
from ..seeds import Seeds
from ..task import AbstractTask, Metric, bare
from ._labelled import LABELLED
from ._search_data import SearchData, Step, parts
from ._supernet import EvaluateOps, Supernet

_MOST = 64  # networks for one step
_AT_ONCE = 250  # images, in an evaluation


@dataclass(frozen=True)
class NAS(AbstractTask):
    r"""Architecture search by GDAS: one cell is sampled for each step, its op weights are one-hot.

    ``min over theta of E_z loss(z, w(theta)), z ~ softmax(theta)`` for each of six edges: an edge
    is one of five ops, which makes 15,625 cells. The network repeats its cell: a stem, `cells`
    cells, a residual block that halves the image, `cells` cells, another such block, `cells` cells
    and a linear head. All of them share the weights w of every op on every edge.

    Steps come in pairs: one moves w on one half of the training images, the next one moves theta
    on the other half; the training loss of the records is the mean over both. A minibatch shares
    its cell: the law has one row, and an evaluation of f is a pass of a minibatch through one
    network. An estimator that wants N points costs N networks, in the steps of w too, whose loss is
    then the mean over N cells; more than 64 are refused.

    Published settings of a run: sgd (with momentum it is Nesterov's) with lr 0.025, lr_end 0.001,
    schedule cosine, momentum 0.9, weight_decay 5e-4, clip 5, batch_size 64, 100 epochs, stgs with
    tau 10 and tau_end 0.1. theta has an Adam of its own, with betas 0.5 and 0.999. Weights of ops
    that were not sampled stay as they are. In a cell, batch normalisation has no scale and shift;
    statistics are kept nowhere: an evaluation normalises by its batch of 250 images.

    * ``evaluate_ops`` says what a step of theta knows of the ops that were not chosen. The value
      is the same; d f / d z_k differs for them. With g the gradient in the output of the edge,
      "all" is exact, ``<g, op_k(x)>``; it computes every op, but goes back through the chosen
      one alone. "chosen" computes nothing else, and takes 0. "published" computes nothing else,
      and takes ``sum g``: the authors of GDAS add the weights of the other ops to the output, as
      numbers. It is the default because it is the protocol of the published table. Estimators that
      differentiate f at the sample (stgs, reinmax) are what their papers say under "all" only;
      those that use values (rloo) do not depend on it.
    * Soft points (gumbel_softmax; some of muprop, rebar, relax) weigh all ops, and compute and
      differentiate all of them. The cell that is evaluated is one-hot nevertheless.
    * ``lookup`` gives the accuracies that NAS-Bench-201 measured for the most probable cell, when
      trained alone on CIFAR-10, CIFAR-100 and ImageNet16-120. Here the search sees grey images, of
      which that table knows nothing: the numbers are a transfer, not the published experiment. The
      200-epoch validation accuracies are missing.

    Args:
        dataset: digits, mnist or fashion-mnist.
        channels: in front of the first reduction.
        cells: in each of the three stages.
        evaluate_ops: published, chosen or all.
        images: how many training images are used, half for the weights, half for theta; all by
            default.
        crop: training images are shifted by up to so many pixels each way; 0 for none.
        flip: whether half of the training images are mirrored.
        arch_lr: rate of theta's Adam, > 0.
        arch_weight_decay: of theta's Adam, >= 0.
        lookup: whether the accuracies of the most probable cell are looked up after each
            evaluation; needs the table of `gradthrough.bench.nas_tables`.

    Raises:
        ConfigError: unknown names; with `lookup` and without its file, when data is loaded.
        DomainError: a number out of range.

    Example:
        >>> from gradthrough.bench.seeds import Seeds
        >>> from gradthrough.bench.tasks.nas import NAS
        >>> task = NAS("digits", channels=4, cells=1)
        >>> steps = task.batches("train", Seeds(0), epoch=0, size=64)
        >>> [(step.kind, len(step)) for step in steps][:2]
        [('weights', 64), ('architecture', 64)]

    Reference:
        Dong, Yang, CVPR 2019, arXiv:1910.04465 (GDAS); Dong, Yang, ICLR 2020, arXiv:2001.00326
        (the space and the table); with ReinMax: Liu et al., NeurIPS 2023, arXiv:2304.08612.
    """

    dataset: str = "fashion-mnist"
    channels: int = 16
    cells: int = 5
    evaluate_ops: EvaluateOps = "published"
    images: int | None = None
    crop: int = 0
    flip: bool = False
    arch_lr: float = 3e-4
    arch_weight_decay: float = 1e-3
    lookup: bool = False

    name: ClassVar[str] = "nas"
    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric("loss", "nats", "lower", "cross entropy"),
        Metric("accuracy", "%", "higher", "accuracy"),
        Metric("entropy", "nats", "neither", "entropy of the cell"),
        Metric("cifar10_test_200ep", "%", "higher", "CIFAR-10"),
        Metric("cifar100_test_200ep", "%", "higher", "CIFAR-100"),
        Metric("imagenet16_120_test_200ep", "%", "higher", "ImageNet16-120"),
    )

    def __post_init__(self) -> None:
        names = {"dataset": LABELLED, "evaluate_ops": get_args(EvaluateOps)}
        for option, known in names.items():
            if (value := getattr(self, option)) not in known:
                raise ConfigError(f"{option} is {value!r}, but must be one of {', '.join(known)}.")
        for option, least in {"channels": 1, "cells": 1, "images": 2, "crop": 0}.items():
            value = getattr(self, option)
            if value is not None and value < least:
                raise DomainError(f"{option} must be at least {least}, but is {value}.")
        if not 0 < self.arch_lr < float("inf") or not 0 <= self.arch_weight_decay < float("inf"):
            found = f"they are {self.arch_lr} and {self.arch_weight_decay}"
            raise DomainError(
                f"arch_lr must be above 0, arch_weight_decay at least 0, but {found}."
            )

    @functools.cached_property
    def _held(self) -> dict[str, SearchData]:
        return {}

    @functools.cached_property
    def _table(self) -> AccuracyTable | None:
        return load_table() if self.lookup else None

    @property
    def data(self) -> SearchData:
        """Both halves and the test images, on the device that `prepare` was given."""
        if "data" not in self._held:
            self.prepare(torch.device("cpu"))
        return self._held["data"]

    def prepare(self, device: torch.device) -> None:
        """Load the images and put them on the device; with `lookup`, the table."""
        self._held["data"] = SearchData.load(self.dataset, self.images, device)
        _ = self._table  # not after an epoch's work: the file may be missing

    def model(self, seeds: Seeds) -> Supernet:
        """Return weights in torch's default initialisation, and theta of about 1e-3."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seeds.of("init"))
            return Supernet(self.channels, self.cells, self.evaluate_ops)

    def batches(self, split: str, seeds: Seeds, *, epoch: int, size: int) -> Iterator[Step]:
        """Yield steps of weights and of theta in turns for "train", else all images in order."""
        if split != "train":
            held_out = self.data.architecture if split == "valid" else self.data.test
            yield from (Step("weights", part) for part in parts(held_out, size))
            return
        yield from self.data.steps(seeds, epoch=epoch, size=size, crop=self.crop, flip=self.flip)

    def losses(self, model: nn.Module, batch: Step, expect: Bound) -> Tensor:
        """Return the mean cross entropy of the batch under sampled cells, once for each image."""
        return model(batch.data.images, batch.data.labels, batch.kind, expect)

    def latent(self, model: nn.Module, batch: Step) -> Categorical:
        """Return the law of the cell, one row whatever the batch."""
        return bare(model).law()

    def law(self) -> Categorical:
        """Return a law of one row."""
        return Categorical(torch.zeros(1, len(EDGES), len(OPS)), event_dims=1)

    def refuses(self, estimator: AbstractEstimator) -> str | None:
        """Return why the search cannot be run with an estimator, or None."""
        if (reason := super().refuses(estimator)) is not None:
            return reason
        count = estimator.evaluations(self.law(), estimator.traits.min_samples)
        if count <= _MOST:
            return None
        return (
            f"{type(estimator).__name__} evaluates f at {count} points, so each step would train "
            f"{count} networks. At most {_MOST} are taken; use an estimator that samples."
        )

    def optimizers(self, model: nn.Module, config: RunConfig) -> Sequence[torch.optim.Optimizer]:
        """Return the config's optimizer for the weights, with Nesterov's momentum, and Adam."""
        net: Supernet = bare(model)
        weights = optimizers.build(config, net.network.parameters(), nesterov=True)
        adam = torch.optim.Adam(
            [net.architecture],
            lr=self.arch_lr,
            betas=(0.5, 0.999),
            weight_decay=self.arch_weight_decay,
        )
        return weights, adam

    @torch.no_grad()
    def evaluate(
        self, model: nn.Module, split: str, seeds: Seeds, *, final: bool = False
    ) -> dict[str, float]:
        """Return loss and accuracy of the most probable cell, with the shared weights.

        The split "valid" is the half that theta trains on, which the weights never see. "test"
        comes with `final` only.
        """
        if final != (split == "test"):
            return {}
        net: Supernet = bare(model)
        z = net.law().mode().squeeze(0)
        loss = right = count = 0.0
        for step in self.batches(split, seeds, epoch=0, size=_AT_ONCE):
            scores, labels = net.scores(step.data.images, z), step.data.labels
            loss += float(F.cross_entropy(scores, labels, reduction="sum"))
            right += float((scores.argmax(-1) == labels).sum())
            count += len(labels)
        return {"loss": loss / count, "accuracy": 100 * right / count}

    @torch.no_grad()
    def probe(self, model: nn.Module, config: RunConfig, *, epoch: int) -> dict[str, float]:
        """Return the number of the most probable "cell" and the "entropy" of the law in nats.

        With `lookup` also the cell's "index" in the benchmark, and every column of the table.
        """
        net: Supernet = bare(model)
        cell, entropy = net.cell(), float(net.law().entropy())  # at most 6 log 5 = 9.66
        found = {"cell": float(cell_number(cell)), "entropy": entropy}
        if self._table is not None:
            found |= {"index": float(self._table.index(cell)), **self._table.row(cell)}
        return found
