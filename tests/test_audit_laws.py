"""The audit of laws without classes: continuous ones, and counts."""

import math

import pytest
import torch
import torch.distributions as td
from scipy import stats

import gradthrough as gt
from continuous import EVERY
from gradthrough.auditing.function_problem import FunctionProblem
from gradthrough.auditing.rows import AuditRow, not_measured
from problems import F64, refuses

WITHOUT_CLASSES = {"continuous", "count"}
SERVING = [key for key, kind in gt.ESTIMATORS.items() if kind.traits.families & WITHOUT_CLASSES]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def bend(z):
    """Some f, also of points with a dim of their own."""
    return (z.flatten(2).sum(-1) if z.ndim > 2 else z).sin()


def rows(case, count=2):
    """A law of a table with so many rows, and its leaves."""
    leaves = case.leaves()
    many = {n: x.expand(count, *x.shape) for n, x in leaves.items()}
    return case.kind(**many), leaves


@pytest.mark.parametrize("key", SERVING)
@pytest.mark.parametrize("name", EVERY)
def test_what_is_audited_is_the_gradient_of_expect(name, key):
    q, _ = rows(EVERY[name])
    law, estimator = gt.as_distribution(q).detached(), gt.estimator(key)
    fresh = [x.clone().requires_grad_() for x in law.parameters]
    one, count = law.with_parameters(*fresh), 4
    try:
        value = gt.expect(bend, one, estimator, samples=count, generator=seeded())
        want = torch.autograd.grad(value.mean(), fresh)
    except gt.UnsupportedError:
        return  # it does not serve this law
    found = FunctionProblem(bend, law).gradients(estimator, count, 1, seeded())
    torch.testing.assert_close(found[0], torch.cat([x.flatten() for x in want]))


@pytest.mark.parametrize("name", EVERY)
def test_estimates_made_together_keep_to_their_rows(name):
    q, _ = rows(EVERY[name], 3)
    law = gt.as_distribution(q).detached()
    estimator = gt.RLOO() if law_has_score(law) else gt.MeasureValued()
    # What a row of f ignores has no gradient there.
    first = torch.tensor([1.0, 0.0, 0.0], dtype=F64)
    found = FunctionProblem(lambda z: first * bend(z), law).gradients(estimator, 4, 40, seeded())
    assert found.isfinite().all()
    parts = found.split([x.numel() for x in law.parameters], 1)
    for part, x in zip(parts, law.parameters, strict=True):
        each = part.reshape(40, *x.shape)
        assert (each[:, 1:] == 0).all()
        assert len(each[:, 0].unique(dim=0)) > 1  # the estimates are not one and the same


def law_has_score(law):
    """Whether a score-function estimator serves it."""
    try:
        law.check_score()
    except gt.UnsupportedError:
        return False
    return True


def test_the_drawn_reference_is_the_gradient_in_closed_form():
    loc, scale = torch.tensor([0.3, -0.4], dtype=F64), torch.tensor([0.8, 1.1], dtype=F64)
    truth = torch.cat([2 * loc, 2 * scale]) / 2  # of E z^2 = loc^2 + scale^2, two rows
    for kind in ("measure-valued", "score function"):
        report = gt.audit(
            torch.square,
            td.Normal(loc, scale),
            ["pathwise"],
            evaluations=8,
            reference=kind,
            generator=seeded(),
        )
        assert report.reference.kind == kind
        # A norm of a mean in 4 dims: 5 standard errors are beyond 1e-5.
        assert abs(report.reference.norm - truth.norm()) < 5 * report.reference.standard_error
    report = gt.audit(
        torch.square,
        td.Normal(loc, scale),
        ["pathwise", "rloo", "vargrad", "reinforce", "measure_valued"],
        evaluations=8,
        reference=truth,
        generator=seeded(),
    )
    assert not any(row.biased or row.skipped for row in report.rows)


def test_the_bias_of_a_path_across_a_jump_is_found_and_is_the_density_there():
    report = gt.audit(
        lambda z: torch.where(z > 1, z, 0.0),
        td.Normal(torch.tensor([0.4], dtype=F64, requires_grad=True), 1.0),
        ["pathwise", "rloo", "measure_valued"],
        evaluations=4,
        replicates=4000,
        generator=seeded(),
    )
    path, score, measured = report.rows
    assert path.biased
    assert not score.biased
    assert not measured.biased
    missing = stats.norm(0.4, 1.0).pdf(1.0)
    assert path.bias_low - 0.02 < missing < path.bias_high + 0.02
    assert abs(path.bias - missing) < 0.1 * missing
    assert str(report.recommend()).startswith(f"Take {report.recommend().choice}")
    assert report.recommend(averaging=1e6).choice != "pathwise"


def test_what_is_measured_is_the_gradient_in_those_that_need_one():
    loc, scale = torch.zeros(3, 2, requires_grad=True), torch.ones(3, 2)
    law = td.Independent(td.Normal(loc, scale), 1)
    f = lambda z: z.square().sum(-1)  # noqa: E731
    report = gt.audit(f, law, ["pathwise"], replicates=20, generator=seeded())
    assert report.dimensions == 6
    assert report.problem == "3 rows, each of 2 Normal variables; gradient in 6 numbers of loc"
    plain = td.Independent(td.Normal(loc.detach(), scale), 1)
    assert gt.audit(f, plain, ["pathwise"], replicates=20, generator=seeded()).dimensions == 12
    with refuses(gt.ShapeError, "(12,)"):
        gt.audit(f, plain, ["pathwise"], reference=torch.zeros(3, 2), generator=seeded())
    # A concentration that needs no gradient hinders no measure-valued derivative.
    gamma = td.Gamma(torch.ones(3), torch.ones(3, requires_grad=True))
    report = gt.audit(torch.square, gamma, ["measure_valued"], replicates=20, generator=seeded())
    assert report.reference.kind == "measure-valued"
    assert report.rows[0].skipped is None


@pytest.mark.parametrize("name", EVERY)
def test_every_law_has_a_reference(name):
    q, _ = rows(EVERY[name])
    report = gt.audit(bend, q, ["reinforce"], replicates=20, generator=seeded())
    assert report.reference.kind in ("measure-valued", "score function")
    assert math.isfinite(report.reference.norm)
    assert report.reference.standard_error > 0


def test_a_reference_that_no_estimator_of_the_law_draws_is_refused():
    q = td.Normal(torch.zeros(2), 1.0)
    for kind in ("exact", "local expectation"):
        with refuses(gt.UnsupportedError, "out of reach", "Normal"):
            gt.audit(torch.square, q, ["pathwise"], reference=kind, generator=seeded())
    with refuses(gt.UnsupportedError, "score function", "out of reach", "tensor"):
        gt.audit(
            torch.square,
            td.Uniform(torch.zeros(2), torch.ones(2)),
            ["pathwise"],
            reference="score function",
            generator=seeded(),
        )


def test_a_random_f_of_a_continuous_law_is_noticed():
    report = gt.audit(
        lambda z: torch.nn.functional.dropout(z, 0.5),
        td.Normal(torch.ones(2), 1.0),
        ["pathwise"],
        replicates=20,
        generator=seeded(),
    )
    assert "random itself" in report.reference.words


# --- programs


def test_a_program_with_a_normal_latent_is_audited():
    encoder = torch.nn.Linear(3, 4, dtype=F64)
    x = torch.randn(5, 3, generator=seeded(), dtype=F64)

    def loss_fn(expect):
        loc, raw = encoder(x).chunk(2, -1)
        q = td.Independent(td.Normal(loc, raw.exp()), 1)
        return expect(lambda z: (z - 1).square().sum(-1), q)

    loc, raw = encoder(x).chunk(2, -1)
    exact = ((loc - 1).square() + (2 * raw).exp()).sum(-1).mean()
    truth = torch.cat([g.flatten() for g in torch.autograd.grad(exact, list(encoder.parameters()))])
    report = gt.audit_model(
        loss_fn,
        encoder,
        ["pathwise", "rloo", "measure_valued", "st"],
        evaluations=7,
        replicates=200,
        reference=truth,
        generator=seeded(),
    )
    assert [row.biased for row in report.rows[:3]] == [False] * 3
    assert "serves bernoulli, categorical" in report.rows[3].skipped
    drawn = gt.audit_model(
        loss_fn, encoder, ["pathwise"], evaluations=7, replicates=50, generator=seeded()
    ).reference
    assert drawn.kind == "measure-valued"
    assert abs(drawn.norm - truth.norm()) < 5 * drawn.standard_error


def test_a_program_may_have_classes_beside_a_law_without_score():
    theta = torch.zeros(4, 3, requires_grad=True)
    low = torch.zeros(4, requires_grad=True)

    def both(expect):
        one = expect(lambda z: z[..., 0], theta)
        return one + expect(torch.square, td.Uniform(low, low + 1))

    with refuses(gt.UnsupportedError, "out of reach", "serves these laws"):
        gt.audit_model(both, [theta, low], ["rloo"], replicates=20, generator=seeded())
    truth = torch.zeros(16)
    report = gt.audit_model(
        both, [theta, low], ["rloo"], replicates=20, reference=truth, generator=seeded()
    )
    assert "Uniform has no score" in report.rows[0].skipped

    def sound(expect):
        one = expect(lambda z: z[..., 0], theta)
        return one + expect(torch.square, td.Normal(low, 1.0))

    report = gt.audit_model(sound, [theta, low], ["rloo"], replicates=20, generator=seeded())
    assert report.reference.kind == "score function"
    assert report.rows[0].skipped is None


# --- words


def test_estimators_that_are_left_out_for_one_reason_are_named_together():
    rows = [
        AuditRow("st", skipped="StraightThrough serves classes."),
        AuditRow("rloo"),
        AuditRow("arm", skipped="ARM serves classes."),
        AuditRow("a", skipped="Enumerate needs 5."),
        AuditRow("b", skipped="f is none."),
        AuditRow("c", skipped="f is none."),
    ]
    assert not_measured(rows) == [
        (("st", "arm"), "Each serves classes."),
        (("a",), "Enumerate needs 5."),
        (("b", "c"), "f is none."),
    ]
