"""The audit: its statistics against known laws, and its findings against closed forms."""

import dataclasses
import importlib
import json
import math

import pytest
import torch
from scipy import stats

import gradthrough as gt
from gradthrough.auditing import support
from gradthrough.auditing.compare import compare
from gradthrough.auditing.cost import peak_bytes
from gradthrough.auditing.function_problem import FunctionProblem
from gradthrough.auditing.intervals import (
    Spread,
    holm,
    of_mean,
    of_norm,
    student,
    trace_of_square,
    zero_mean,
)
from gradthrough.auditing.measure import moments_of
from gradthrough.auditing.moments import Moments, Target, group_count
from gradthrough.auditing.recommend import AVERAGING, choose
from gradthrough.auditing.rows import AuditRow, Reference
from problems import F64, exact, normal, problem, refuses
from problems import mean as exact_mean

CLASSES, BITS = problem(variables=3, classes=3), problem("bernoulli", variables=3)
UNTIMED = ("seconds", "seconds_forward", "seconds_backward", "peak_bytes")


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def randn(*shape, seed=0):
    return torch.randn(shape, generator=seeded(seed), dtype=F64)


def law(p, rows=1):
    """A batch of rows near the logits of a problem."""
    return p.dist(p.logits + 0.3 * normal(rows, *p.logits.shape, seed=7))


def near(low, high, truth, times=2.0):
    """Whether an interval, made some times wider, covers: 4 standard errors for twice."""
    middle, half = (low + high) / 2, (high - low) / 2
    return abs(truth - middle) <= times * half + 1e-12


def numbers(report):
    """Everything in a report but what a clock and a memory said."""
    out = report.to_dict()
    rows = [{k: v for k, v in row.items() if k not in UNTIMED} for row in out.pop("rows")]
    return {k: v for k, v in out.items() if k not in UNTIMED} | {"rows": rows}


# --- the norm of a mean


@pytest.mark.parametrize("v", [1e-6, 1.0, 300.0])
@pytest.mark.parametrize("b", [0.0, 0.3, 2.0, 40.0])
def test_in_one_dimension_the_square_is_noncentral_chi_squared(v, b):
    spread, law = Spread(v, v**2, v), stats.ncx2(1, b**2) if b else stats.chi2(1)
    for level in (1e-4, 0.025, 0.5, 0.975, 0.9999):
        t = law.ppf(level)
        assert spread.below(v * t, b * v**0.5) == pytest.approx(level, abs=1e-9)


@pytest.mark.parametrize("d", [2, 3, 10, 1000])
@pytest.mark.parametrize("b", [0.0, 1.0, 3.0, 30.0])
def test_of_equal_variances_the_square_is_noncentral_chi_squared(d, b):
    v = 0.7
    spread, law = Spread(d * v, d * v**2, v), stats.ncx2(d, b**2) if b else stats.chi2(d)
    for level in (0.001, 0.025, 0.5, 0.975, 0.999):
        t = law.ppf(level)
        assert spread.below(v * t, b * v**0.5) == pytest.approx(level, abs=2e-3)


@pytest.mark.parametrize("axis", [0, 2, 7])
@pytest.mark.parametrize("b", [0.0, 0.5, 2.0, 8.0])
def test_of_unequal_variances_it_is_close_to_what_sampling_finds(axis, b):
    variances = 0.5 ** torch.arange(8, dtype=F64)
    x = randn(200_000, 8, seed=1) * variances.sqrt()
    x[:, axis] += b
    squares = x.square().sum(-1)
    total, square = float(variances.sum()), float(variances.square().sum())
    spread = Spread(total, square, float(variances[axis]))
    # The lower tail counts where the bias stands out of the noise: see of_norm.
    for level in (0.5, 0.9, 0.95, 0.975) + ((0.025,) if b >= 2 else ()):
        assert spread.below(float(squares.quantile(level)), b) == pytest.approx(level, abs=0.015)


def test_no_covariance_lies_outside_the_bounds_that_a_spread_keeps():
    odd = Spread(1.0, 5.0, 3.0)
    assert (odd.trace, odd.square, odd.along) == (1.0, 1.0, 1.0)
    assert Spread(2.0, 1.0, -1.0).along > 0
    assert Spread(1.0, 0.5, 0.6).below(-1.0, 0.0) == 0.0


def test_the_interval_of_a_norm_covers_every_bias_in_95_percent():
    # x ~ N(b, 1): both ends grow with |x|, so b is covered on an interval of |x|.
    x = torch.linspace(0, 12, 2401, dtype=F64)
    ends = [of_norm(float(t) ** 2, Spread(1.0, 1.0, 1.0)) for t in x]
    low, high = torch.tensor(ends, dtype=F64).T
    assert bool((low.diff() >= 0).all() and (high.diff() >= 0).all())
    for b in torch.linspace(0, 6, 61, dtype=F64).tolist():
        first, last = float(x[high >= b - 1e-9][0]), float(x[low <= b + 1e-9][-1])
        inner, outer = (stats.norm.cdf(t - b) - stats.norm.cdf(-t - b) for t in (first, last))
        assert 0.945 <= outer - inner <= 0.955, b


@pytest.mark.parametrize("d", [1, 2, 50])
def test_the_interval_of_a_norm_is_never_empty_and_holds_the_corrected_norm(d):
    for square in (0.0, 0.1, 1.0, d, d + 10.0, 1e6):
        low, high = of_norm(square, Spread(d, d, 1.0))
        assert 0.0 <= low <= high < math.inf
        assert low <= math.sqrt(max(square - d, 0.0)) <= high
    assert of_norm(9.0, Spread(0.0, 0.0, 0.0)) == (3.0, 3.0)


@pytest.mark.parametrize("b", [0.0, 0.003, 0.03, 1.0])
@pytest.mark.parametrize("d", [2, 7])
def test_noise_along_one_line_of_a_space_is_noise_in_one_dimension(d, b):
    # As of two classes, whose logits get a gradient of (x, -x).
    line = torch.nn.functional.normalize(normal(d, seed=5), dim=0)

    def interval(seed, direction):
        x = b + randn(1000, 1, seed=seed)
        target = torch.zeros(len(direction), dtype=F64)
        moments = Moments(target, target, 100)
        moments.add(x * direction)
        found = compare(moments, Target(target), 0.0)
        return found["bias_low"], found["bias_high"]

    for seed in range(20):
        one = pytest.approx(interval(seed, torch.ones(1)), abs=0.006)  # a standard error is 0.03
        assert interval(seed, line) == one


# --- means, skewed and not


def test_the_quantile_of_student_is_that_of_scipy():
    for n in (3, 5, 9, 19, 49, 99, 999):
        assert student(n) == pytest.approx(stats.t.ppf(0.975, n), rel=0.03 / n)
    assert student(math.inf) == pytest.approx(stats.norm.ppf(0.975), abs=1e-12)


@pytest.mark.parametrize("n", [20, 200])
def test_the_interval_of_a_symmetric_mean_is_that_of_student(n):
    half = randn(n // 2)
    x = 3.0 + torch.cat((half, -half))
    mean, low, high = of_mean(x)
    reach = stats.t.ppf(0.975, n - 1) * float(x.std()) / n**0.5
    assert (mean, low, high) == pytest.approx((3.0, 3.0 - reach, 3.0 + reach), rel=1e-4)


def test_the_interval_of_a_skewed_mean_covers_more_often_than_that_of_student():
    x = randn(4000, 50, seed=2).square()
    reach = stats.t.ppf(0.975, 49) * x.std(-1) / 50**0.5
    plain = ((x.mean(-1) - 1).abs() <= reach).double().mean()
    ours = sum(low <= 1.0 <= high for _, low, high in map(of_mean, x)) / len(x)
    assert plain < 0.925 < 0.93 < ours < 0.96, (plain, ours)


def test_the_interval_of_a_skewed_mean_is_longer_on_the_side_of_the_tail():
    mean, low, high = of_mean(randn(50, seed=3).square())
    assert high - mean > mean - low > 0
    mirrored = of_mean(-randn(50, seed=3).square())
    assert mirrored == pytest.approx((-mean, -high, -low))


def test_of_equal_numbers_nothing_is_uncertain_and_of_one_everything():
    assert of_mean(torch.full((5,), 2.0, dtype=F64)) == (2.0, 2.0, 2.0)
    assert of_mean(torch.ones(1, dtype=F64)) == (1.0, -math.inf, math.inf)


# --- tests


@pytest.mark.parametrize("d", [1, 5, 50, 500])
def test_p_values_are_uniform_where_the_mean_is_zero(d):
    vectors = randn(1000, 100, d, seed=d)
    p = torch.tensor([zero_mean(v @ v.T) for v in vectors])
    for level in (0.01, 0.1, 0.5):
        spread = (level * (1 - level) / len(p)) ** 0.5
        # In one dimension the gamma law is a little heavier than that of a sum of M terms.
        assert float((p <= level).double().mean()) == pytest.approx(level, abs=4 * spread + 0.005)


@pytest.mark.parametrize("d", [1, 2, 10])
def test_small_p_values_are_those_of_the_exact_test_of_normal_vectors(d):
    vectors = randn(100, d, seed=20 + d)
    vectors = vectors - vectors.mean(0)
    covariance = vectors.T @ vectors / 99
    vectors = vectors @ torch.linalg.inv(torch.linalg.cholesky(covariance).T)  # now exactly I
    for p in (1e-2, 1e-4, 1e-6):
        # of equal variances, 100 |mean|^2 / d over the pooled variance is F(d, 99 d)
        shift = (d * stats.f.isf(p, d, 99 * d) / 100) ** 0.5
        moved = vectors + shift * torch.eye(d, dtype=F64)[0]
        found = zero_mean(moved @ moved.T)
        assert abs(math.log10(found / p)) < 0.2 - 0.1 * math.log10(p), (p, found)


def test_equal_vectors_have_a_mean_and_zeros_have_none():
    ones = torch.ones(100, 3, dtype=F64)
    assert zero_mean(ones @ ones.T) < 1e-15
    assert zero_mean(torch.zeros(100, 100, dtype=F64)) == 1.0
    assert zero_mean(torch.ones(20, 20, dtype=F64)) < 1e-3 / 29


def test_p_values_do_not_depend_on_the_unit_or_the_axes():
    v = randn(100, 4) + 0.2
    turn = torch.linalg.qr(randn(4, 4, seed=9)).Q
    other = 1e-5 * (v @ turn)
    assert zero_mean(other @ other.T) == pytest.approx(zero_mean(v @ v.T), rel=1e-9)


def test_holm_steps_down_as_worked_by_hand():
    # 0.005 <= 0.05 / 4, 0.01 <= 0.05 / 3, 0.03 > 0.05 / 2: there it stops.
    assert holm([0.01, 0.04, 0.03, 0.005], 0.05) == [True, False, False, True]
    assert holm([0.04, 0.02, 0.01], 0.05) == [True, True, True]
    assert holm([2e-3, 1e-4]) == [False, True]
    assert holm([]) == []


def test_the_trace_of_a_squared_covariance_has_no_bias():
    spread = torch.diag(torch.tensor([2.0, 1.0, 0.5], dtype=F64))
    x = randn(20_000, 6, 3, seed=4) @ spread
    x = x - x.mean(1, keepdim=True)
    found = torch.tensor([trace_of_square(v @ v.T) for v in x], dtype=F64)
    # at 0 it is cut off, which is rare here
    assert float(found.mean()) == pytest.approx(16 + 1 + 1 / 16, abs=4 * float(found.std()) / 140)


# --- moments that stream


@pytest.mark.parametrize("chunk", [1, 4, 7, 29])
def test_moments_in_chunks_are_those_of_all_gradients_at_once(chunk):
    g, reference, centre = randn(29, 4) + 5, randn(4, seed=1), randn(4, seed=2) + 5
    moments = Moments(centre, reference, 6)
    for part in g.split(chunk):
        moments.add(part.clone())
    assert moments.count == 29
    close = torch.testing.assert_close
    close(moments.mean, g.mean(0))
    close(moments.groups, torch.stack([g[i::6].mean(0) for i in range(6)]))
    close(moments.errors, (g - reference).square().sum(-1))
    close(moments.cosines, torch.cosine_similarity(g, reference.unsqueeze(0)))
    away = (g - centre).square().sum(-1) - (g.mean(0) - centre).square().sum()
    close(moments.squares, away * 29 / 28)
    close(moments.squares.mean(), torch.cov(g.T).trace())


def test_moments_keep_their_digits_far_from_zero():
    g = 1e6 + 1e-3 * randn(200, 3)
    moments = Moments(g[:10].mean(0), torch.zeros(3, dtype=F64), 20)
    moments.add(g.clone())
    assert float(moments.squares.mean()) == pytest.approx(float(g.var(0).sum()), rel=1e-6)


def test_what_is_kept_does_not_grow_with_replicates_times_parameters():
    def kept(replicates, d=1000):
        moments = moments_of(
            lambda n, generator: torch.ones(n, d),
            replicates=replicates,
            chunk=50,
            generator=seeded(),
            groups=group_count(replicates, d),
            reference=torch.ones(d, dtype=F64),
        )
        found = list(vars(moments).values())
        tensors = [x for y in found for x in (y if isinstance(y, list) else [y])]
        return sum(x.numel() if isinstance(x, torch.Tensor) else 1 for x in tensors)

    assert kept(1000) - kept(200) == 3 * 800
    assert group_count(1000, 10**6) * 10**6 * 8 <= 2**28
    assert group_count(30, 10) == 30


def test_the_pilot_gives_the_centre_and_nothing_else():
    drawn = iter(range(10**6))
    moments = moments_of(
        lambda n, generator: torch.tensor([[float(next(drawn))] for _ in range(n)]),
        replicates=320,
        chunk=9,
        generator=seeded(),
        groups=100,
    )
    assert moments.centre.tolist() == [sum(range(20)) / 20]
    assert moments.mean.tolist() == [sum(range(20, 340)) / 320]
    assert moments.count == 320


@pytest.mark.parametrize("late", [3, 200])
def test_an_estimate_that_is_not_finite_is_found_early_and_late(late):
    drawn = iter(range(10**6))
    with refuses(gt.UnsupportedError, "of the first", "NaN or inf"):
        moments_of(
            lambda n, generator: torch.tensor(
                [[0.0, math.inf if next(drawn) == late else 1.0] for _ in range(n)]
            ),
            replicates=320,
            chunk=9,
            generator=seeded(),
            groups=100,
        )


# --- the exact gradient


def enumerated(f, q):
    """The gradient of the batch mean by Enumerate, flattened."""
    leaf = q.logits.detach().clone().requires_grad_()
    gt.expect(f, q.with_logits(leaf), gt.Enumerate()).mean().backward()
    return leaf.grad.flatten()


@pytest.mark.parametrize("part", [2**16, 50, 7, 1])
@pytest.mark.parametrize("p", [CLASSES, BITS], ids=["categorical", "bernoulli"])
def test_the_exact_gradient_is_that_of_enumerate_however_it_is_cut(p, part, monkeypatch):
    monkeypatch.setattr(support, "_PART", part)
    q = law(p, rows=4)
    for f in (p.cubic, p.lookup):
        torch.testing.assert_close(support.exact_gradient(f, q), enumerated(f, q))


def test_the_exact_gradient_of_masked_classes_is_zero_and_f_is_not_asked_there(monkeypatch):
    monkeypatch.setattr(support, "_PART", 4)
    logits = normal(3, 2, 4, seed=8)
    logits[0, 0, 1] = logits[1, 1, 3] = logits[1, 1, 0] = -torch.inf
    q = gt.Categorical(logits, event_dims=1)

    def f(z):
        allowed = (z * logits.isneginf()).sum((-1, -2)) == 0
        return torch.where(allowed, (z * normal(4, seed=9)).sum((-1, -2)) ** 3, torch.nan)

    found = support.exact_gradient(f, q)
    torch.testing.assert_close(found, enumerated(f, q))
    assert bool((found[logits.isneginf().flatten()] == 0).all())


@pytest.mark.parametrize("shape", [(3,), (5, 3), (2, 3, 4)])
def test_the_exact_gradient_serves_every_batch(shape):
    q = gt.Categorical(normal(*shape, seed=10))
    w = normal(shape[-1], seed=11)
    torch.testing.assert_close(
        support.exact_gradient(lambda z: (z @ w).sin(), q), enumerated(lambda z: (z @ w).sin(), q)
    )


def test_the_exact_gradient_does_not_see_a_large_constant():
    w = torch.tensor([0.0, 0.25, 1.5, -0.75])  # of which 1e6 leaves every digit in float32
    q = gt.Categorical(normal(6, 2, 4, seed=12, dtype=torch.float32), event_dims=1)
    plain = support.exact_gradient(lambda z: (z @ w).sum(-1), q)
    lifted = support.exact_gradient(lambda z: (z @ w).sum(-1) + 1e6, q)
    torch.testing.assert_close(lifted, plain, rtol=0.0, atol=1e-6 * float(plain.norm()))


# --- an audit finds what is known


@pytest.mark.parametrize("p", [CLASSES, BITS], ids=["categorical", "bernoulli"])
@pytest.mark.parametrize("f", ["affine", "quadratic", "cubic"])
def test_the_bias_is_the_one_that_all_draws_have_together(p, f):
    function, names = getattr(p, f), ["st", "reinmax", "reinforce"]
    q = p.dist(p.logits.unsqueeze(0))
    report = gt.audit(function, q, names, generator=seeded(1), replicates=2000)
    truth = exact(p, function)[1]
    assert report.reference.kind == "exact"
    assert report.reference.norm == pytest.approx(float(truth.norm()))
    for name in names:
        row, gradient = report.row(name), exact_mean(name, p, function).gradient
        bias = float((gradient - truth).norm())
        assert near(row.bias_low, row.bias_high, bias), (name, bias, row)
        assert row.biased == (bias > 1e-6), (name, bias, row.p_value)
        if bias > 0.1:
            cosine = float(torch.cosine_similarity(gradient.flatten(), truth.flatten(), 0))
            assert row.cosine == pytest.approx(cosine, abs=0.05)


def test_error_is_variance_and_squared_bias_and_relative_to_the_reference():
    report = gt.audit(CLASSES.cubic, law(CLASSES, 4), ["st", "rloo"], generator=seeded())
    norm = report.reference.norm
    for row in report.rows:
        assert row.mse == pytest.approx(row.variance + row.bias**2, rel=1e-6)
        assert row.bias_low <= row.bias <= row.bias_high
        assert row.variance_low < row.variance < row.variance_high
        assert row.mse_low < row.mse < row.mse_high
        assert -1 <= row.cosine_single <= 1
        assert row.relative_bias == pytest.approx(row.bias / norm)
        assert row.relative_variance == pytest.approx(row.variance / norm**2)
        assert row.relative_mse == pytest.approx(row.mse / norm**2)
        assert row.seconds_forward > 0
        assert row.seconds_backward > 0
        assert row.peak_bytes > 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("offset", [0.0, 500.0])
@pytest.mark.parametrize("slope", [0.0, 1.0])
def test_estimators_without_variance_are_exact_and_rounding_is_no_bias(dtype, offset, slope):
    w = slope * torch.arange(5, dtype=dtype)
    q = gt.Categorical(normal(6, 5, seed=13, dtype=dtype))
    report = gt.audit(
        lambda z: (z @ w) ** 2 + offset,
        q,
        ["enumerate", "leg", "rloo"],
        evaluations=5,
        replicates=60,
        generator=seeded(),
    )
    scale = 1e-3 if dtype == torch.float32 and offset else 1e-4
    for row in report.rows:
        assert not row.biased
    for row in report.rows[:2]:
        assert row.bias_low == 0.0
        assert row.bias_high <= scale
        assert row.variance <= 1e-12
        assert row.samples == 1


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_where_the_gradient_is_zero_rounding_is_no_bias(dtype):
    q = gt.Categorical(torch.zeros(4, 7, dtype=dtype))
    report = gt.audit(
        lambda z: (z - 0.3).square().sum(-1),
        q,
        ["enumerate", "leg", "rloo"],
        evaluations=8,
        generator=seeded(),
    )
    assert [row.biased for row in report.rows] == [False] * 3


@pytest.mark.parametrize(
    ("dtype", "rows"), [(torch.bfloat16, 255), (torch.float16, 255), (torch.float16, 10_000)]
)
def test_in_half_precision_rounding_is_no_bias(dtype, rows):
    w = normal(7, seed=14).to(dtype)
    q = gt.Categorical(normal(rows, 7, seed=15).to(dtype))
    report = gt.audit(
        lambda z: (z * w).sum(-1) ** 2,
        q,
        ["enumerate", "leg", "rloo"],
        evaluations=7,
        replicates=100 if rows < 1000 else 20,
        generator=seeded(),
    )
    assert [(row.skipped, row.biased) for row in report.rows] == [(None, False)] * 3


# --- who takes part


def test_who_cannot_serve_gets_a_sentence_and_the_others_are_measured():
    def root(z):  # finite with its gradient at the corners alone
        return (z.amax(-1) - 0.9999).sqrt().sum(-1)

    q = law(CLASSES)
    for f, name, words in (
        (CLASSES.cubic, "arm", "serves bernoulli"),
        (CLASSES.cubic, "enumerate", "27 evaluations"),
        (CLASSES.cubic, "leg", "7 evaluations"),
        (CLASSES.lookup, "st", "differentiabl"),
        (CLASSES.lookup, "gumbel_softmax", "differentiabl"),
        (root, "gumbel_softmax", "finite"),
    ):
        report = gt.audit(f, q, [name, "rloo"], replicates=20, generator=seeded())
        skipped, measured = report.rows
        assert words in skipped.skipped, skipped
        assert skipped.skipped.endswith((".", "()."))
        assert skipped.evaluations == skipped.replicates == 0
        assert math.isnan(skipped.bias)
        assert not skipped.biased
        assert measured.skipped is None
        assert measured.replicates == 20


@pytest.mark.parametrize("evaluations", [1, 2, 5, 8])
def test_all_spend_as_many_evaluations_as_fit(evaluations, monkeypatch):
    module = importlib.import_module("gradthrough.auditing.engine")  # without the stopwatch
    monkeypatch.setattr(module, "halves", lambda steps: dict.fromkeys(steps, (0.0, 0.0)))
    for q in (law(CLASSES, 2), law(BITS, 2)):
        points = []

        def f(z, p=CLASSES if q.family == "categorical" else BITS, points=points):
            points.append(z.shape[0])
            return p.cubic(z)

        problem = FunctionProblem(f, q)
        report = gt.audit(f, q, evaluations=evaluations, replicates=20, generator=seeded())
        for row in (row for row in report.rows if row.skipped is None):
            one = gt.estimator(row.estimator)
            assert 1 <= row.evaluations <= evaluations
            if one.traits.noise != "none":
                assert one.evaluations(q, row.samples + 1) > evaluations
            points.clear()
            problem.gradients(one, row.samples, 3, seeded())
            assert sum(points) == 3 * row.evaluations, row.estimator
        assert any(row.skipped is None for row in report.rows)


def test_an_estimator_whose_draws_come_in_pairs_takes_an_even_number():
    pairs = {"pairs": gt.Reinforce(antithetic=True)}
    (row,) = gt.audit(
        CLASSES.cubic, law(CLASSES), pairs, evaluations=5, replicates=20, generator=seeded()
    ).rows
    assert (row.skipped, row.samples) == (None, 4)


def test_an_estimator_made_for_the_rows_is_measured_on_them():
    q = law(CLASSES, 4)
    made = {
        "baseline": gt.Reinforce(baseline=torch.arange(4, dtype=F64)),
        "proposal": gt.Reinforce(proposal=q.with_logits(0.5 * q.logits)),
        "control": gt.Relax(lambda z: z.flatten(2).sum(-1)),
    }
    report = gt.audit(CLASSES.cubic, q, made, evaluations=6, replicates=20, generator=seeded())
    assert [(row.estimator, row.skipped) for row in report.rows] == [(k, None) for k in made]


# --- what an audit leaves as it was, and repeats


@pytest.mark.parametrize("kind", ["exact", "local expectation", "score function"])
def test_a_seed_gives_one_report_and_the_global_state_stays(kind):
    def once(seed):
        state = torch.get_rng_state()
        report = gt.audit(
            CLASSES.cubic,
            law(CLASSES, 2),
            ["st", "stgs", "rloo", "arm"],
            replicates=60,
            reference=kind,
            generator=seeded(seed),
        )
        assert torch.equal(torch.get_rng_state(), state)
        return numbers(report)

    assert once(3) == once(3)
    assert once(3)["rows"] != once(4)["rows"]


def test_without_a_generator_the_global_seed_counts():
    def once():
        torch.manual_seed(5)
        return numbers(gt.audit(CLASSES.cubic, law(CLASSES), ["rloo"], replicates=20))

    assert once() == once()


def test_neither_the_logits_nor_what_f_uses_get_a_gradient():
    q, w = law(CLASSES, 2), normal(9, seed=16).requires_grad_()
    q.logits.requires_grad_()
    with torch.no_grad():
        report = gt.audit(
            lambda z: (z.flatten(2) @ w) ** 2,
            q,
            ["st", "rloo", "enumerate"],
            replicates=20,
            evaluations=27,
            generator=seeded(),
        )
    assert all(row.skipped is None for row in report.rows)
    assert w.grad is None
    assert q.logits.grad is None


@pytest.mark.parametrize("name", ["st", "rloo", "leg"])
def test_estimates_made_together_are_those_made_one_by_one(name):
    x = normal(5, 3, seed=17)
    q = gt.Categorical(normal(5, 2, 3, seed=18), event_dims=1)
    folded = gt.fold(lambda z, row: ((z - row.unsqueeze(-2)) ** 3).sum((-1, -2)), x)
    problem, one = FunctionProblem(folded, q), gt.estimator(name)
    together = problem.gradients(one, 2, 4000, seeded())
    generator = seeded(1)
    apart = torch.cat([problem.gradients(one, 2, 1, generator) for _ in range(400)])
    assert together.shape == (4000, 30)
    assert len(together.unique(dim=0)) > 100  # each with draws of its own
    for a, b in ((together, apart), (together.square(), apart.square())):
        spread = (a.var(0) / len(a) + b.var(0) / len(b)).sqrt() + 1e-9
        assert bool(((a.mean(0) - b.mean(0)).abs() < 5 * spread).all())


@pytest.mark.parametrize("chunk", [1, 7, None])
def test_how_many_are_made_at_once_does_not_change_the_law(chunk):
    p = CLASSES
    report = gt.audit(
        p.cubic,
        p.dist(p.logits.unsqueeze(0)),
        ["st"],
        replicates=400,
        generator=seeded(),
        chunk=chunk,
    )
    (row,) = report.rows
    assert row.replicates == 400
    bias = float((exact_mean("st", p, p.cubic).gradient - exact(p, p.cubic)[1]).norm())
    assert near(row.bias_low, row.bias_high, bias)


# --- references


@pytest.mark.parametrize("kind", ["local expectation", "score function"])
def test_the_error_of_a_drawn_reference_is_part_of_every_interval(kind):
    p, covered = CLASSES, 0
    q = p.dist(p.logits.unsqueeze(0))
    truth = exact(p, p.cubic)[1]
    bias = float((exact_mean("st", p, p.cubic).gradient - truth).norm())
    for seed in range(20):
        report = gt.audit(
            p.cubic,
            q,
            ["enumerate", "st"],
            evaluations=27,
            replicates=20,
            reference=kind,
            generator=seeded(seed),
        )
        exactly, st = report.rows
        assert report.reference.kind == kind
        assert report.reference.standard_error > 0
        # Without variance of its own, what separates it from the reference is the reference's.
        covered += exactly.bias_low == 0.0
        assert not exactly.biased
        assert exactly.bias_high > report.reference.standard_error / 2
        assert near(st.bias_low, st.bias_high, bias, times=2.5)
    assert covered >= 16  # of 20, at 95 %


def test_a_drawn_reference_comes_close_to_the_exact_one():
    q = law(CLASSES, 3)
    truth = support.exact_gradient(CLASSES.cubic, q).norm()
    for kind in ("local expectation", "score function"):
        found = gt.audit(CLASSES.cubic, q, ["st"], reference=kind, generator=seeded()).reference
        assert found.norm == pytest.approx(float(truth), abs=4 * found.standard_error)
        assert found.evaluations >= 4 * 4 * 1000 * 0.9
        assert f"{100 * found.standard_error / found.norm:.2g} %" in found.words


@pytest.mark.parametrize("evaluations", [1, 4, 30])
@pytest.mark.parametrize("replicates", [20, 60, 300])
def test_a_reference_of_more_or_fewer_draws_than_the_audit_serves(evaluations, replicates):
    for kind in ("local expectation", "score function"):
        report = gt.audit(
            CLASSES.quadratic,
            law(CLASSES),
            ["reinforce"],
            evaluations=evaluations,
            replicates=replicates,
            reference=kind,
            generator=seeded(),
        )
        assert report.rows[0].replicates == replicates
        assert not report.rows[0].biased


def test_a_given_reference_is_taken_at_its_word():
    q = law(CLASSES, 2)
    truth = support.exact_gradient(CLASSES.cubic, q)
    shift = 0.5 * normal(*truth.shape, seed=19)
    for given, distance in ((truth, 0.0), (truth + shift, float(shift.norm()))):
        report = gt.audit(
            CLASSES.cubic,
            q,
            ["enumerate"],
            evaluations=27,
            replicates=20,
            reference=given.reshape(q.logits.shape),
            generator=seeded(),
        )
        assert report.reference.kind == "given"
        assert report.rows[0].bias == pytest.approx(distance, abs=1e-9)
        assert report.rows[0].biased == (distance > 0)


def test_out_of_reach_of_a_sum_the_reference_is_drawn_and_says_so():
    q = gt.Categorical(normal(1, 20, 10, seed=20), event_dims=1)
    w = normal(10, seed=21)
    report = gt.audit(lambda z: (z @ w).sum(-1) ** 2, q, ["rloo"], generator=seeded())
    assert report.reference.kind == "local expectation"  # 181 evaluations each: 88 fit
    assert not report.rows[0].biased
    assert report.rows[0].bias_low == 0.0
    with refuses(gt.UnsupportedError, "out of reach", "reference='auto'"):
        gt.audit(lambda z: (z @ w).sum(-1), q, ["rloo"], reference="exact")


# --- errors of use


def test_what_cannot_be_audited_is_refused_with_a_remedy():
    q, f = law(CLASSES), CLASSES.cubic
    for kind, words, arguments, options in (
        (gt.ConfigError, ["reinmx", "Did you mean", "'reinmax'"], (f, q, ["reinmx"]), {}),
        (gt.ConfigError, ["list", r"\['st'\]"], (f, q, "st"), {}),
        (gt.ConfigError, ["list"], (f, q, gt.RLOO()), {}),
        (gt.ConfigError, ["different", "st, st"], (f, q, ["st", gt.StraightThrough()]), {}),
        (gt.ConfigError, ["at least one"], (f, q, []), {}),
        (gt.ConfigError, ["an estimator was expected", "built"], (f, q, [gt.RLOO]), {}),
        (gt.DomainError, ["replicates", "20"], (f, q, ["st"]), {"replicates": 19}),
        (gt.DomainError, ["evaluations"], (f, q, ["st"]), {"evaluations": 0}),
        (gt.DomainError, ["chunk"], (f, q, ["st"]), {"chunk": 0}),
        (gt.ConfigError, ["exakt", "'exact'"], (f, q, ["st"]), {"reference": "exakt"}),
        (gt.ShapeError, ["(10,)", "(1, 3, 3)"], (f, q, ["st"]), {"reference": torch.zeros(10)}),
        (gt.DomainError, ["NaN"], (f, q, ["st"]), {"reference": torch.full((9,), math.nan)}),
        (gt.DomainError, ["corners"], (lambda z: z.flatten(2)[..., 0].log(), q, ["rloo"]), {}),
        (gt.ShapeError, ["fold"], (lambda z: z.sum(), q, ["st"]), {}),
        (gt.UnsupportedError, ["callable"], (3, q, ["st"]), {}),
        (gt.UnsupportedError, ["row"], (f, gt.Categorical(torch.zeros(0, 3)), ["st"]), {}),
    ):
        with refuses(kind, *words):
            gt.audit(*arguments, generator=seeded(), **options)


# --- which one to take


def row(name, bias, variance, *, wide=0.01, **options):
    """A row with intervals of so many parts of its numbers."""
    return AuditRow(
        name,
        bias=bias,
        bias_low=(1 - wide) * bias,
        bias_high=(1 + wide) * bias,
        variance=variance,
        variance_low=(1 - wide) * variance,
        variance_high=(1 + wide) * variance,
        **options,
    )


FAR = Reference("exact", 10.0, 0.0, 27, "exact.")
# Errors 100 / k, 1 + 50 / k and 9 + 10 / k: they cross at k = 50, 5 and 10.
THREE = [row("a", 0.0, 100.0), row("b", 1.0, 50.0), row("c", 3.0, 10.0)]


@pytest.mark.parametrize(
    ("k", "choice", "runner_up", "error", "fewer", "more"),
    [
        (100.0, "a", "b", 0.01, (50.0, "b"), None),
        (20.0, "b", "a", 0.035, (5.0, "c"), (50.0, "a")),
        (6.0, "b", "c", (1 + 50 / 6) / 100, (5.0, "c"), (50.0, "a")),
        (1, "c", "b", 0.19, None, (5.0, "b")),
    ],
)
def test_the_smallest_error_after_averaging_is_taken(k, choice, runner_up, error, fewer, more):
    found = choose(THREE, FAR, averaging=k)
    assert (found.choice, found.runner_up, found.averaging) == (choice, runner_up, k)
    assert found.error == pytest.approx(error)
    assert found.fewer == pytest.approx(fewer)
    assert found.more == pytest.approx(more)
    assert not found.ties
    text = str(found)
    assert f"Take {choice}" in text
    assert f"{100 * math.sqrt(error):.2g} %" in text
    assert ("fewer than" in text) == (fewer is not None)
    assert ("Over more than" in text) == (more is not None)
    for crossing in (fewer, more):
        assert crossing is None or f"than {crossing[0]:.2g}" in text


def test_how_many_are_averaged_by_default_is_said():
    found = choose(THREE, FAR)
    assert found == choose(THREE, FAR, averaging=AVERAGING)
    assert found.averaging == AVERAGING
    assert f"over {AVERAGING:,.0f} estimates" in found.text


def test_a_bias_that_is_promised_away_and_not_found_does_not_count():
    promised = row("p", 1.0, 50.0, unbiased=True, exact_for="all")
    assert choose([promised, THREE[1]], FAR, averaging=100.0).error == pytest.approx(0.005)
    broken = dataclasses.replace(promised, biased=True)
    assert choose([broken], FAR, averaging=100.0).error == pytest.approx(0.015)


def test_ties_go_to_what_promises_more_and_the_others_are_named():
    tied = [
        row("less", 0.9, 50.0, wide=0.2, exact_for="affine"),
        row("more", 1.0, 50.0, wide=0.2, exact_for="quadratic"),
        row("far", 9.0, 50.0, exact_for="all", biased=True),
    ]
    found = choose(tied, FAR, averaging=100.0)
    assert (found.choice, found.ties, found.runner_up) == ("more", ("less",), "less")
    assert "cannot tell it from less" in found.text


def test_a_tie_that_is_taken_for_its_promise_says_where_the_other_is_better():
    # 0 + 105 / k against 0.2 + 80 / k: the second is better below k = 125, and so at 100.
    kept = row("kept", 0.0, 105.0, wide=0.1, unbiased=True, exact_for="all")
    other = row("other", math.sqrt(0.2), 80.0, wide=0.1, exact_for="affine")
    found = choose([kept, other], FAR, averaging=100.0)
    assert (found.choice, found.ties) == ("kept", ("other",))
    assert found.fewer == pytest.approx((125.0, "other"))
    assert found.more is None


def test_what_was_skipped_is_not_recommended():
    skipped = AuditRow("none", skipped="It cannot serve here.")
    assert choose([skipped, *THREE], FAR, averaging=100.0).choice == "a"
    with refuses(gt.ConfigError, "no estimator was measured", "skipped"):
        choose([skipped], FAR)


@pytest.mark.parametrize("k", [0, -1.0, math.inf, math.nan, "100"])
def test_averaging_is_a_positive_number(k):
    with refuses(gt.DomainError, "averaging", "> 0"):
        choose(THREE, FAR, averaging=k)


def test_an_audit_of_a_strong_bias_recommends_what_has_none():
    report = gt.audit(CLASSES.cubic, law(CLASSES), ["st", "rloo"], generator=seeded())
    found = report.recommend(averaging=1e6)
    assert (found.choice, found.runner_up) == ("rloo", "st")
    assert found.fewer[1] == "st"
    assert report.recommend(averaging=found.fewer[0] / 10).choice == "st"


# --- the report


@pytest.fixture(scope="module")
def report():
    names = ["st", "rloo", "arm", "enumerate"]
    return gt.audit(CLASSES.cubic, law(CLASSES, 2), names, replicates=40, generator=seeded())


def test_a_report_goes_through_json_and_holds_no_nan(report):
    text = report.to_json()
    assert "NaN" not in text
    back = json.loads(text, parse_constant=pytest.fail)
    assert back == report.to_dict()
    assert [x["estimator"] for x in back["rows"]] == ["st", "rloo", "arm", "enumerate"]
    assert back["rows"][2]["bias"] is None
    assert back["rows"][0]["bias"] == report.rows[0].bias
    assert back["reference"]["kind"] == "exact"
    assert (back["dimensions"], back["batch"], back["replicates"]) == (18, 2, 40)


def test_the_markdown_table_has_as_many_columns_in_every_line(report):
    text = report.to_markdown()
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert len(table) == 2 + 2
    assert len({line.count("|") for line in table}) == 1
    assert "`arm`" in text
    assert "serves bernoulli" in text


def test_the_printed_table_is_aligned_and_says_what_was_left_out(report):
    lines = str(report).splitlines()
    (head,) = [i for i, line in enumerate(lines) if line.startswith("estimator")]
    end = lines[head].index("evaluations") + len("evaluations")
    for line in lines[head + 1 : head + 3]:
        assert line[end - 1].isdigit()
        assert line[end : end + 1] == " "
    assert lines[head].endswith("MiB")
    assert len({len(line) for line in lines[head : head + 3]}) == 1
    assert sum(line.startswith("Not measured: ") for line in lines) == 2
    assert "2 rows" in lines[0]


def test_rows_become_a_data_frame(report):
    polars = pytest.importorskip("polars")
    frame = report.to_polars()
    assert isinstance(frame, polars.DataFrame)
    assert frame.columns == [field.name for field in dataclasses.fields(AuditRow)]
    assert frame["estimator"].to_list() == ["st", "rloo", "arm", "enumerate"]
    assert frame["skipped"].null_count() == 2


def test_a_row_is_found_by_its_label(report):
    assert report.row("rloo") is report.rows[1]
    assert report.measured == report.rows[:2]
    with refuses(gt.ConfigError, "'reinmax'", "st, rloo, arm, enumerate"):
        report.row("reinmax")


def test_labels_name_the_options_that_are_not_the_defaults():
    made = [gt.ReinMax(), gt.ReinMax(tau=1.3), gt.GumbelRao(k=7)]
    rows = gt.audit(CLASSES.cubic, law(CLASSES), made, replicates=20, generator=seeded()).rows
    assert [x.estimator for x in rows] == ["reinmax", "reinmax(tau=1.3)", "gumbel_rao(k=7)"]
    named = {"mine": gt.ReinMax()}
    (only,) = gt.audit(CLASSES.cubic, law(CLASSES), named, replicates=20, generator=seeded()).rows
    assert only.estimator == "mine"


def test_many_classes_are_summed_over_in_parts_of_bounded_size(monkeypatch):
    seen = []

    def f(z):
        seen.append(z.numel())
        return z[..., 3] * 2.0

    monkeypatch.setattr(support, "_NUMBERS", 2000)
    q = gt.Categorical(normal(2, 50))
    found = support.exact_gradient(f, q)
    assert max(seen) <= 2000
    theta = q.logits.clone().requires_grad_()
    gt.expect(f, gt.Categorical(theta), gt.Enumerate()).mean().backward()
    torch.testing.assert_close(found, theta.grad.flatten())


def test_a_given_reference_has_the_shape_of_the_logits():
    f = lambda z: z[..., 0] ** 2  # noqa: E731
    with refuses(gt.ShapeError, "(3, 2)", "(2, 3)"):
        gt.audit(f, torch.zeros(2, 3), ["st"], reference=torch.zeros(3, 2))


@pytest.mark.parametrize(("error", "said"), [(0.1, False), (0.5, True), (3.0, True)])
def test_a_reference_that_is_mostly_noise_is_said_to_be(error, said):
    found = choose(THREE, dataclasses.replace(FAR, norm=1.0, standard_error=error))
    assert ("hardly known" in found.text) == said


def test_a_direction_that_is_mostly_noise_has_no_cosine():
    draw = lambda n, generator: torch.randn(n, 50, generator=generator, dtype=F64)  # noqa: E731
    kinds = {"replicates": 100, "chunk": 50, "groups": 20, "generator": seeded()}
    own = moments_of(draw, **kinds, reference=torch.ones(50, dtype=F64))
    noisy, sure = (
        Target(torch.ones(50, dtype=F64), torch.ones(20, 50, dtype=F64), v) for v in (40.0, 1.0)
    )
    assert math.isnan(compare(own, noisy, 0.0)["cosine"])
    assert not math.isnan(compare(own, sure, 0.0)["cosine"])


def test_the_peak_counts_what_a_step_makes_and_not_what_was_there():
    layer, x = torch.nn.Linear(1000, 1000), torch.zeros(10, 1000)
    assert peak_bytes(lambda: x.view(-1)) == 0
    assert peak_bytes(lambda: layer(x)) == 40_000  # the transposed weight is a view
    assert peak_bytes(lambda: (x + 1) + 1) == 80_000
