"""Sinkhorn's matrices and the permutations of Gumbel-Sinkhorn."""

import os
import subprocess
import sys
from itertools import permutations
from pathlib import Path

import pytest
import torch
from scipy import stats

import gradthrough as gt
from gradthrough import structured as s
from gradthrough.structured import permutations as solving
from gradthrough.structured import scaling
from problems import F64, normal, uniform

LEVEL = 1e-5
INF = torch.inf


def close(got, want, tolerance=1e-12):
    torch.testing.assert_close(got, want, rtol=0.0, atol=tolerance)


def gumbel(u):
    return -(-torch.log1p(-u)).log()


def best(scores):
    """The permutation matrix of the greatest sum, and by how much it beats the next."""
    n = scores.shape[-1]
    every = torch.eye(n, dtype=scores.dtype)[torch.tensor(list(permutations(range(n))))]
    total = torch.where(every > 0, scores.unsqueeze(-3), 0.0).sum((-1, -2))
    top = total.sort(-1, descending=True)[0]
    gap = top[:, 0] - top[:, 1] if n > 1 else torch.full_like(top[:, 0], INF)
    return every[total.argmax(-1)], gap


@pytest.mark.parametrize("n", [1, 2, 5, 20])
def test_rows_and_columns_sum_to_one(n):
    p = s.sinkhorn(normal(10, n, n, seed=1), 0.5, 300)
    ones = torch.ones(10, n, dtype=F64)
    close(p.sum(-2), ones)
    close(p.sum(-1), ones, 1e-6)
    assert bool((p > 0).all())
    close(s.sinkhorn(normal(10, n, n, seed=1), 0.5, 1).sum(-2), ones)


def test_two_by_two_is_a_sigmoid():
    x = normal(50, 2, 2, seed=2)
    want = torch.sigmoid((x[:, 0, 0] + x[:, 1, 1] - x[:, 0, 1] - x[:, 1, 0]) / (2 * 0.7))
    close(s.sinkhorn(x, 0.7, 200)[:, 0, 0], want, 1e-9)


def test_the_limit_scales_rows_and_columns_and_nothing_else():
    """P / exp(X / tau) has rank one: what is left is a factor for each row and each column."""
    x = normal(6, 6, seed=3)
    left = s.sinkhorn(x, 0.8, 500).log() - x / 0.8
    close(left - left[:1] - left[:, :1] + left[:1, :1], torch.zeros(6, 6, dtype=F64), 1e-9)


def test_constants_of_rows_and_columns_change_nothing():
    x = normal(4, 6, 6, seed=4)
    rows, columns = normal(4, 6, 1, seed=5), normal(4, 1, 6, seed=6)
    close(s.sinkhorn(x + rows, 0.5, 3), s.sinkhorn(x, 0.5, 3))
    close(s.sinkhorn(x + rows + columns, 0.5, 500), s.sinkhorn(x, 0.5, 500), 1e-9)
    u = uniform(4, 6, 6, seed=7)
    hard = s.gumbel_sinkhorn(x, 0.5, hard=True, noise=u)
    assert torch.equal(s.gumbel_sinkhorn(x + rows + columns, 0.5, hard=True, noise=u), hard)


def test_the_relaxed_draw_is_sinkhorn_of_perturbed_scores():
    x, u = normal(4, 5, 5, seed=8), uniform(4, 5, 5, seed=8)
    close(s.gumbel_sinkhorn(x, 0.6, iterations=7, noise=u), s.sinkhorn(x + gumbel(u), 0.6, 7))


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_the_hard_draw_is_the_best_permutation_and_the_limit_of_the_relaxed_one(n):
    x, u = normal(30, n, n, seed=9), uniform(30, n, n, seed=9)
    hard = s.gumbel_sinkhorn(x, 0.6, hard=True, noise=u)
    want, gap = best(x + gumbel(u))
    assert torch.equal(hard, want)
    soft = s.gumbel_sinkhorn(x, 0.02, iterations=3000, noise=u)
    apart = gap > 0.4
    assert apart.sum() > 12
    close(soft[apart], want[apart], 1e-2)


def test_the_hard_draw_has_the_jacobian_of_the_relaxed_one():
    x, u = normal(4, 4, seed=10), uniform(4, 4, seed=10)
    got, want = (
        torch.autograd.functional.jacobian(
            lambda y, h=hard: s.gumbel_sinkhorn(y, 0.6, hard=h, noise=u), x
        )
        for hard in (True, False)
    )
    close(got, want)
    assert want.abs().max() > 0.1


def test_forbidden_entries_stay_empty():
    x = normal(5, 5, seed=11).masked_fill(torch.eye(5, dtype=torch.bool), -INF).requires_grad_()
    for hard in (False, True):
        p = s.gumbel_sinkhorn(x.expand(50, 5, 5), 0.5, hard=hard)
        assert bool((p.diagonal(dim1=-2, dim2=-1) == 0).all())
        close(p.sum(-2), torch.ones(50, 5, dtype=F64))
        (g,) = torch.autograd.grad((p * normal(5, 5, seed=12)).sum(), x)
        assert g.isfinite().all()
        assert bool((g.diagonal() == 0).all())


def test_scores_that_forbid_every_permutation_are_refused():
    x = torch.zeros(3, 3, 3, dtype=F64)
    x[1, 1:, 1:] = -INF  # two rows want the one column
    with pytest.raises(gt.DomainError, match="1 of 3 matrices"):
        s.gumbel_sinkhorn(x, hard=True)
    with pytest.raises(gt.DomainError, match="forbid"):
        torch.func.vmap(lambda y, u: s.gumbel_sinkhorn(y, hard=True, noise=u))(x, uniform(3, 3, 3))
    gt.set_validation(False)
    out = s.gumbel_sinkhorn(x, hard=True)
    assert out[1].isnan().all()
    assert out[::2].isfinite().all()
    gt.set_validation(None)
    empty = torch.zeros(3, 3, dtype=F64)
    empty[0] = -INF
    for y in (empty, empty.mT):
        with pytest.raises(gt.DomainError, match="have no distribution"):
            s.sinkhorn(y)


def test_low_temperatures_and_large_scores_make_no_nan_in_float32():
    x = (200 * normal(20, 6, 6, seed=13).sign()).float().requires_grad_()
    for hard in (False, True):
        p = s.gumbel_sinkhorn(x, 0.05, hard=hard)
        close(p.sum(-2), torch.ones(20, 6), 1e-5)
        (g,) = torch.autograd.grad((p * normal(6, 6, seed=14).float()).sum(), x)
        assert g.isfinite().all()


def test_vmap_asks_the_solver_once_for_all_rows(monkeypatch):
    asked, solver = [], solving._solver
    monkeypatch.setattr(solving, "_solver", lambda: asked.append(1) or solver())
    x, u = normal(6, 3, 3, seed=15), uniform(6, 3, 3, seed=15)
    s.gumbel_sinkhorn(x, hard=True, noise=u)
    once = len(asked)
    torch.func.vmap(lambda y, v: s.gumbel_sinkhorn(y, hard=True, noise=v))(x, u)
    assert len(asked) == 2 * once


@pytest.mark.slow
def test_a_graph_may_be_the_first_to_ask_for_a_hard_draw():
    code = """
import torch, gradthrough as gt
draw = lambda x, u: gt.structured.gumbel_sinkhorn(x, hard=True, noise=u)
x, u = torch.rand(2, 3, 3), torch.rand(2, 3, 3, dtype=torch.float64)
assert not hasattr(torch.ops.gradthrough, "assignment")
got = torch.compile(draw, fullgraph=True, backend="aot_eager")(x, u)
assert torch.equal(got, draw(x, u))
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(gt.__file__).parents[1])}
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, env=environment)
    assert out.returncode == 0, out.stderr.decode()


@pytest.mark.slow
def test_two_by_two_permutations_come_as_often_as_four_gumbels_say():
    """G11 + G22 - G12 - G21 is a sum of two logistic variables, of known distribution."""
    x, n = torch.tensor([[0.7, 0.0], [0.2, 0.4]], dtype=F64), 40_000
    p = s.gumbel_sinkhorn(x.expand(n, 2, 2), hard=True, generator=torch.Generator().manual_seed(1))
    d = 0.7 + 0.4 - 0.2
    e = torch.tensor(d, dtype=F64).exp()
    chance = float(e * (e - 1 - d) / (e - 1) ** 2)
    identity = int(p[:, 0, 0].sum())
    assert stats.chisquare([identity, n - identity], [n * chance, n * (1 - chance)]).pvalue > LEVEL


def test_without_scipy_the_hard_draw_is_refused_and_the_relaxed_one_works(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    x = normal(3, 3)
    assert s.gumbel_sinkhorn(x).isfinite().all()
    with pytest.raises(gt.BackendError, match="pip install scipy"):
        s.gumbel_sinkhorn(x, hard=True)


def test_what_is_no_square_matrix_or_option_is_refused():
    for shape in ((3,), (2, 3)):
        for f in (s.sinkhorn, s.gumbel_sinkhorn):
            with pytest.raises(gt.ShapeError, match="n, n"):
                f(torch.zeros(shape))
    x = normal(3, 3)
    for f in (s.sinkhorn, s.gumbel_sinkhorn):
        with pytest.raises(gt.DomainError, match="tau"):
            f(x, 0.0)
        with pytest.raises(gt.DomainError, match="iterations"):
            f(x, iterations=0)
    with pytest.raises(gt.UnsupportedError, match="hard"):
        s.gumbel_sinkhorn(x, hard=1)


@pytest.mark.parametrize("iterations", [1, 2, 3, 7, 20])
def test_the_backward_of_all_iterations_at_once_is_that_of_one_after_the_other(iterations):
    x = normal(2, 5, 5, seed=16).masked_fill(torch.eye(5, dtype=torch.bool), -INF)
    x.requires_grad_()
    got, want = scaling.scaled(x, iterations), scaling._unrolled(x, iterations)
    assert torch.equal(got, want)
    c = normal(2, 5, 5, seed=17)
    (g,) = torch.autograd.grad((got * c).sum(), x, retain_graph=True)
    close(g, torch.autograd.grad((want * c).sum(), x, retain_graph=True)[0], 1e-14)
    assert g.abs().max() > 1e-3
    second, expected = (
        torch.autograd.grad(
            torch.autograd.grad((p * c).sum(), x, create_graph=True)[0].square().sum(), x
        )[0]
        for p in (got, want)
    )
    close(second, expected, 1e-13)


def test_what_is_kept_for_the_backward_is_two_matrices_and_vectors():
    n, held = 50, {}

    def pack(t):
        held[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes() // 8
        return t

    x = normal(n, n, seed=18).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        s.sinkhorn(x, 0.5, 40)
    assert sum(held.values()) <= 2 * n * n + 80 * n


def test_every_row_of_a_jacobian_can_be_asked_for_at_once():
    x = normal(3, 3, seed=19)
    jacobian = torch.autograd.functional.jacobian
    for strategy in ("reverse-mode", "forward-mode"):
        got = jacobian(s.sinkhorn, x, vectorize=True, strategy=strategy)
        close(got, jacobian(s.sinkhorn, x))


def test_scores_that_are_no_matrix_are_told_what_a_matrix_is():
    with pytest.raises(gt.ShapeError, match=r"\(3,\)\. Give one row of n scores for each"):
        gt.structured.sinkhorn(torch.zeros(3))
    with pytest.raises(gt.ShapeError, match=r"\(3, 4\)\. Pad the shorter side"):
        gt.structured.sinkhorn(torch.zeros(3, 4))
