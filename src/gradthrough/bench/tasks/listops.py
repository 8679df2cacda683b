"""ListOps: nested lists of operators and digits, read along trees that are latent."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..._errors import DomainError
from ...estimators.base import AbstractEstimator
from ...laws.categorical import Categorical
from ...rollout import Bound
from ..listops_data import TRAIN, Source, load_listops
from ..seeds import Seeds
from ..task import AbstractTask, Metric, bare
from ._listops_batches import Batch, Sentences
from ._listops_model import Sizes, TreeLSTM

_EVALUATED = 32  # sentences at a time: with a longest one of 100 tokens they take 200 MB
_LENGTHS = ((1, 10), (11, 25), (26, 50), (51, None))


def _accuracy(first: int, last: int | None) -> Metric:
    name = f"accuracy_{first}_{last}" if last else f"accuracy_from_{first}"
    title = f"accuracy, {first} to {last} tokens" if last else f"accuracy, {first} tokens and more"
    return Metric(name, "%", "higher", title)


@dataclass(frozen=True)
class ListOps(AbstractTask):
    """Tell what a nested list comes to, with a Tree-LSTM that chooses what to merge.

    ``[ MAX 2 9 [ MIN 4 7 ] 0 ]`` comes to 9. Brackets, operators and digits are the leaves; step by
    step two neighbours are merged, drawn from a law over all pairs, until one node is left, which
    is classified. The training loss is one number at the end of up to `max_length` - 2 choices. In
    evaluation the best pair is merged.

    Args:
        embedding: size of the embedding of a token.
        hidden: size of a node.
        classifier: hidden units of the classifier.
        leaf_rnn: leaves from an LSTM over the tokens, else from each token alone.
        dropout: on embeddings and around the classifier's hidden layer, in [0, 1).
        scaled: divide the scores of pairs by the square root of `hidden`.
        max_length: in tokens, "[" is one of them; longer sentences are left out of every split, as
            published.
        source: release (valid and test as published) or generated; the training set is always
            generated.
        train_size: expressions to train on, long ones included.
        data_seed: of the expressions that are generated, whatever the seed of the run.

    Reference:
        Choi, Yoo, Lee, AAAI 2018, arXiv:1707.02786; data: Nangia, Bowman, NAACL 2018,
        arXiv:1804.06028; sizes and protocol: Liu et al., NeurIPS 2023, arXiv:2304.08612.
    """

    embedding: int = 300
    hidden: int = 300
    classifier: int = 300
    leaf_rnn: bool = True
    dropout: float = 0.5
    scaled: bool = True
    max_length: int = 99
    source: Source = "release"
    train_size: int = TRAIN
    data_seed: int = 0

    name: ClassVar[str] = "listops"
    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric("loss", "nats", "lower", "cross-entropy"),
        Metric("accuracy", "%", "higher", "accuracy"),
        *(_accuracy(*bounds) for bounds in _LENGTHS),
    )
    watched: ClassVar[str] = "accuracy"

    def __post_init__(self) -> None:
        for option in ("embedding", "hidden", "classifier", "max_length"):
            if getattr(self, option) < 1:
                raise DomainError(f"{option} must be at least 1, but is {getattr(self, option)}.")
        if not 0 <= self.dropout < 1:
            raise DomainError(f"dropout must be in [0, 1), but is {self.dropout}.")

    @functools.cached_property
    def _held(self) -> dict[str, Sentences]:
        return {}

    def sentences(self, split: str) -> Sentences:
        """Return a split, on the device that `prepare` was given."""
        if not self._held:
            self.prepare(torch.device("cpu"))
        return self._held[split]

    def prepare(self, device: torch.device) -> None:
        """Load or draw the expressions."""
        data = load_listops(self.source, train_size=self.train_size, seed=self.data_seed)
        for split in ("train", "valid", "test"):
            kept = [x for x in getattr(data, split) if len(x) <= self.max_length]
            self._held[split] = Sentences(kept, device)

    def model(self, seeds: Seeds) -> TreeLSTM:
        """Return a model with the initialisation of Choi et al."""
        scale = self.hidden**-0.5 if self.scaled else 1.0
        sizes = Sizes(self.embedding, self.hidden, self.classifier)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seeds.of("init"))
            return TreeLSTM(sizes, leaf_rnn=self.leaf_rnn, dropout=self.dropout, scale=scale)

    def batches(self, split: str, seeds: Seeds, *, epoch: int, size: int) -> Iterator[Batch]:
        """Yield sentences of nearly one length; those of "train" in random order."""
        sentences = self.sentences(split)
        if split != "train":
            return sentences.sorted(size)
        generator = torch.Generator().manual_seed(seeds.of("order", epoch))
        return sentences.shuffled(size, generator)

    def losses(self, model: nn.Module, batch: Batch, expect: Bound) -> Tensor:
        """Return the cross-entropy of each sentence, in nats."""
        return model(batch, expect)

    def latent(self, model: nn.Module, batch: Batch) -> Categorical:
        """Return the law of what to merge first, without dropout."""
        return Categorical(bare(model).first_choice(batch))

    def law(self) -> Categorical:
        """Return the law of what to merge first in a sentence of four tokens."""
        return Categorical(torch.zeros(1, 3))

    def refuses(self, estimator: AbstractEstimator) -> str | None:
        """Return why the choices of a tree cannot be estimated so, or None."""
        name = type(estimator).__name__
        if not estimator.traits.many_draws:
            return (
                f"{name} estimates one latent at a time, but a tree is a sequence of choices with "
                "one loss at the end."
            )
        if estimator.traits.relaxed:
            return f"{name} draws soft samples, but a step merges one pair and leaves the others."
        return super().refuses(estimator)

    @torch.no_grad()
    def evaluate(
        self, model: nn.Module, split: str, seeds: Seeds, *, final: bool = False
    ) -> dict[str, float]:
        """Return loss and accuracy in percent; `final`: the accuracy for each range of lengths."""
        if not len(self.sentences(split)):
            return {}
        found = [_measured(bare(model), x) for x in self.sentences(split).sorted(_EVALUATED)]
        losses, right, lengths = (torch.cat(x) for x in zip(*found, strict=True))
        if not final:
            return {"loss": float(losses.mean()), "accuracy": 100.0 * float(right.mean())}
        out: dict[str, float] = {}
        for metric, (first, last) in zip(self.metrics[2:], _LENGTHS, strict=True):
            inside = (lengths >= first) & (lengths <= (last or self.max_length))
            if bool(inside.any()):
                out[metric.name] = 100.0 * float(right[inside].mean())
        return out


def _measured(model: TreeLSTM, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Return loss, whether the answer is right, and length of each sentence."""
    answers = model.answers(batch).double()
    losses = F.cross_entropy(answers, batch.labels, reduction="none")
    return losses, (answers.argmax(-1) == batch.labels).double(), batch.lengths
