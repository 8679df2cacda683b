"""A codebook whose entries are drawn, and how evenly they are used."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from .._errors import ShapeError
from .._random import noise_shape, uniforms
from ..embedding import embed
from ..estimators.base import AbstractEstimator
from ..estimators.checks import check_count
from ..estimators.gumbel_softmax import StraightThroughGumbelSoftmax
from ..estimators.pathwise import AbstractLaunched
from ..kernels.checks import check_rows
from ..kernels.validation import validates
from ..laws.base import check_noise
from ..sampling import sample
from .checks import project
from .temperature import Schedule, Temperature, at_temperature, check_tempered
from .usage import (
    check_codes,
    check_decay,
    counted,
    entropy,
    everywhere,
    faded,
    mean_softmax,
    shares,
)


class Quantized(NamedTuple):
    """What a `GumbelQuantizer` returns."""

    quantized: Tensor  # (*batch, groups * code_features)
    codes: Tensor  # (*batch, groups), int64
    logits: Tensor  # (*batch, groups, codes)


class GumbelQuantizer(nn.Module):
    r"""A linear layer to logits over codebooks, a hard draw from each, and the code vectors.

    For each group g, with a codebook ``E_g`` of V vectors:
    ``logits_g = (x W^T + b)_g,  k_g ~ softmax(logits_g),  q = [E_1[k_1], ..., E_G[k_G]]``, with the
    estimator's gradient to the logits. In ``eval()`` k_g is the most probable code, and no gradient
    reaches the logits. The one-hots are not made: see ``gt.embed``.

    A forward changes nothing, so it may run twice (activation checkpointing), in a compiled graph
    or under ``torch.func``. How evenly codes are used is counted by `observe`, which you call.

    Args:
        in_features: size of the input.
        codes: V, vectors in each codebook.
        code_features: size of each vector; the output has ``groups * code_features``.
        groups: G.
        estimator: a pathwise one; None: ``gt.StraightThroughGumbelSoftmax()``. A soft one mixes
            the vectors in ``train()``, and the codes are those of the largest weight.
        tau: the temperature in place of the estimator's own, as for `CategoricalLayer`.
        decay: of the running counts for each call of `observe`, in [0, 1).
        bias: learn b.
        device: of the parameters.
        dtype: of the parameters.

    Attributes:
        codebook: the vectors, (G, V, code_features), standard normal to begin with.
        counts: how often each code was used, (G, V), fading: int64 in units of 2^-16, which
            neither ``half()`` nor autocast rounds. `usage` is what to read.

    Raises:
        ConfigError: tau for an estimator that has none.
        DomainError: a size below 1, a temperature not above 0, a decay outside [0, 1).
        UnsupportedError: an estimator whose sample carries no gradient.

    Example:
        >>> import torch, gradthrough as gt
        >>> quantizer = gt.nn.GumbelQuantizer(16, codes=320, code_features=8, groups=2, tau=2.0)
        >>> out = quantizer(torch.randn(4, 50, 16))
        >>> out.quantized.shape, out.codes.shape, out.logits.shape
        (torch.Size([4, 50, 16]), torch.Size([4, 50, 2]), torch.Size([4, 50, 2, 320]))
        >>> loss = out.quantized.square().mean() + 0.1 * quantizer.diversity(out.logits)
        >>> loss.backward()
        >>> quantizer.observe(out.codes)
        >>> quantizer.perplexity().shape
        torch.Size([2])

    Reference:
        Baevski, Schneider, Auli, ICLR 2020, arXiv:1910.05453; Baevski et al., NeurIPS 2020,
        arXiv:2006.11477.
    """

    counts: Tensor

    def __init__(
        self,
        in_features: int,
        codes: int,
        code_features: int,
        *,
        groups: int = 1,
        estimator: AbstractEstimator | None = None,
        tau: Schedule | Temperature | None = None,
        decay: float = 0.99,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.in_features = check_count("in_features", in_features, 1)
        self.codes = check_count("codes", codes, 1)
        self.code_features = check_count("code_features", code_features, 1)
        self.groups = check_count("groups", groups, 1)
        self.decay = check_decay(decay)
        chosen = StraightThroughGumbelSoftmax() if estimator is None else estimator
        self.estimator, self.tau = check_tempered(chosen, tau)
        self.linear = nn.Linear(in_features, groups * codes, bias=bias, device=device, dtype=dtype)
        shape = (groups, codes)
        vectors = torch.empty(*shape, code_features, device=device, dtype=dtype)
        self.codebook = nn.Parameter(nn.init.normal_(vectors))
        self.register_buffer("counts", torch.zeros(shape, dtype=torch.int64, device=device))

    def forward(
        self,
        x: Tensor,
        *,
        generator: torch.Generator | None = None,
        noise: Tensor | None = None,
    ) -> Quantized:
        r"""Quantize.

        Args:
            x: (\*batch, in_features).
            generator: source of the noise; not looked at in ``eval()``.
            noise: the noise instead, as ``gt.sample`` takes it for logits (\*batch, G, V); not
                looked at in ``eval()``.

        Returns:
            Quantized(quantized (\*batch, G * code_features), codes (\*batch, G) int64, logits
            (\*batch, G, V)).

        Raises:
            ShapeError: another number of features, noise of the wrong shape.
            DomainError: unsound logits.
            UnsupportedError, ConfigError, BackendError: as ``gt.sample``.
        """
        logits = project(self.linear, x).reshape(*x.shape[:-1], self.groups, self.codes)
        if self.training:
            vectors, codes = self._drawn(logits, generator, noise)
        else:
            vectors, codes = self._best(logits)
        return Quantized(vectors.flatten(-2), codes, logits)

    def _drawn(
        self, logits: Tensor, generator: torch.Generator | None, noise: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        one = at_temperature(self.estimator, self.tau)
        if not isinstance(one, AbstractLaunched) or one.traits.relaxed:
            z = sample(logits, one, generator=generator, noise=noise)
            vectors = torch.einsum("...gv,gve->...ge", z.to(self.codebook.dtype), self.codebook)
            return vectors, z.detach().argmax(-1)
        shape = noise_shape(one.traits.noise, tuple(logits.shape[:-1]), self.codes)
        if noise is None:
            u = uniforms(shape, logits.device, generator)
        else:
            u = check_noise(noise, shape, logits, generator)
        at = logits.ndim - 2  # the dim of the groups
        each = zip(logits.unbind(at), self.codebook.unbind(0), u.unbind(at), strict=True)
        found = [embed(x, book, one, noise=v, with_index=True) for x, book, v in each]
        return torch.stack([v for v, _ in found], -2), torch.stack([k for _, k in found], -1)

    def _best(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        check_rows(logits)
        vectors = self._vectors(codes := logits.detach().argmax(-1))
        if not validates(logits):  # a row without a law has no plausible vector
            sound = logits.detach().logsumexp(-1, keepdim=True).isfinite()
            vectors = torch.where(sound, vectors, torch.nan)
        return vectors, codes

    def _vectors(self, codes: Tensor) -> Tensor:
        return self.codebook[torch.arange(self.groups, device=codes.device), codes]

    def decode(self, codes: Tensor) -> Tensor:
        r"""Return the vectors of codes.

        Args:
            codes: (\*batch, G), int64, from 0 to V - 1.

        Returns:
            (\*batch, G * code_features), with its gradient to the codebook.

        Raises:
            ShapeError, UnsupportedError, DomainError: no such codes.
        """
        check_codes(codes, self.counts)
        vectors = self._vectors(codes)
        if not validates(codes):  # else -1 would be the last
            vectors = torch.where((codes >= 0).unsqueeze(-1), vectors, torch.nan)
        return vectors.flatten(-2)

    @torch.no_grad()
    def observe(
        self,
        codes: Tensor,
        *,
        mask: Tensor | None = None,
        group: torch.distributed.ProcessGroup | None = None,
    ) -> None:
        r"""Count the codes of a step into `usage`; in ``eval()`` do nothing.

        ``counts <- decay counts + (how often each code is in codes)``: a step weighs by its
        positions, and one whose positions are all masked not at all. Call it once a step, outside
        of what is checkpointed or compiled.

        Where ``torch.distributed`` is initialised, the codes of all ranks are counted, so all hold
        the same counts: every rank has to call it, equally often.

        Args:
            codes: (\*batch, G), int64.
            mask: (\*batch), bool, True where a position counts: False for padding.
            group: the ranks whose codes are counted; None: all.

        Raises:
            ShapeError, UnsupportedError, DomainError, BackendError: no such codes, no such mask.
        """
        if not self.training:
            return
        found = everywhere(self._counted(codes, mask), group)
        self.counts.copy_(faded(self.counts, self.decay, found))

    def _counted(self, codes: Tensor, mask: Tensor | None) -> Tensor:
        check_codes(codes, self.counts)
        return counted(codes, mask, self.codes)

    @property
    def usage(self) -> Tensor:
        """The share of each code in what was observed, (G, V), float32; NaN before the first."""
        return shares(self.counts)

    def perplexity(self, codes: Tensor | None = None, *, mask: Tensor | None = None) -> Tensor:
        r"""Return how many codes of each group are in use: exp of the entropy of their shares.

        Args:
            codes: (\*batch, G), int64: of these, on this rank alone; None: of all that was
                observed.
            mask: (\*batch), bool, True where a position counts.

        Returns:
            (G,), float32, from 1 (one code) to V (all alike); NaN where nothing was counted.

        Raises:
            ShapeError, UnsupportedError, DomainError, BackendError: no such codes, no such mask.
        """
        share = self.usage if codes is None else shares(self._counted(codes, mask))
        return entropy(share).exp()

    def diversity(self, logits: Tensor, *, mask: Tensor | None = None) -> Tensor:
        r"""Return the diversity loss, least when the codes are used evenly on average.

        ``sum_g sum_v p_gv log p_gv / (G V)`` with p the mean of ``softmax(logits)``, without noise
        or temperature, over the positions of this rank.

        Args:
            logits: (\*batch, G, V), those that `forward` returned.
            mask: (\*batch), bool, True where a position counts.

        Returns:
            A scalar from -log(V) / V to 0; 0 where every position is masked.

        Raises:
            ShapeError: logits of another shape, a mask of another shape.
            UnsupportedError, BackendError: a mask that is not bool or lives elsewhere.
        """
        if logits.ndim < 2 or tuple(logits.shape[-2:]) != (self.groups, self.codes):
            raise ShapeError(
                f"logits must have shape (*batch, {self.groups}, {self.codes}), but have "
                f"{tuple(logits.shape)}. Pass those that the layer returned."
            )
        p = mean_softmax(logits, mask)
        return -entropy(p).sum() / p.numel()

    def extra_repr(self) -> str:
        """Return the sizes and the estimator."""
        return (
            f"in_features={self.in_features}, codes={self.codes}, code_features="
            f"{self.code_features}, groups={self.groups}, estimator={self.estimator!r}"
        )
