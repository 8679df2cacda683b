"""The law of k-subsets against enumeration, and SIMPLE, whose Jacobian is its covariance."""

import math
from itertools import combinations, pairwise

import pytest
import torch
from scipy import stats

import gradthrough as gt
from gradthrough import structured as s
from gradthrough.structured.tree import plant
from problems import F64, normal, uniform

LEVEL = 1e-5
INF = torch.inf
SIZES = [(n, k) for n in range(1, 9) for k in range(1, n + 1)]
MASKED = torch.tensor([0.4, -INF, 1.3, -0.2, -INF, 0.9, -2.0], dtype=F64)


def close(got, want, tolerance=1e-11):
    torch.testing.assert_close(got, want, rtol=0.0, atol=tolerance)


def points(n, k):
    """All k-hot points, (C(n, k), n)."""
    index = torch.tensor(list(combinations(range(n), k)))
    return torch.zeros(len(index), n, dtype=F64).scatter(-1, index, 1.0)


def weights(x, z):
    """theta . z, a masked class out of it or all of it."""
    return torch.where(z > 0, x, 0.0).sum(-1)


def law(x, k):
    """The points and their probabilities."""
    z = points(x.shape[-1], k)
    return z, weights(x, z).softmax(0)


# --- enumeration


@pytest.mark.parametrize(("n", "k"), SIZES)
def test_everything_is_as_enumerated(n, k):
    for x, y in ((normal(n, seed=n), normal(n, seed=k + 20)), (9 * normal(n, seed=k), normal(n))):
        z, p = law(x, k)
        close(s.subset_log_partition(x, k), weights(x, z).logsumexp(0))
        close(s.subset_marginals(x, k), p @ z)
        close(s.subset_log_prob(x, k, z), p.log())
        close(s.subset_log_prob(x, k, z).exp().sum(), torch.tensor(1.0, dtype=F64))
        close(s.subset_entropy(x, k), -(p * p.log()).sum())
        q = law(y, k)[1]
        close(s.subset_kl(x, y, k), (p * (p.log() - q.log())).sum())


@pytest.mark.parametrize(("n", "k"), [(4, 2), (5, 1), (5, 3), (6, 6), (7, 4)])
def test_marginals_are_the_gradient_and_their_jacobian_is_the_covariance(n, k):
    x = normal(n, seed=30)
    z, p = law(x, k)
    mu = p @ z
    covariance = (z - mu).T @ (p[:, None] * (z - mu))
    y = x.clone().requires_grad_()
    close(torch.autograd.grad(s.subset_log_partition(y, k), y)[0], mu)
    jacobian = torch.autograd.functional.jacobian
    close(jacobian(lambda v: s.subset_marginals(v, k), x), covariance)
    close(jacobian(lambda v: s.simple(v, k), x), covariance)
    step = 1e-5
    for i in range(n):
        e = step * torch.eye(n, dtype=F64)[i]
        slope = (s.subset_log_partition(x + e, k) - s.subset_log_partition(x - e, k)) / (2 * step)
        close(slope, mu[i], 1e-8)


@pytest.mark.parametrize("k", [1, 2, 5])
def test_masked_classes_are_as_if_they_were_not_there(k):
    kept = ~MASKED.isneginf()
    x, y = MASKED, normal(7, seed=31).masked_fill(~kept, -INF)
    assert bool((s.subset_marginals(x, k)[~kept] == 0).all())
    close(s.subset_marginals(x, k)[kept], s.subset_marginals(x[kept], k))
    close(s.subset_log_partition(x, k), s.subset_log_partition(x[kept], k))
    close(s.subset_entropy(x, k), s.subset_entropy(x[kept], k))
    close(s.subset_kl(x, y, k), s.subset_kl(x[kept], y[kept], k))
    z = s.sample_subset(x.expand(300, -1), k)
    assert bool((z[:, ~kept] == 0).all())
    assert bool((z.sum(-1) == k).all())


def test_a_masked_class_makes_points_impossible_and_divergences_infinite():
    x, y = MASKED.clone().requires_grad_(), normal(7, seed=32)
    z = torch.tensor([1.0, 1, 0, 0, 0, 0, 0], dtype=F64)
    out = s.subset_log_prob(x, 2, z)
    assert out == -INF
    assert torch.autograd.grad(out, x)[0].eq(0).all()
    out = s.subset_kl(y, x, 2)
    assert out == INF
    assert torch.autograd.grad(out, x)[0].eq(0).all()
    assert s.subset_kl(x, y, 2).isfinite()


@pytest.mark.parametrize("n", [1, 2, 5, 8])
def test_one_of_n_is_the_categorical_and_n_of_n_is_certain(n):
    x = normal(n, seed=33)
    close(s.subset_marginals(x, 1), x.softmax(-1))
    close(s.subset_log_partition(x, 1), x.logsumexp(-1))
    close(s.subset_entropy(x, 1), gt.Categorical(x).entropy())
    close(s.subset_marginals(x, n), torch.ones(n, dtype=F64))
    close(s.subset_log_partition(x, n), x.sum())
    assert torch.equal(s.sample_subset(x, n), torch.ones(n, dtype=F64))
    assert abs(s.subset_entropy(x, n)) < 1e-12


def test_kl_of_one_law_is_zero_and_else_positive():
    x, y = normal(50, 6, seed=34), normal(50, 6, seed=35)
    close(s.subset_kl(x, x + 3.0, 3), torch.zeros(50, dtype=F64))
    assert bool((s.subset_kl(x, y, 3) > 1e-3).all())


# --- numbers


@pytest.mark.parametrize("k", [1, 3, 5, 7])
def test_logits_of_200_keep_their_digits_in_float32(k):
    x = torch.tensor([200.0, -200.0, 199.5, 0.0, -200.0, 200.0, -199.0])
    z, p = law(x.double(), k)
    torch.testing.assert_close(s.subset_marginals(x, k).double(), p @ z, rtol=1e-4, atol=1e-30)
    want = weights(x.double(), z).logsumexp(0)
    torch.testing.assert_close(s.subset_log_partition(x, k).double(), want, rtol=1e-6, atol=5e-4)
    entropy = -torch.special.xlogy(p, p).sum()
    torch.testing.assert_close(s.subset_entropy(x, k).double(), entropy, rtol=1e-4, atol=1e-10)
    log_p = weights(x.double(), z).log_softmax(-1)
    torch.testing.assert_close(s.subset_log_prob(x, k, z).double(), log_p, rtol=1e-6, atol=2e-4)


def test_small_marginals_are_right_to_their_own_digits():
    """Sums of what is positive: no difference of two large logarithms."""
    x = torch.tensor([0.0, 1.0, -30.0, 0.5, -60.0, 2.0, 40.0, 80.0])
    z, p = law(x.double(), 4)
    got = s.subset_marginals(x, 4).double()
    torch.testing.assert_close(got, p @ z, rtol=2e-6, atol=0.0)
    close(got.sum(), torch.tensor(4.0, dtype=F64), 1e-6)


@pytest.mark.parametrize("dtype", [F64, torch.float32])
@pytest.mark.parametrize(("n", "k"), [(100_000, 4), (1000, 100), (300, 299)])
def test_many_classes(n, k, dtype):
    tolerance = 1e-9 if dtype == F64 else 2e-4
    x = torch.full((n,), 2.0, dtype=dtype)
    log_count = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
    assert abs(float(s.subset_entropy(x, k)) / log_count - 1) < tolerance
    log_z = log_count + 2.0 * k
    assert abs(float(s.subset_log_partition(x, k)) / log_z - 1) < tolerance
    mu = s.subset_marginals(x, k)
    torch.testing.assert_close(mu, torch.full_like(mu, k / n), rtol=tolerance, atol=0.0)
    x = normal(n, seed=36).to(dtype).requires_grad_()
    z = s.simple(x, k, noise=uniform(n - 1, seed=36))
    assert z.sum() == k
    assert torch.autograd.grad((z * x.detach()).sum(), x)[0].isfinite().all()


@pytest.mark.parametrize(("k", "counted"), [(1, 1), (5, 5), (32, 32), (59, 5), (64, 0)])
def test_no_node_holds_more_counts_than_it_has_classes(k, counted):
    """Or the cost would be n k^2. Beyond half of the classes, those left out are counted."""
    levels = plant(torch.zeros(64, dtype=F64), k).levels
    sizes = [2, *(min(1 << i, counted) + 1 for i in range(1, 7))]
    assert [tuple(x.shape) for x in levels] == [(m, 64 >> i) for i, m in enumerate(sizes)]


# --- draws


@pytest.mark.parametrize(("n", "k"), SIZES)
def test_every_draw_has_k_ones_at_both_ends_of_the_uniforms_too(n, k):
    x = 3 * normal(40, n, seed=37)
    for u in (uniform(40, n - 1, seed=37), torch.zeros(40, n - 1, dtype=F64)):
        for noise in (u, 1 - 2.0**-53 - u):
            z = s.sample_subset(x, k, noise=noise)
            assert bool(((z == 0) | (z == 1)).all())
            assert bool((z.sum(-1) == k).all())
            assert torch.equal(s.simple(x, k, noise=noise), z)


def exact_law_of_draws(x, k):
    """The probability of each draw, to the last digit: the volume of the uniforms that make it.

    Given the uniforms before it, one changes what is drawn at a few places, which bisection finds.
    """
    n, total = len(x), {}

    def visit(fixed, mass):
        if len(fixed) == n - 1:
            z = s.sample_subset(x, k, noise=torch.tensor(fixed, dtype=F64))
            key = tuple(z.int().tolist())
            total[key] = total.get(key, 0.0) + mass
            return
        for low, high in cells(fixed):
            visit([*fixed, (low + high) / 2], mass * (high - low))

    def outcome(fixed, u):
        """What the later uniforms would be given: all draws of a grid of them."""
        later = torch.cartesian_prod(*[torch.tensor([0.01, 0.35, 0.65, 0.99], dtype=F64)] * 3)
        later = later[:, : n - 2 - len(fixed)]
        head = torch.tensor([*fixed, u], dtype=F64).expand(len(later), -1)
        return s.sample_subset(x.expand(len(later), -1), k, noise=torch.cat((head, later), -1))

    def cells(fixed):
        grid = [i / 16 for i in range(17)]
        grid[-1] = 1 - 2.0**-53
        ends = [0.0]
        for a, b in pairwise(grid):
            first = outcome(fixed, a)
            if torch.equal(first, outcome(fixed, b)):
                continue
            for _ in range(50):
                middle = (a + b) / 2
                a, b = (middle, b) if torch.equal(first, outcome(fixed, middle)) else (a, middle)
            ends.append(b)
        ends.append(1.0)
        return list(pairwise(ends))

    visit([], 1.0)
    return total


@pytest.mark.parametrize(("n", "k"), [(2, 1), (3, 1), (3, 2), (4, 2)])
def test_the_law_of_the_draws_is_exact(n, k):
    x = 0.5 * normal(n, seed=38)
    got = exact_law_of_draws(x, k)
    z, p = law(x, k)
    assert abs(sum(got.values()) - 1.0) < 1e-12
    for point, chance in zip(z.int().tolist(), p.tolist(), strict=True):
        assert abs(got[tuple(point)] - chance) < 1e-12


@pytest.mark.slow
@pytest.mark.parametrize(("n", "k"), [(5, 2), (6, 3), (7, 5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_subsets_come_as_often_as_their_probability(n, k, dtype):
    x, rows = normal(n, seed=39).to(dtype), 200_000
    z = s.sample_subset(x.expand(rows, -1), k, generator=torch.Generator().manual_seed(1))
    every, p = law(x.double(), k)
    places = 2.0 ** torch.arange(n)
    got = torch.bincount((z.double() @ places.double()).long(), minlength=2**n)
    got = got[(every @ places.double()).long()]
    assert got.sum() == rows
    assert stats.chisquare(got, (p * rows).numpy()).pvalue > LEVEL


def test_simple_is_exact_for_an_affine_f_at_every_draw():
    x, c = normal(6, seed=40).requires_grad_(), normal(6, seed=41)
    z, p = law(x.detach(), 3)
    want = torch.autograd.grad((weights(x, z).softmax(0) * (z @ c)).sum(), x)[0]
    for seed in range(5):
        out = s.simple(x, 3, noise=uniform(5, seed=seed))
        close(torch.autograd.grad((out * c).sum(), x)[0], want)
    assert not s.sample_subset(x, 3).requires_grad
    close(p.sum(), torch.tensor(1.0, dtype=F64))


# --- refusals


def test_points_that_are_not_k_hot_are_refused():
    x = normal(3, 5)
    z = s.sample_subset(x, 2)
    with pytest.raises(gt.DomainError, match="3 ones"):
        s.subset_log_prob(x, 3, z)
    with pytest.raises(gt.DomainError, match="soft point"):
        s.subset_log_prob(x, 2, s.subset_marginals(x, 2))
    with pytest.raises(gt.ShapeError, match="end in the shape"):
        s.subset_log_prob(x, 2, z[:2])
    with pytest.raises(gt.UnsupportedError, match=r"torch\.Tensor"):
        s.subset_log_prob(x, 2, [1, 1, 0, 0, 0])


def test_a_divergence_of_two_shapes_is_refused():
    with pytest.raises(gt.ShapeError, match="one shape"):
        s.subset_kl(normal(3, 5), normal(5), 2)


def test_ones_are_counted_beyond_what_bfloat16_can_count():
    x = torch.zeros(600, dtype=torch.bfloat16)
    assert s.subset_log_prob(x, 515, s.sample_subset(x, 515)).isfinite()
    with pytest.raises(gt.DomainError, match="515 ones"):
        s.subset_log_prob(x, 515, s.sample_subset(x, 516))


def test_unchecked_rows_without_a_law_stay_nan_whatever_their_size_or_the_other_law():
    gt.set_validation(False)
    assert s.subset_marginals(torch.tensor([torch.nan]), 1).isnan().all()
    assert s.simple(torch.tensor([torch.nan]), 1).isnan().all()
    one_left = torch.tensor([0.0, -INF, -INF])
    assert s.subset_kl(one_left, torch.tensor([-INF, 0.0, 0.0]), 2).isnan()
