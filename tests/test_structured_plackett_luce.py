"""Plackett-Luce: what gumbel_top_k draws, how probable that is, and weights for unbiased sums."""

import math
from itertools import combinations, permutations

import pytest
import torch
from scipy import integrate, stats

import gradthrough as gt
from gradthrough import structured as s
from gradthrough.structured.log_space import log_ring
from problems import F64, normal, uniform

LEVEL = 1e-5
INF = torch.inf
MASKED = torch.tensor([0.4, -INF, 1.3, -0.2, -INF, 0.9], dtype=F64)


def close(got, want, tolerance=1e-12):
    torch.testing.assert_close(got, want, rtol=0.0, atol=tolerance)


def orders(n, k):
    return torch.tensor(list(permutations(range(n), k)))


def subsets(n, k):
    return torch.tensor(list(combinations(range(n), k)))


def by_definition(logits, order):
    """prod_i p[o_i] / (1 - sum_{j<i} p[o_j]), with what is left summed one by one."""
    p, left, out = logits.double().softmax(-1), set(range(len(logits))), 1.0
    for c in order.tolist():
        out = out * float(p[c]) / sum(float(p[i]) for i in left)
        left.remove(c)
    return out


# --- probabilities


@pytest.mark.parametrize("k", range(1, 6))
def test_orders_have_the_probability_of_the_definition_and_sum_to_one(k):
    x, every = normal(5, seed=1), orders(5, k)
    got = s.plackett_luce_log_prob(x.expand(len(every), -1), every).exp()
    close(got, torch.tensor([by_definition(x, o) for o in every], dtype=F64))
    close(got.sum(), torch.tensor(1.0, dtype=F64))
    close(s.plackett_luce_log_prob(x, every[:, None, :].squeeze(1)).exp(), got)


@pytest.mark.parametrize("k", range(1, 7))
def test_subsets_have_the_sum_over_their_orders(k):
    for x in (normal(6, seed=2), 6.0 * normal(6, seed=3)):
        total = 0.0
        for subset in subsets(6, k):
            every = subset[orders(k, k)]
            want = s.plackett_luce_log_prob(x, every).logsumexp(0)
            got = s.plackett_luce_subset_log_prob(x, subset)
            close(got, want)
            close(s.plackett_luce_subset_log_prob(x, subset.flip(-1)), got)
            total += float(got.exp())
        assert abs(total - 1.0) < 1e-12


def test_orders_and_subsets_give_the_same_probabilities_of_inclusion():
    x, k = normal(5, seed=4), 3
    by_order = s.plackett_luce_log_prob(x, orders(5, k)).exp()
    by_subset = s.plackett_luce_subset_log_prob(x, subsets(5, k)).exp()
    for c in range(5):
        want = by_order[(orders(5, k) == c).any(-1)].sum()
        close(by_subset[(subsets(5, k) == c).any(-1)].sum(), want)


@pytest.mark.parametrize(("n", "k"), [(8, 8), (50, 40), (300, 100), (1000, 7)])
def test_equal_logits_make_all_subsets_and_all_orders_equally_likely(n, k):
    x, order = torch.full((n,), 3.0, dtype=F64), torch.randperm(n)[:k]
    log_orders = math.lgamma(n + 1) - math.lgamma(n - k + 1)
    close(s.plackett_luce_log_prob(x, order), torch.tensor(-log_orders, dtype=F64), 1e-10)
    log_subsets = log_orders - math.lgamma(k + 1)
    got = s.plackett_luce_subset_log_prob(x, order)
    close(got, torch.tensor(-log_subsets, dtype=F64), 1e-10)


def test_one_class_has_its_own_probability_and_all_classes_are_certain():
    x = normal(5, seed=5)
    close(s.plackett_luce_log_prob(x, torch.tensor([2])), x.log_softmax(-1)[2])
    close(s.plackett_luce_subset_log_prob(x, torch.tensor([2])), x.log_softmax(-1)[2])
    every = torch.tensor([3, 0, 4, 1, 2])
    assert s.plackett_luce_subset_log_prob(x, every) == 0.0
    one = torch.zeros(1)
    assert s.plackett_luce_log_prob(one, torch.tensor([0])) == 0.0


def test_masked_classes_are_impossible_and_the_others_as_if_they_were_not_there():
    kept = torch.tensor([0, 2, 3, 5])
    for f in (s.plackett_luce_log_prob, s.plackett_luce_subset_log_prob):
        for o in orders(4, 2):
            close(f(MASKED, kept[o]), f(MASKED[kept], o))
        x = MASKED.clone().requires_grad_()
        out = f(x, torch.tensor([0, 1]))
        assert out == -INF
        assert torch.autograd.grad(out, x)[0].eq(0).all()
    assert s.plackett_luce_subset_log_prob(MASKED, kept) == 0.0


@pytest.mark.parametrize("scale", [20.0, 200.0])
def test_nothing_cancels_after_a_class_that_is_nearly_certain(scale):
    """1 - p rounds to 0 in float32 and in float64; what is left is what the others add up to."""
    x = scale * torch.tensor([1.0, 0.0, -0.005, 0.01, -1.0], dtype=F64)
    for order in orders(5, 3):
        want, left = 0.0, list(range(5))
        for c in order.tolist():
            want += float(x[c] - x[left].logsumexp(0))
            left.remove(c)
        for dtype in (F64, torch.float32):
            got = float(s.plackett_luce_log_prob(x.to(dtype), order))
            assert abs(got - want) <= 4 * torch.finfo(dtype).eps * max(-want, scale)
        total = s.plackett_luce_log_prob(x, order[orders(3, 3)]).logsumexp(0)
        assert abs(s.plackett_luce_subset_log_prob(x, order) - total) <= 1e-12 * max(-total, 1.0)


def test_what_names_no_different_classes_is_refused():
    x = normal(3, 5)
    for f in (s.plackett_luce_log_prob, s.plackett_luce_subset_log_prob):
        with pytest.raises(gt.DomainError, match="twice"):
            f(x, torch.tensor([[0, 0]] * 3))
        with pytest.raises(gt.DomainError, match="from 0 to 4"):
            f(x, torch.tensor([[0, 5]] * 3))
        with pytest.raises(gt.UnsupportedError, match="int64"):
            f(x, torch.zeros(3, 2))
        for shape in ((2,), (2, 2), (3, 6), (3, 0)):
            with pytest.raises(gt.ShapeError, match="must have shape"):
                f(x, torch.zeros(shape, dtype=torch.int64))


# --- draws


def test_the_draw_is_the_top_of_the_perturbed_log_probabilities():
    x, u = normal(50, 6, seed=6), uniform(50, 6, seed=6)
    want = x.log_softmax(-1) - (-torch.log1p(-u)).log()
    for k in range(1, 7):
        top = s.gumbel_top_k(x, k, noise=u)
        value, index = want.sort(-1, descending=True)
        assert torch.equal(top.index, index[:, :k])
        close(top.perturbed, value[:, :k])
        close(top.threshold, value[:, k] if k < 6 else torch.full((50,), -INF, dtype=F64))


def test_all_allowed_classes_leave_nothing_below_the_threshold():
    top = s.gumbel_top_k(MASKED.expand(30, -1), 4)
    assert torch.equal(top.index.sort(-1)[0], torch.tensor([0, 2, 3, 5]).expand(30, -1))
    assert bool((top.threshold == -INF).all())
    assert top.perturbed.isfinite().all()


def test_the_draw_has_no_graph():
    top = s.gumbel_top_k(normal(3, 5).requires_grad_(), 2)
    assert not top.perturbed.requires_grad
    assert not top.threshold.requires_grad


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [F64, torch.float32, torch.bfloat16])
def test_orders_come_as_often_as_their_probability(dtype):
    x, n = normal(4, seed=7).to(dtype), 200_000
    top = s.gumbel_top_k(x.expand(n, -1), 3, generator=torch.Generator().manual_seed(1))
    law = s.plackett_luce_log_prob(x.double(), orders(4, 3)).exp()
    code = top.index @ torch.tensor([16, 4, 1])
    got = torch.bincount(code, minlength=64)[orders(4, 3) @ torch.tensor([16, 4, 1])]
    assert got.sum() == n
    assert stats.chisquare(got, (law * n).numpy()).pvalue > LEVEL


@pytest.mark.slow
def test_perturbed_and_threshold_have_the_laws_of_order_statistics():
    x, n = normal(4, seed=8), 100_000
    top = s.gumbel_top_k(x.expand(n, -1), 2, generator=torch.Generator().manual_seed(2))
    assert stats.kstest(top.perturbed[:, 0], stats.gumbel_r.cdf).pvalue > LEVEL

    def third(t):
        """P(at most two of the four exceed t)."""
        below = torch.exp(-torch.exp(x.log_softmax(-1) - torch.as_tensor(t)[..., None]))
        total = torch.zeros(below.shape[:-1], dtype=F64)
        for size in range(3):
            for above in combinations(range(4), size):
                terms = [1 - below[..., i] if i in above else below[..., i] for i in range(4)]
                total = total + torch.stack(terms).prod(0)
        return total.numpy()

    assert stats.kstest(top.threshold, third).pvalue > LEVEL


@pytest.mark.parametrize("dtype", [F64, torch.float32])
def test_a_hundred_thousand_classes_take_no_quadratic_memory(dtype):
    n = 100_000
    x = normal(n, seed=9).to(dtype)
    top = s.gumbel_top_k(x, 50, noise=uniform(n, seed=9))
    assert len(top.index.unique()) == 50
    assert s.importance_weights(x, top).isfinite().all()
    order = torch.randperm(n)
    got = s.plackett_luce_log_prob(torch.zeros(n, dtype=dtype), order)
    assert abs(float(got) / -math.lgamma(n + 1) - 1.0) < 1e-5


# --- weights


def test_the_probability_that_a_clock_rings_is_right_throughout():
    for y in (-800.0, -60.0, -41.0, -39.0, -1.0, 0.0, 3.0, 4.9, 5.1, 800.0, INF):
        want = y if y < -40 else math.log(-math.expm1(-math.exp(min(y, 700.0))))
        got = float(log_ring(torch.tensor(y, dtype=F64)))
        assert abs(got - want) <= 1e-15 * max(1.0, abs(want))
        slope = torch.tensor(y, dtype=F64, requires_grad=True)
        assert torch.autograd.grad(log_ring(slope), slope)[0].isfinite()


def mean_over_draws(x, k, statistic):
    """E statistic(top) over the law of the set and its threshold, by quadrature.

    The threshold is the largest perturbed log-probability of the others, Gumbel around the log of
    their mass; given it, each class of the set exceeds it with its own probability.
    """
    phi, total = x.log_softmax(-1).detach(), 0.0
    for subset in subsets(len(x), k):
        others = torch.ones(len(x), dtype=torch.bool).scatter(0, subset, False)
        mass = phi[others].logsumexp(0)

        def density(t, subset=subset, mass=mass):
            t = torch.tensor(t, dtype=F64)
            chance = -torch.expm1(-torch.exp(phi[subset] - t))
            gumbel = (mass - t) - torch.exp(mass - t)
            top = s.TopK(subset, phi[subset], t)
            return (gumbel.exp() * chance.prod() * statistic(top)).numpy()

        total = total + integrate.quad_vec(density, -12.0, 60.0, epsabs=1e-13, limit=2000)[0]
    return torch.as_tensor(total)


@pytest.mark.parametrize("k", [1, 2, 3])
def test_weighted_sums_are_unbiased_and_so_is_their_gradient(k):
    x, f = normal(4, seed=10).requires_grad_(), normal(4, seed=11)
    want = (x.softmax(-1) * f).sum()
    (slope,) = torch.autograd.grad(want, x)

    def value_and_gradient(top):
        out = (s.importance_weights(x, top) * f[top.index]).sum()
        return torch.cat((out.detach()[None], torch.autograd.grad(out, x)[0]))

    got = mean_over_draws(x, k, value_and_gradient)
    close(got, torch.cat((want.detach()[None], slope)), 1e-9)


def test_all_classes_together_weigh_their_probabilities():
    x = normal(3, 5, seed=12)
    top = s.gumbel_top_k(x, 5)
    p = x.softmax(-1).gather(-1, top.index)
    close(s.importance_weights(x, top), p)
    close(s.importance_weights(x, top, normalised=True), p)


def test_normalised_weights_sum_to_one_and_have_the_others_as_a_baseline():
    x, f = normal(6, seed=13).requires_grad_(), normal(6, seed=14)
    top = s.gumbel_top_k(x, 3)
    w = s.importance_weights(x, top).detach()
    normalised = s.importance_weights(x, top, normalised=True)
    close(normalised, w / w.sum())
    close(normalised.sum(), torch.tensor(1.0, dtype=F64))
    (got,) = torch.autograd.grad((normalised * f[top.index]).sum(), x)
    share = w / w.sum()
    signal = share * (f[top.index] - (share * f[top.index]).sum())
    score = torch.nn.functional.one_hot(top.index, 6) - x.detach().softmax(-1)
    close(got, signal @ score)


def test_weights_of_very_unlikely_classes_are_those_of_their_limit():
    """p / (1 - exp(-p e^-kappa)) goes to e^kappa, though both go to 0."""
    x = torch.tensor([0.0, -200.0, -210.0, -220.0])
    top = s.TopK(torch.tensor([0, 1]), torch.tensor([1.0, -199.0]), torch.tensor(-150.0))
    torch.testing.assert_close(s.importance_weights(x, top)[1], torch.tensor(-150.0).exp())


@pytest.mark.slow
def test_weighted_sums_of_draws_have_the_right_mean():
    x, f, n = normal(6, seed=15), normal(6, seed=16), 100_000
    rows = x.expand(n, -1)
    top = s.gumbel_top_k(rows, 2, generator=torch.Generator().manual_seed(3))
    sums = (s.importance_weights(rows, top) * f[top.index]).sum(-1)
    z = (sums.mean() - (x.softmax(-1) * f).sum()) / (sums.std() / n**0.5)
    assert 2 * stats.norm.sf(abs(float(z))) > LEVEL


def test_what_is_no_draw_is_refused():
    x = normal(3, 5)
    top = s.gumbel_top_k(x, 2)
    with pytest.raises(gt.UnsupportedError, match="TopK"):
        s.importance_weights(x, top.index)
    with pytest.raises(gt.ShapeError, match="one number for each row"):
        s.importance_weights(x, top._replace(threshold=top.threshold[:2]))
    with pytest.raises(gt.UnsupportedError, match="normalised"):
        s.importance_weights(x, top, normalised=1)
