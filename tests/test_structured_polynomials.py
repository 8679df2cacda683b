"""Products of polynomials against numpy's, and what the tree of subsets keeps of them."""

import numpy as np
import pytest
import torch
from torch.func import vmap

from gradthrough import structured as s
from gradthrough.structured import polynomials
from problems import F64, normal, uniform

WINDOWS = [(0, 4), (0, 7), (2, 5), (-3, 2), (4, 9), (-2, 10)]
ENGINES = [polynomials._by_terms, polynomials._by_table, polynomials.product]


def enumerated(left, right, start, stop):
    whole = np.convolve(left.numpy(), right.numpy())
    return torch.tensor([whole[t] if 0 <= t < len(whole) else 0.0 for t in range(start, stop)])


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("start", "stop"), WINDOWS)
@pytest.mark.parametrize(("j", "r"), [(1, 1), (2, 2), (3, 5), (5, 3), (4, 4), (1, 6)])
def test_a_window_of_the_product_is_that_of_numpy(engine, start, stop, j, r):
    left, right = normal(j, 2, seed=1), normal(r, 2, seed=2)
    got = engine(left, right, start, stop)
    for i in range(2):
        want = enumerated(left[:, i], right[:, i], start, stop).double()
        torch.testing.assert_close(got[:, i], want, rtol=0.0, atol=1e-13)


@pytest.mark.parametrize(("start", "stop"), WINDOWS)
def test_derivatives_of_the_product_of_two_orders_and_both_modes(start, stop):
    left, right = normal(3, 2, seed=3).requires_grad_(), normal(5, 2, seed=4).requires_grad_()

    def f(x, y):
        return polynomials.product(x, y, start, stop)

    assert torch.autograd.gradcheck(f, (left, right), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(f, (left, right), check_fwd_over_rev=True)
    assert torch.autograd.gradcheck(lambda x: f(x, right.detach()), (left,), check_forward_ad=True)


def test_correlating_is_the_adjoint_of_the_product():
    left, right, above = normal(3, 4, seed=5), normal(5, 4, seed=6), normal(4, 4, seed=7)
    ahead = (polynomials.product(left, right, 0, 4) * above).sum()
    back = (left * polynomials.correlate(above, right, 3)).sum()
    torch.testing.assert_close(ahead, back, rtol=0.0, atol=1e-13)


def test_vmap_over_either_factor_is_a_loop():
    left, right = normal(6, 3, 2, seed=8), normal(5, 2, seed=9)
    for x, dim in ((left, 0), (left.movedim(0, 1), 1), (left.movedim(0, 2), 2)):
        got = vmap(lambda y: polynomials.product(y, right, 1, 5), in_dims=dim)(x)
        want = torch.stack([polynomials.product(y, right, 1, 5) for y in left])
        torch.testing.assert_close(got, want)
        got = vmap(lambda y: polynomials.product(right, y, 1, 5), in_dims=dim)(x)
        torch.testing.assert_close(got, want)


def kept_by(f, x):
    """How many numbers the graph of f(x) holds."""
    sizes = {}

    def pack(t):
        sizes[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes() // 8
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        out = f(x)
    return sum(sizes.values()), out


@pytest.mark.parametrize("k", [10, 100, 250, 490])
def test_what_is_kept_for_the_backward_does_not_grow_with_n_times_k(k):
    n = 500
    for f in (
        lambda x: s.simple(x, k, noise=uniform(n - 1)),
        lambda x: s.subset_log_partition(x, k),
        lambda x: s.subset_entropy(x, k),
    ):
        kept, _ = kept_by(f, normal(n, seed=10).requires_grad_())
        assert kept < 60 * n


def test_large_and_small_products_take_either_road_to_the_same_law(monkeypatch):
    x = normal(4, 40, seed=11)
    want = s.subset_marginals(x, 17)
    monkeypatch.setattr(polynomials, "_FEW", 0)
    torch.testing.assert_close(s.subset_marginals(x, 17), want, rtol=1e-12, atol=0.0)
    monkeypatch.setattr(polynomials, "_FEW", 2**60)
    torch.testing.assert_close(s.subset_marginals(x, 17), want, rtol=1e-12, atol=0.0)


@pytest.mark.parametrize("dtype", [F64, torch.float32])
@pytest.mark.parametrize("k", [2, 6, 11])
def test_marginals_of_1e_minus_30_have_their_own_digits(k, dtype):
    n, low = 12, -70.0  # exp(-70) = 4e-31
    x = torch.zeros(n, dtype=dtype).masked_fill(torch.arange(n) == 3, low)
    # All others alike: Z = C(n-1, k) + e^low C(n-1, k-1), the ratio of the two is k / (n - k).
    odds = np.exp(low) * k / (n - k)
    got = float(s.subset_marginals(x, k)[3])
    assert abs(got / (odds / (1 + odds)) - 1) < (1e-11 if dtype == F64 else 1e-6)


@pytest.mark.parametrize("strategy", ["reverse-mode", "forward-mode"])
def test_every_row_of_a_jacobian_can_be_asked_for_at_once(strategy):
    x, jacobian = normal(9, seed=12), torch.autograd.functional.jacobian
    for f in (lambda y: s.subset_marginals(y, 4), lambda y: s.subset_entropy(y, 4)):
        got = jacobian(f, x, vectorize=True, strategy=strategy)
        torch.testing.assert_close(got, jacobian(f, x), rtol=0.0, atol=1e-13)


@pytest.mark.parametrize("scale", [0.0, 1.0, 1e3, 1e4])
@pytest.mark.parametrize("k", [1, 6, 11, 12])
def test_rounding_takes_no_entropy_or_divergence_below_zero(scale, k):
    x = scale * normal(200, 12, seed=13)
    assert bool((s.subset_entropy(x, k) >= 0).all())
    assert bool((s.subset_kl(x, x + 0.3, k) >= 0).all())


def test_a_divergence_of_zero_has_its_second_derivative():
    """The covariance, whatever rounding does to the value."""
    for seed in range(20):
        x = normal(6, seed=seed)
        curved = torch.autograd.functional.hessian(lambda y, x=x: s.subset_kl(x, y, 3), x + 0.3)
        want = torch.autograd.functional.jacobian(lambda y: s.subset_marginals(y, 3), x)
        torch.testing.assert_close(curved, want, rtol=0.0, atol=1e-12)
