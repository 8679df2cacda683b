"""The router of a mixture of experts: which experts run for a row, and with which weights."""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from .._errors import ConfigError, UnsupportedError
from .._types import compute_dtype
from ..estimators.base import AbstractEstimator
from ..estimators.checks import check_count
from ..kernels.checks import check_rows
from ..routing import check_eps, check_top, load_balance, sparsemixer, sparsemixer_v2
from ..sampling import check_pathwise, sample
from .checks import project
from .temperature import Schedule, Temperature, at_temperature, check_tempered

Rule = Literal["sparsemixer_v2", "sparsemixer", "dense"]


class Routing(NamedTuple):
    r"""What a router found for rows (\*batch).

    Args:
        weights: (\*batch, k), what the outputs of the experts are multiplied with, with the
            gradient of the router.
        index: int64 (\*batch, k), the experts that run; those of one row differ.
        balance: a number without dims, ``load_balance`` of the softmax over all experts: add a
            hundredth of it, say, to the loss.
    """

    weights: Tensor
    index: Tensor  # pyright: ignore[reportIncompatibleMethodOverride]
    balance: Tensor


class Router(nn.Module):
    r"""A linear layer that says which experts run for a row.

    ``logits = x W^T + b``; the output of a mixture is ``sum_j weights_j E_{index_j}(x)``.

    * "sparsemixer_v2" and "sparsemixer": see ``gt.sparsemixer_v2`` and ``gt.sparsemixer``. In
      ``eval()`` the best experts run, with the multipliers p.
    * A pathwise estimator with a hard sample, such as ``gt.ReinMax()``: the expert at the 1 of its
      one-hot z runs, with weight ``z_D = 1``, which has the estimator's gradient. Only that entry
      of z sees a gradient, since no other expert runs. In ``eval()`` the best expert runs, with
      weight 1 and no gradient.
    * "dense": all experts run, with the softmax for weights.

    Args:
        in_features: size of the input.
        experts: N, how many there are.
        top: how many run for a row; above 1 for "sparsemixer_v2" alone.
        estimator: as above.
        eps: how far below the best an expert may be, for the sparsemixers; None: any distance.
        tau: the temperature in place of that of a pathwise estimator: a number, a callable from
            steps to a number, or a `Temperature`.
        bias: learn b.
        device: of the parameters.
        dtype: of the parameters.

    Raises:
        ConfigError: an unknown name; top or tau with what has none.
        DomainError: a size below 1, more than N experts to run, eps below 0.
        UnsupportedError: an estimator whose sample carries no gradient, or is soft.

    Example:
        >>> import torch
        >>> from gradthrough.nn.router import Router
        >>> router, experts = Router(16, 4), torch.randn(4, 16, 3)
        >>> x = torch.randn(32, 16)
        >>> weights, index, balance = router(x)
        >>> y = weights * torch.einsum("bi,bio->bo", x, experts[index[:, 0]])
        >>> (y.square().sum(-1).mean() + 0.01 * balance).backward()
        >>> router.linear.weight.grad.shape
        torch.Size([4, 16])

    Reference:
        Liu, Gao, Chen, 2023, arXiv:2310.00811; Liu et al., 2024, arXiv:2409.12136.
    """

    def __init__(
        self,
        in_features: int,
        experts: int,
        *,
        top: int = 1,
        estimator: Rule | AbstractEstimator = "sparsemixer_v2",
        eps: float | None = 0.1,
        tau: Schedule | Temperature | None = None,
        bias: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.in_features = check_count("in_features", in_features, 1)
        self.experts = check_count("experts", experts, 1)
        self.top = _check_top(top, experts, estimator)
        self.eps = check_eps(eps)
        self.tau = None
        self.estimator: Rule | AbstractEstimator
        if isinstance(estimator, str):
            if tau is not None:
                raise ConfigError(f"tau={tau!r} came, but {estimator!r} has none. Leave tau out.")
            self.estimator = _check_rule(estimator)
        else:
            self.estimator, self.tau = check_tempered(_check_hard(estimator), tau)
        # The omega of the first SparseMixer, as one number.
        self.omega: nn.Parameter | None = None
        if estimator == "sparsemixer":
            self.omega = nn.Parameter(torch.ones((), device=device, dtype=dtype))
        self.linear = nn.Linear(in_features, experts, bias=bias, device=device, dtype=dtype)

    def forward(
        self,
        x: Tensor,
        *,
        generator: torch.Generator | None = None,
        noise: Tensor | None = None,
    ) -> Routing:
        r"""Return which experts run, and their weights.

        Args:
            x: (\*batch, in_features).
            generator: source of the noise; not looked at in ``eval()``, nor by "dense".
            noise: the noise instead: (\*batch, top, 2) for the sparsemixers, else as for
                ``gt.sample``; not looked at where the generator is not.

        Returns:
            Weights and experts, (\*batch, top), or (\*batch, N) if "dense"; and the balance.

        Raises:
            DomainError: NaN or +inf logits.
            ShapeError: another number of features, noise of the wrong shape.
            BackendError: generator or noise on another device.
        """
        logits = project(self.linear, x)
        weights, index = self._routed(logits, generator, noise)
        probs = logits.to(compute_dtype(logits.dtype)).softmax(-1)
        return Routing(weights, index, load_balance(probs, index))

    def _routed(
        self, logits: Tensor, generator: torch.Generator | None, noise: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        eps, training = self.eps, self.training
        if self.estimator == "dense":
            check_rows(logits)
            every = torch.arange(self.experts, device=logits.device)
            return logits.softmax(-1), every.expand(logits.shape)
        if self.estimator == "sparsemixer_v2":
            return sparsemixer_v2(
                logits, top=self.top, eps=eps, training=training, generator=generator, noise=noise
            )
        if self.estimator == "sparsemixer":
            routed = sparsemixer(
                logits, eps=eps, training=training, generator=generator, noise=noise
            )
            scale = 1.0 if self.omega is None else self.omega
            return scale * routed.multiplier, routed.index
        if not training:
            check_rows(logits)
            index = logits.argmax(-1, keepdim=True)
            return torch.ones_like(index, dtype=logits.dtype), index
        one = at_temperature(check_pathwise(self.estimator), self.tau)
        z = sample(logits, one, generator=generator, noise=noise)
        index = z.detach().argmax(-1, keepdim=True)
        return z.gather(-1, index), index

    def extra_repr(self) -> str:
        """Return the sizes, the rule and what it looks at."""
        sparse = isinstance(self.estimator, str) and self.estimator != "dense"
        top = f"top={self.top}, " if self.top > 1 else ""
        eps = f", eps={self.eps}" if sparse else ""
        return (
            f"in_features={self.in_features}, experts={self.experts}, {top}"
            f"estimator={self.estimator!r}{eps}"
        )


def _check_rule(name: str) -> Rule:
    for known in get_args(Rule):
        if name == known:
            return known
    raise ConfigError(
        f"estimator is {name!r}, but must be {', '.join(map(repr, get_args(Rule)))}, or an "
        "estimator such as gradthrough.ReinMax()."
    )


def _check_hard(estimator: object) -> AbstractEstimator:
    one = check_pathwise(estimator)
    if one.traits.relaxed:
        raise UnsupportedError(
            f"{type(one).__name__} draws soft samples, and every expert would have to run. Take "
            "one with a hard sample, such as gradthrough.ReinMax(), or estimator='dense'."
        )
    return one


def _check_top(top: int, experts: int, estimator: object) -> int:
    check_top(top, experts)
    if top > 1 and estimator != "sparsemixer_v2":
        raise ConfigError(
            f"top is {top}, but {estimator!r} runs {'all' if estimator == 'dense' else 'one'}. "
            "Leave top out, or take estimator='sparsemixer_v2'."
        )
    return top
