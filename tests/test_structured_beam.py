"""Stochastic beam search against the top k of all sequences, which small trees let us list."""

from itertools import permutations, product
from typing import NamedTuple

import pytest
import torch
from scipy import stats

import gradthrough as gt
from gradthrough import structured as s
from gradthrough.structured.beam import given_maximum
from problems import F64, normal, uniform

LEVEL = 1e-5
INF = torch.inf
V = 3
TABLE = normal(V, V, seed=1)  # logits of the next token, by the last one
ZERO = torch.tensor(0)


def close(got, want, tolerance=1e-12):
    torch.testing.assert_close(got, want, rtol=0.0, atol=tolerance)


def markov(table=TABLE):
    return lambda state, tokens: (table[tokens], state)


def search(k, length, *, table=TABLE, start=ZERO, **options):
    return s.stochastic_beam_search(
        markov(table), None, k, start=start, max_length=length, **options
    )


def sequences(length, end=None):
    """All sequences; after the end it goes on."""
    every = set()
    for tokens in product(range(V), repeat=length):
        stop = tokens.index(end) if end in tokens else length
        every.add((*tokens[:stop], *[end] * (length - stop)))
    return torch.tensor(sorted(every))


def log_prob(tokens, table=TABLE, end=None):
    """Of sequences (..., length), token by token."""
    log_p = table.log_softmax(-1)
    last, total = torch.zeros_like(tokens[..., 0]), torch.zeros(tokens.shape[:-1], dtype=F64)
    over = torch.zeros_like(last, dtype=torch.bool)
    for token in tokens.unbind(-1):
        total = total + torch.where(over, 0.0, log_p[last, token])
        over = over | (token == (V if end is None else end))
        last = token
    return total


def rank(found, every):
    """The place of each found sequence in the list of all."""
    return (found.unsqueeze(-2) == every).all(-1).double().argmax(-1)


# --- Gumbel variables given their maximum


def test_the_maximum_is_what_it_is_said_to_be_exactly():
    for dtype in (F64, torch.float32):
        g, t = 5 * normal(1000, 7, seed=2).to(dtype), 5 * normal(1000, seed=3).to(dtype)
        out = given_maximum(g, t)
        assert torch.equal(out.amax(-1), t)
        order = g.argsort(-1)
        assert torch.equal(out.gather(-1, order[:, -1:]).squeeze(-1), t)
        assert bool((out.gather(-1, order).diff() >= 0).all())


def test_the_others_are_the_formula():
    g, t = normal(200, 5, seed=4), normal(200, seed=5)
    z, top = g.amax(-1, keepdim=True), t[:, None]
    close(given_maximum(g, t), -torch.log(torch.exp(-top) - torch.exp(-z) + torch.exp(-g)), 1e-10)


def test_large_numbers_and_what_cannot_be_make_no_nan():
    g = torch.tensor([[0.0, -300.0, -INF], [300.0, 299.0, -300.0], [-200.0, -INF, -INF]])
    for t in (-250.0, 0.0, 250.0):
        out = given_maximum(g, torch.full((3,), t))
        assert torch.equal(out.amax(-1), torch.full((3,), t))
        assert torch.equal(out.isneginf(), g.isneginf())
        assert not out.isnan().any()


@pytest.mark.slow
def test_children_of_a_gumbel_are_independent_gumbels():
    phi, n = normal(4, seed=6).log_softmax(-1), 100_000
    u = uniform(n, 9, seed=6)
    gumbel = -(-torch.log1p(-u)).log()
    out = given_maximum(phi + gumbel[:, :4], gumbel[:, 4])
    for i in range(4):
        assert stats.kstest(out[:, i] - phi[i], stats.gumbel_r.cdf).pvalue > LEVEL
    # The largest of two of them: a law that holds only if they are independent.
    pair = out[:, :2].amax(-1) - phi[:2].logsumexp(-1)
    assert stats.kstest(pair, stats.gumbel_r.cdf).pvalue > LEVEL


# --- the law


@pytest.mark.parametrize("end", [None, 2])
def test_a_wide_search_finds_every_sequence_with_its_probability(end):
    every = sequences(3, end)
    n = len(every)
    for k in (n, n + 4):
        found = search(k, 3, end=end)
        order = rank(found.sequences[:n], every)
        assert torch.equal(order.sort()[0], torch.arange(n))
        close(found.log_probs[:n], log_prob(found.sequences[:n], end=end))
        close(found.log_probs.exp().sum(), torch.tensor(1.0, dtype=F64))
        assert bool((found.perturbed[:n].diff() < 0).all())
        assert found.threshold == -INF
        assert bool((found.log_probs[n:] == -INF).all())
        assert bool((found.perturbed[n:] == -INF).all())
        close(s.beam_weights(found)[:n], found.log_probs[:n].exp())
        assert s.beam_weights(found)[n:].eq(0).all()
        close(s.beam_weights(found, normalised=True).sum(), torch.tensor(1.0, dtype=F64))


@pytest.mark.slow
@pytest.mark.parametrize("end", [None, 1])
def test_the_law_is_that_of_the_flat_top_k_over_all_sequences(end):
    n, every = 200_000, sequences(2, end)
    law = log_prob(every, end=end)
    generator = torch.Generator().manual_seed(1)
    found = search(2, 2, start=torch.zeros(n, dtype=torch.int64), end=end, generator=generator)
    pairs = torch.tensor(list(permutations(range(len(every)), 2)))
    chance = s.plackett_luce_log_prob(law, pairs).exp()
    drawn = rank(found.sequences, every)
    got = torch.bincount(drawn[:, 0] * len(every) + drawn[:, 1], minlength=len(every) ** 2)
    got = got[pairs[:, 0] * len(every) + pairs[:, 1]]
    assert got.sum() == n
    assert stats.chisquare(got, (chance * n).numpy()).pvalue > LEVEL
    flat = s.gumbel_top_k(law.expand(n, -1), 2, generator=generator)
    for ours, theirs in (
        (found.perturbed[:, 0], flat.perturbed[:, 0]),
        (found.perturbed[:, 1], flat.perturbed[:, 1]),
        (found.threshold, flat.threshold),
    ):
        assert stats.ks_2samp(ours.numpy(), theirs.numpy()).pvalue > LEVEL


@pytest.mark.slow
def test_weighted_sums_over_the_beams_have_the_right_mean():
    n, every, f = 100_000, sequences(3, 2), normal(len(sequences(3, 2)), seed=7)
    want = (log_prob(every, end=2).exp() * f).sum()
    generator = torch.Generator().manual_seed(2)
    found = search(3, 3, start=torch.zeros(n, dtype=torch.int64), end=2, generator=generator)
    sums = (s.beam_weights(found) * f[rank(found.sequences, every)]).sum(-1)
    z = (sums.mean() - want) / (sums.std() / n**0.5)
    assert 2 * stats.norm.sf(abs(float(z))) > LEVEL


def test_sequences_are_different_and_their_log_probabilities_theirs():
    start = torch.zeros(50, dtype=torch.int64)
    found = search(6, 5, start=start, end=1, generator=torch.Generator().manual_seed(3))
    close(found.log_probs, log_prob(found.sequences, end=1))
    for row in found.sequences:
        assert len(row.unique(dim=0)) == 6
    assert bool((found.perturbed.diff() <= 0).all())
    assert bool((found.perturbed[:, -1] > found.threshold).all())


def test_finished_beams_carry_their_gumbel_unchanged():
    u = uniform(6, 40, 5, V, seed=8)
    start = torch.zeros(40, dtype=torch.int64)
    short, long = (search(4, n, start=start, end=0, noise=u[:n]) for n in (3, 6))
    kept = 0
    for row in range(40):
        for i, tokens in enumerate(short.sequences[row]):
            same = (long.sequences[row, :, :3] == tokens).all(-1)
            if tokens[-1] != 0 or not same.any():
                continue
            (j,) = same.nonzero()
            assert long.perturbed[row, j] == short.perturbed[row, i]
            close(long.log_probs[row, j], short.log_probs[row, i][None])
            assert bool((long.sequences[row, j, 3:] == 0).all())
            kept += 1
    assert kept > 50


def test_the_first_beam_of_one_token_is_the_flat_draw():
    u = uniform(1, 30, 3, V, seed=9)
    x = normal(V, seed=10)
    start = torch.zeros(30, dtype=torch.int64)
    found = search(2, 1, table=x.expand(V, V), start=start, noise=u)
    flat = s.gumbel_top_k(x.expand(30, -1), 2, noise=u[0, :, 0])
    assert torch.equal(found.sequences.squeeze(-1), flat.index)
    close(found.perturbed, flat.perturbed)
    close(found.threshold, flat.threshold)


# --- the model


class Memory(NamedTuple):
    """A state with parts of several kinds."""

    prefix: torch.Tensor
    rest: dict


def test_the_state_follows_the_beams_whatever_holds_it():
    """The logits depend on the whole prefix, which the state alone remembers."""
    w = normal(5, V, seed=11)

    def step(state, tokens):
        (count,) = state.rest["count"]
        assert state.rest["nothing"] is None
        prefix = state.prefix.clone()
        prefix[..., count] = tokens.double()
        logits = (torch.cos(prefix * torch.arange(1, 6)) @ w) * 2
        assert torch.equal(state.rest["pair"][0].sum(-1), state.prefix.sum(-1))
        return logits, Memory(prefix, {"count": [count + 1], "nothing": None, "pair": (prefix,)})

    zeros = torch.zeros(7, 5, dtype=F64)
    state = Memory(zeros, {"count": [0], "nothing": None, "pair": (zeros,)})
    start = torch.ones(7, dtype=torch.int64)
    found = s.stochastic_beam_search(step, state, 4, start=start, max_length=4)
    for row, got in zip(found.sequences.flatten(0, 1), found.log_probs.flatten(), strict=True):
        prefix, total = torch.zeros(5, dtype=F64), 0.0
        last = torch.tensor(1)
        for t, token in enumerate(row):
            prefix[t] = last.double()
            logits = (torch.cos(prefix * torch.arange(1, 6)) @ w) * 2
            total = total + logits.log_softmax(-1)[token]
            last = token
        close(got, total)


def test_gradients_are_those_of_the_sequences_found():
    table = TABLE.clone().requires_grad_()
    found = search(4, 3, table=table, end=2, start=torch.zeros(5, dtype=torch.int64))
    assert not found.perturbed.requires_grad
    assert not found.threshold.requires_grad
    w = normal(5, 4, seed=12)
    (got,) = torch.autograd.grad((found.log_probs * w).sum(), table)
    total = (log_prob(found.sequences, table, end=2) * w).sum()
    close(got, torch.autograd.grad(total, table)[0])


def test_masked_tokens_are_never_drawn_and_get_no_gradient():
    table = TABLE.masked_fill(torch.eye(V, dtype=torch.bool), -INF).requires_grad_()
    found = search(4, 3, table=table, start=torch.zeros(20, dtype=torch.int64))
    whole = torch.cat((torch.zeros(20, 4, 1, dtype=torch.int64), found.sequences), -1)
    assert bool((whole.diff() != 0).all())
    (g,) = torch.autograd.grad(found.log_probs.sum(), table)
    assert g.isfinite().all()
    assert bool((g.diagonal() == 0).all())


def test_a_model_is_not_called_again_when_all_beams_have_ended():
    calls = []

    def step(state, tokens):
        calls.append(tuple(tokens.shape))
        return torch.full((*tokens.shape, V), -INF).index_fill(-1, ZERO, 0.0), state

    found = s.stochastic_beam_search(step, None, 2, start=ZERO, max_length=9, end=0)
    assert calls == [(1,)]
    assert found.sequences[0].tolist() == [0] * 9
    assert found.log_probs.tolist() == [0.0, -INF]
    seen = []
    search(3, 4)
    s.stochastic_beam_search(
        lambda state, tokens: (seen.append(tokens.shape[-1]) or TABLE[tokens], state),
        None, 3, start=ZERO, max_length=4,
    )  # fmt: skip
    assert seen == [1, 3, 4, 4]


def test_what_a_model_says_after_the_end_does_not_matter():
    def step(state, tokens):
        x = TABLE[tokens]
        return torch.where((tokens == 2).unsqueeze(-1), torch.nan, x), state

    u = uniform(4, 5, V, seed=13)
    found = s.stochastic_beam_search(step, None, 4, start=ZERO, max_length=4, end=2, noise=u)
    plain = search(4, 4, end=2, noise=u)
    for a, b in zip(found, plain, strict=True):
        assert torch.equal(a, b)


# --- refusals


def test_what_a_model_must_not_return_is_refused():
    def run(step, state=None, **options):
        options = {"start": torch.zeros(2, dtype=torch.int64), "max_length": 2} | options
        return s.stochastic_beam_search(step, state, 2, **options)

    with pytest.raises(gt.UnsupportedError, match=r"must return .* returned a Tensor"):
        run(lambda state, tokens: TABLE[tokens])
    with pytest.raises(gt.UnsupportedError, match=r"returned a list of \(Tensor, NoneType\)"):
        run(lambda state, tokens: [TABLE[tokens], state])
    with pytest.raises(gt.UnsupportedError, match="logits of step"):
        run(lambda state, tokens: (TABLE[tokens].long(), state))
    with pytest.raises(gt.ShapeError, match="must return logits"):
        run(lambda state, tokens: (TABLE[tokens][..., 0], state))
    with pytest.raises(gt.ShapeError, match="returned one of shape"):
        run(lambda state, tokens: (TABLE[tokens], torch.zeros(2)))
    with pytest.raises(gt.ShapeError, match="begin with the shape of start"):
        run(markov(), state=torch.zeros(3))
    with pytest.raises(gt.UnsupportedError, match="holds a set"):
        run(markov(), state={"a": {1}})
    with pytest.raises(gt.UnsupportedError, match="start must be"):
        run(markov(), start=torch.zeros(2))
    with pytest.raises(gt.DomainError, match="end=3 is no token"):
        run(markov(), end=3)
    with pytest.raises(gt.DomainError, match="max_length"):
        run(markov(), max_length=0)
    with pytest.raises(gt.DomainError, match="k must be"):
        s.stochastic_beam_search(markov(), None, 0, start=ZERO, max_length=2)
    with pytest.raises(gt.DomainError, match="have no distribution"):
        run(lambda state, tokens: (TABLE[tokens] * torch.nan, state))
    with pytest.raises(gt.UnsupportedError, match="Beams"):
        s.beam_weights(TABLE)
