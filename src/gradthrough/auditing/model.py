"""audit_model: the gradient of a whole program in chosen parameters, whatever it uses."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from .._errors import ConfigError, GradthroughError, ShapeError, UnsupportedError
from ..estimators import RLOO, AbstractEstimator
from ..expect import admit
from ..laws.law import Law
from ..rollout import Bound
from .listening import Listener, Replayed, Scored
from .problem import RANDOM, AbstractProblem, Unbiased, fitting, same
from .support import LIMIT, WORK, Exact

_CURVED = (
    " The loss is not affine in the values of expect, so that no estimator of its gradient is "
    "unbiased, and this reference is not, either."
)
_RUNS = 4  # of a program, in one draw of its reference

Parameters = nn.Module | Tensor | Iterable[Tensor] | Mapping[str, Tensor]


def tensors(params: Parameters) -> list[Tensor]:
    """Return the parameters, each once, those that require no gradient left out."""
    if isinstance(params, nn.Module):
        found: list[Tensor] = list(params.parameters())
    elif isinstance(params, Tensor):
        found = [params]
    else:
        many = (
            cast("Mapping[str, Tensor]", params).values() if isinstance(params, Mapping) else params
        )
        found = list(many)
    for x in cast("list[object]", found):
        if not isinstance(x, Tensor):
            raise UnsupportedError(
                f"params must be tensors, but a {type(x).__name__} is among them. Pass a module, "
                "module.parameters(), or dict(module.named_parameters())."
            )
    kept = [x for x in dict.fromkeys(found) if x.requires_grad]
    if not kept:
        raise ConfigError(
            f"params hold {len(found)} tensors, none of which requires a gradient. Pass the "
            "parameters in front of the random choice, such as encoder.parameters()."
        )
    return kept


class ModelProblem(AbstractProblem):
    """The gradient of a program's mean loss in some of its parameters.

    Args:
        loss_fn: called with a `Bound` estimator; returns losses (B,) or one loss.
        params: where the gradient is measured.
        generator: of the run that looks where the choices are made.
    """

    def __init__(
        self, loss_fn: Callable[[Bound], Tensor], params: Parameters, generator: torch.Generator
    ) -> None:
        if not callable(loss_fn):
            raise UnsupportedError(
                f"loss_fn must be callable, but a {type(loss_fn).__name__} came. Pass your forward "
                "pass: a function of `expect` that returns losses (B,)."
            )
        self.loss_fn, self.params = loss_fn, tensors(params)
        self.heard = listener = Listener(generator)
        state = generator.get_state()
        losses = self._losses(listener)
        self.rows = losses.numel()
        if not self.rows:
            raise ShapeError(
                "loss_fn returned no loss, of shape (0,). Pass a batch with at least one row."
            )
        if not listener.laws:
            raise ConfigError(
                "loss_fn never used the `expect` it was given, so there is no random choice to "
                "audit. Write expect(f, dist), expect.sample(logits) or expect.rollout() in it."
            )
        generator.set_state(state)
        self.random = not same(losses, self._losses(Listener(generator)))
        self.affine = self.random or listener.sampled or listener.rolled or self._is_affine()
        self.dimensions = sum(x.numel() for x in self.params)
        self.shape = (self.dimensions,)
        self.dtype, self.device = self.params[0].dtype, self.params[0].device
        places = "one random choice" if len(self.laws) == 1 else f"{len(self.laws)} random choices"
        losses = "one loss" if self.rows == 1 else f"{self.rows:,} losses"
        self.words = (
            f"a program with {places} and {losses}; gradient in {self.dimensions:,} parameters"
        )

    @property
    def laws(self) -> list[Law]:
        """The laws of its random choices, as one run met them."""
        return self.heard.laws

    @property
    def vectorised(self) -> bool:
        """A program is run once for each estimate."""
        return False

    def samples(self, estimator: AbstractEstimator, evaluations: int) -> tuple[int, int]:
        """Return how many samples fit into so many evaluations a row, and how many they take."""
        if self.heard.sampled:  # one sample for each run, so the program runs so often
            for q in self.laws:
                admit(q, estimator, max(1, estimator.traits.min_samples))
            return evaluations, evaluations
        found = [fitting(estimator, q, evaluations) for q in self.laws]
        n = min(samples for samples, _ in found)
        return n, max(estimator.evaluations(q, n) for q in self.laws)

    def gradients(
        self, estimator: AbstractEstimator, samples: int, n: int, generator: torch.Generator
    ) -> Tensor:
        """Return n independent estimates of the gradient, (n, D)."""
        return torch.stack(
            [self._slope(self._value(estimator, samples, generator)) for _ in range(n)]
        )

    def forward(
        self, estimator: AbstractEstimator, samples: int, generator: torch.Generator
    ) -> Callable[[], object]:
        """Compute one value, and return what computes its gradient."""
        value = self._value(estimator, samples, generator)
        return lambda: self._slope(value)

    @torch.enable_grad()
    def exact(self) -> tuple[Tensor, int] | None:
        """Return the exact gradient, float64 (D,), and the points of a row; None if too many."""
        if self.random or self.heard.sampled or self.heard.rolled:
            return None
        if self.heard.points > LIMIT or self.heard.numbers > WORK:
            return None
        exact = Exact(torch.Generator(self.device))
        found = exact.gradient(self._losses(exact).double().mean(), self.params)
        return self._flat(found).double(), exact.points

    def unbiased(self) -> list[Unbiased]:
        """Return what may stand in for the exact gradient, the best first, the cheapest last."""
        found = super().unbiased()
        if self.heard.sampled:
            if self._cost(RLOO(), 2) is None:
                return []
            words = f"REINFORCE of the whole program, leave-one-out over {_RUNS} runs"
            return [Unbiased("score function", self._scored, _RUNS, words)]
        if self.heard.rolled:
            return [one for one in found if one.kind == "score function"]
        return found

    @property
    def caveat(self) -> str:
        """What a reference that is drawn has to be read with, a sentence or nothing."""
        if self.random:
            return RANDOM
        return "" if self.affine else _CURVED

    def _is_affine(self) -> bool:
        """Return whether the loss is affine in the values of expect, along one line at least."""
        values = self.heard.values
        try:
            with torch.no_grad():
                a, b, c = (
                    self._losses(Replayed([v + t * (0.5 + 0.5 * v.abs()) for v in values]))
                    for t in (0.0, 1.0, 2.0)
                )
        except GradthroughError:
            return False
        step = (b - a).abs() + (c - b).abs()
        return bool(((c - 2 * b + a).abs() <= 1e-3 * step + 1e-5 * b.abs()).all())

    def _scored(self, n: int, generator: torch.Generator) -> Tensor:
        return torch.stack([self._score_slope(generator) for _ in range(n)])

    @torch.enable_grad()
    def _score_slope(self, generator: torch.Generator) -> Tensor:
        """Return ``mean_k [grad L_k + (L_k - mean of the others) grad log q(z_k)]``."""
        losses, scores = list[Tensor](), list[Tensor]()
        for _ in range(_RUNS):
            run = Scored(generator)
            found = self._losses(run).flatten()
            b = len(found)
            # Row by row where rows can be told apart, from samples within an expectation and
            # from steps that come first; else the program counts as one.
            if b > 1 and all(x.shape[:1] == (b,) and b not in x.shape[1:] for x in run.log_probs):
                score = torch.stack([x.reshape(b, -1).sum(-1) for x in run.log_probs]).sum(0)
            else:
                found = found.mean(0, keepdim=True)
                score = torch.stack([x.sum() for x in run.log_probs]).sum().reshape(1)
            losses.append(found)
            scores.append(score)
        values = torch.stack(losses)
        signal = (values - values.mean(0)).detach() * (_RUNS / (_RUNS - 1))
        return self._slope((values + signal * torch.stack(scores)).mean())

    @torch.enable_grad()
    def _value(
        self, estimator: AbstractEstimator, samples: int, generator: torch.Generator
    ) -> Tensor:
        if not self.heard.sampled:
            return self._losses(Bound(estimator, samples, generator)).mean()
        least = estimator.traits.min_samples
        runs = [self._losses(Bound(estimator, least, generator)).mean() for _ in range(samples)]
        return torch.stack(runs).mean()

    def _losses(self, bound: Bound) -> Tensor:
        with torch.enable_grad():
            losses = self.loss_fn(bound)
        if not isinstance(losses, Tensor) or not losses.is_floating_point() or losses.ndim > 1:  # pyright: ignore[reportUnnecessaryIsInstance]
            came = tuple(losses.shape) if isinstance(losses, Tensor) else type(losses).__name__  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ShapeError(f"loss_fn must return losses (B,) or their mean, but returned {came}.")
        return losses

    def _slope(self, value: Tensor) -> Tensor:
        found: Sequence[Tensor | None] = (None,)
        if value.requires_grad:
            try:
                found = torch.autograd.grad(value, self.params, allow_unused=True)
            except RuntimeError as error:
                if "second time" not in str(error):
                    raise
                raise ConfigError(
                    "loss_fn uses a graph that was made outside of it, and each estimate is a "
                    "forward pass of its own. Compute the logits within loss_fn."
                ) from error
        return self._flat(found)

    def _flat(self, found: Sequence[Tensor | None]) -> Tensor:
        """Return the gradients as one, (D,)."""
        if all(x is None for x in found):
            raise UnsupportedError(
                "the loss does not depend differentiably on any of the parameters with this "
                "estimator. Pass those in front of the random choice, and for a pathwise "
                "estimator a loss that is differentiable in the sample."
            )
        pairs = zip(found, self.params, strict=True)
        return torch.cat([(torch.zeros_like(p) if x is None else x).flatten() for x, p in pairs])
