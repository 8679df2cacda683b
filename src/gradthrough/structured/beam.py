"""Stochastic beam search: sequences without replacement, from a model that gives the next token."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple, cast

import torch
from torch import Tensor

from .._errors import DomainError, UnsupportedError
from .._random import gumbels, uniforms
from .._types import compute_dtype
from ..estimators.checks import check_count
from ..kernels.checks import check_content, check_rows, check_uniforms
from ..kernels.softmax import centre
from ..kernels.transforms import transformed
from ..laws.base import check_noise
from .beam_state import State, check_start, check_step, follow, mapped, with_beam
from .plackett_luce import weigh


class Beams(NamedTuple):
    r"""k different sequences for each row, drawn without replacement.

    Where a row has fewer than k sequences of positive probability, all of them come first, and what
    fills the rest has log-probability and perturbed log-probability -inf.

    Attributes:
        sequences: int64 (\*batch, k, max_length), in the order in which they were drawn; after
            the end of one, `end` goes on.
        log_probs: (\*batch, k), with the graph of what the model computed.
        perturbed: (\*batch, k), the log-probabilities plus Gumbel noise, from the largest down.
        threshold: (\*batch,), the largest perturbed log-probability of the sequences not drawn;
            -inf where there are none.
    """

    sequences: Tensor
    log_probs: Tensor
    perturbed: Tensor
    threshold: Tensor


class _Search(NamedTuple):
    r"""The beams at work: (\*batch, b, t), then (\*batch, b) each."""

    sequences: Tensor
    phi: Tensor
    perturbed: Tensor
    finished: Tensor


def stochastic_beam_search(
    step: Callable[[State, Tensor], tuple[Tensor, State]],
    state: State,
    k: int,
    *,
    start: Tensor,
    max_length: int,
    end: int | None = None,
    generator: torch.Generator | None = None,
    noise: Tensor | None = None,
) -> Beams:
    r"""Draw k different sequences, one after the other, each from what is left. Exact.

    The law is that of `gumbel_top_k` over all sequences, without listing them. A prefix carries the
    largest perturbed log-probability T of the sequences that begin with it; its children's are
    Gumbel variables given that their maximum is T:
    ``-log(exp(-T) - exp(-Z) + exp(-g))`` for g = phi + G with maximum Z. Each step keeps the best
    k + 1, the last of them for the threshold. The model is called max_length times, or until all
    beams have ended, for at most k + 1 beams of each row.

    Args:
        step: (state, tokens) to (logits or log-probabilities of the next token, state). Tokens are
            int64 (\*batch, b), the last ones; the tensors of the state are (\*batch, b, ...), the
            logits (\*batch, b, V) with the same V in every call. They are normalised here; -inf
            masks a token. The first call has b = 1, later ones up to k + 1.
        state: what `step` starts from: tensors (\*batch, ...), None, numbers, or tuples, lists and
            dicts of them. Tensors follow the beams; the rest is handed on as it is.
        k: at least 1.
        start: int64 (\*batch,), the tokens of the first call. They are not part of the sequences.
        max_length: in tokens, the end included.
        end: the token that ends a sequence; None: all have max_length tokens.
        generator: source of the noise.
        noise: float64 uniforms (max_length, \*batch, k + 1, V) in [0, 1) instead; of the first step
            only the first beam's are used, and so on.

    Returns:
        `Beams`. The perturbed log-probabilities and the threshold are constants.

    Raises:
        ShapeError: logits, a state or noise of another shape than above.
        DomainError: k or max_length below 1, NaN or +inf logits, an end that is no token.
        UnsupportedError: another dtype, a state of something else.

    Example:
        >>> import torch, gradthrough as gt
        >>> table = torch.randn(5, 5)  # of token pairs: a Markov chain
        >>> step = lambda state, tokens: (table[tokens], state)
        >>> start = torch.zeros(3, dtype=torch.int64)
        >>> beams = gt.structured.stochastic_beam_search(
        ...     step, None, 4, start=start, max_length=6, end=4
        ... )
        >>> beams.sequences.shape, beams.log_probs.shape
        (torch.Size([3, 4, 6]), torch.Size([3, 4]))
        >>> weights = gt.structured.beam_weights(beams)  # sum_i w_i f_i: unbiased for E f

    Reference:
        Kool, van Hoof, Welling, ICML 2019, arXiv:1903.06059.
    """
    check_count("k", k, 1)
    check_count("max_length", max_length, 1)
    check_start(start)
    state = mapped(state, partial(with_beam, batch=tuple(start.shape)))
    found, tokens = None, start.unsqueeze(-1)
    for t in range(max_length):
        logits, state = check_step(step(state, tokens), tokens)
        if found is None:
            found = _root(tokens, logits)
            _check_end(end, logits)
            if noise is not None:
                shape = (max_length, *start.shape, k + 1, logits.shape[-1])
                noise = check_noise(noise, shape, logits, generator)
                check_content(noise, check_uniforms)
        if noise is None:
            u = uniforms(tuple(logits.shape), logits.device, generator)
        else:
            u = noise[t, ..., : tokens.shape[-1], :]
        found, parents = _extend(found, logits, u, k + 1, end)
        state = mapped(state, partial(follow, parents=parents))
        tokens = found.sequences[..., -1]
        if t < max_length - 1 and _all_finished(found):
            break
    return _finish(cast(_Search, found), k, max_length, end)


def beam_weights(beams: Beams, *, normalised: bool = False) -> Tensor:
    r"""Return weights that make a sum over the drawn sequences an estimate of a mean.

    ``w_i = p_i / q_i``, as in `importance_weights`: ``E sum_i w_i f_i = E f`` over all sequences,
    and the derivative through p is unbiased as well.

    Args:
        beams: what `stochastic_beam_search` drew.
        normalised: divide by the sum of the weights: less variance, and a bias.

    Returns:
        (\*batch, k), differentiable in what the model computed; 0 for what fills up.

    Raises:
        UnsupportedError: something else than `Beams`.

    Example:
        >>> import torch, gradthrough as gt
        >>> step = lambda state, tokens: (torch.zeros(*tokens.shape, 2), state)
        >>> start = torch.tensor(0)
        >>> beams = gt.structured.stochastic_beam_search(step, None, 4, start=start, max_length=2)
        >>> gt.structured.beam_weights(beams)  # all four sequences: their probabilities
        tensor([0.2500, 0.2500, 0.2500, 0.2500])

    Reference:
        Kool, van Hoof, Welling, ICML 2019, arXiv:1903.06059.
    """
    if not isinstance(beams, Beams):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise UnsupportedError(
            "beams must be what stochastic_beam_search returns, Beams, but a "
            f"{type(beams).__name__} came."
        )
    return weigh(beams.log_probs, beams.threshold, normalised)


def given_maximum(g: Tensor, maximum: Tensor) -> Tensor:
    r"""Turn Gumbel variables into those given that their maximum is what it is said to be.

    Args:
        g: (\*rows, V), independent Gumbel variables; -inf for what cannot be.
        maximum: (\*rows,).

    Returns:
        (\*rows, V): the largest g becomes the maximum exactly, and the order stays.
    """
    top = maximum.unsqueeze(-1)
    v = top - g + torch.log1p(-torch.exp(g - g.amax(-1, keepdim=True)))
    return top - v.clamp_min(0.0) - torch.log1p(torch.exp(-v.abs()))


def _root(tokens: Tensor, logits: Tensor) -> _Search:
    """Return the empty prefix, of log-probability 0 and not yet with a Gumbel of its own."""
    zeros = logits.new_zeros(tokens.shape, dtype=compute_dtype(logits.dtype))
    return _Search(tokens.unsqueeze(-1)[..., :0], zeros, zeros, zeros > 0)


def _extend(
    found: _Search, logits: Tensor, u: Tensor, keep: int, end: int | None
) -> tuple[_Search, Tensor]:
    """Return the best children of all beams, and which beam each of them came from."""
    closed = found.finished.unsqueeze(-1)
    x = centre(logits.masked_fill(closed, 0.0).to(found.phi.dtype))
    check_rows(x)
    phi = found.phi.unsqueeze(-1) + x - x.logsumexp(-1, keepdim=True)
    g = phi.detach() + gumbels(u, phi.dtype)
    first = found.sequences.shape[-1] == 0  # whose maximum is as the noise has it
    children = g if first else given_maximum(g, found.perturbed)
    vocabulary = x.shape[-1]
    # What has ended has one child, itself: with its Gumbel unchanged.
    only = torch.arange(vocabulary, device=x.device) == (end or 0)
    carried = torch.where(only, found.perturbed.unsqueeze(-1), -torch.inf)
    children = torch.where(closed, carried, children).flatten(-2)
    phi = torch.where(closed, found.phi.unsqueeze(-1), phi).flatten(-2)
    perturbed, place = children.topk(min(keep, children.shape[-1]), -1)
    parents, token = place // vocabulary, place % vocabulary
    dead = perturbed.isneginf()
    finished = found.finished.gather(-1, parents) | dead
    if end is not None:
        finished = finished | (token == end)
    grown = torch.cat((follow(found.sequences, parents), token.unsqueeze(-1)), -1)
    phi = phi.gather(-1, place).masked_fill(dead, -torch.inf)
    return _Search(grown, phi, perturbed, finished), parents


def _finish(found: _Search, k: int, max_length: int, end: int | None) -> Beams:
    fill = torch.nn.functional.pad
    lacking = max(k + 1 - found.phi.shape[-1], 0)
    short = max_length - found.sequences.shape[-1]
    sequences = fill(found.sequences, (0, short, 0, lacking), value=end or 0)
    phi, perturbed = (fill(x, (0, lacking), value=-torch.inf) for x in found[1:3])
    return Beams(sequences[..., :k, :], phi[..., :k], perturbed[..., :k], perturbed[..., k])


def _all_finished(found: _Search) -> bool:
    if torch.compiler.is_compiling() or transformed(found.phi):
        return False
    return bool(found.finished.all())


def _check_end(end: int | None, logits: Tensor) -> None:
    if end is not None and check_count("end", end, 0) >= logits.shape[-1]:
        raise DomainError(f"end={end} is no token: the model has {logits.shape[-1]}, from 0 on.")
