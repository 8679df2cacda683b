"""What is refused when an estimator, an f or a Rollout is used: the error and its words."""

import pytest
import torch

import gradthrough as gt
from problems import (
    PATHWISE,
    VARIANTS,
    every,
    normal,
    refuses,
    samples_for,
    select,
)

X = normal(4, 3)
SLOPE = normal(3, seed=1)


def f(z):
    return (z @ SLOPE.to(z.dtype)) ** 2


def estimator(name):
    return VARIANTS[name](gt.Categorical(X))


@pytest.mark.parametrize("key", ["reinmx", "reinforc", "gumbel_roa", "straight", "zzz", "", None])
def test_unknown_estimators_name_their_neighbours(key):
    near = {"reinmx": "reinmax", "reinforc": "reinforce", "gumbel_roa": "gumbel_rao"}
    with refuses(gt.ConfigError, repr(key), *gt.ESTIMATORS) as error:
        gt.estimator(key)
    if key in near:
        assert f"'{near[key]}'" in str(error.value).split("Known")[0]


@pytest.mark.parametrize("key", gt.ESTIMATORS)
def test_unknown_options_are_named(key):
    with refuses(gt.ConfigError, "'temperature'", gt.ESTIMATORS[key].__name__):
        gt.estimator(key, temperature=1.0)


NO_ESTIMATOR = [(gt.RLOO, r"RLOO\(\)"), ("rloo", r"estimator\('rloo'\)"), (None, "None"), (f, "f")]
DOORS_OF_ESTIMATORS = {
    "expect": lambda e, **k: gt.expect(f, X, e, **k),
    "estimate": lambda e, **k: gt.estimate(f, X, e, **k),
    "Rollout": lambda e, **k: gt.Rollout(e, **k),
    "Bound": lambda e, **k: gt.Bound(e, **k)(f, X),
}


@pytest.mark.parametrize("door", DOORS_OF_ESTIMATORS)
def test_what_is_no_estimator_is_refused(door):
    for thing, hint in NO_ESTIMATOR:
        with refuses(gt.UnsupportedError, "estimator", hint):
            DOORS_OF_ESTIMATORS[door](thing)
    for samples, kind in ((0, gt.DomainError), (-1, gt.DomainError), (2.0, gt.UnsupportedError)):
        with refuses(kind, "samples"):
            DOORS_OF_ESTIMATORS[door](gt.ReinMax(), samples=samples)
    with refuses(gt.UnsupportedError, "samples", "bool"):
        DOORS_OF_ESTIMATORS[door](gt.ReinMax(), samples=True)


@every(select(lambda e: e.traits.min_samples > 1))
@pytest.mark.parametrize("door", DOORS_OF_ESTIMATORS)
def test_leave_one_out_needs_more_samples(name, door):
    least = estimator(name).traits.min_samples
    with refuses(gt.DomainError, "samples", str(least)):
        DOORS_OF_ESTIMATORS[door](estimator(name), samples=least - 1)


def test_antithetic_draws_come_in_pairs():
    for samples in (1, 3):
        with refuses(gt.DomainError, "antithetic", str(samples), str(samples + 1)):
            gt.expect(f, X, gt.Reinforce(antithetic=True), samples=samples)


WRONG_F = {
    "not callable": (3, gt.UnsupportedError, "int"),
    "a float": (lambda z: 1.0, gt.UnsupportedError, "float"),
    "None": (lambda z: None, gt.UnsupportedError, "NoneType"),
    "integers": (lambda z: z.argmax(-1), gt.UnsupportedError, "int64"),
    "booleans": (lambda z: z[..., 0] > 0, gt.UnsupportedError, "bool"),
    "complex": (lambda z: z[..., 0] * 1j, gt.UnsupportedError, "complex"),
    "a mean": (lambda z: z.mean(), gt.ShapeError, r"\(\)"),
    "one value for each example": (lambda z: z[0, :, 0], gt.ShapeError, "fold"),
    "one for each class": (lambda z: z, gt.ShapeError, "4, 3"),
}


@every()
@pytest.mark.parametrize("what", WRONG_F)
def test_a_wrong_f_is_refused(name, what):
    wrong, kind, word = WRONG_F[what]
    one = estimator(name)
    with refuses(kind, word):
        gt.expect(wrong, X, one, samples=samples_for(one, 2))


@pytest.mark.parametrize("what", ["a float", "None", "a mean", "one value for each example"])
def test_a_wrong_f_is_refused_when_folded(what):
    wrong, kind, _ = WRONG_F[what]
    if what == "one value for each example":
        wrong = lambda z: z[0, :]  # noqa: E731
    with refuses(kind):
        gt.expect(gt.fold(wrong), X, gt.ReinMax())
    with refuses(gt.ShapeError, "row"):  # no batch dim to fold
        gt.expect(gt.fold(f), X[0], gt.ReinMax())


TABLE = normal(3, seed=2)
NO_SLOPE = {
    "argmax": lambda z: TABLE[z.argmax(-1)],
    "detach": lambda z: f(z.detach()),
    "argmax with a learned table": lambda z: LEARNT[z.argmax(-1)],
}
LEARNT = normal(3, seed=3).requires_grad_()


@every(PATHWISE)
@pytest.mark.parametrize("what", NO_SLOPE)
def test_a_pathwise_estimator_refuses_an_f_without_slope(name, what):
    x = X.clone().requires_grad_()
    with refuses(gt.UnsupportedError, "differentia", "RLOO"):
        gt.expect(NO_SLOPE[what], x, estimator(name))
    with torch.no_grad():
        assert gt.expect(NO_SLOPE[what], x, estimator(name)).isfinite().all()


def test_enumerate_has_a_limit():
    q = gt.Categorical(torch.zeros(2, 5, 10), event_dims=1)
    with refuses(gt.UnsupportedError, "100,000", "RLOO"):
        gt.expect(lambda z: z.sum((-1, -2)), gt.Categorical(torch.zeros(2, 6, 10), event_dims=1),
                  gt.Enumerate())  # fmt: skip
    with refuses(gt.UnsupportedError, "99,999"):
        gt.expect(lambda z: z.sum((-1, -2)), q, gt.Enumerate(limit=99_999))


WRONG_BASELINES = {
    "shape": (torch.zeros(7), gt.ShapeError, r"\(7,\)"),
    "too many dims": (torch.zeros(2, 1, 4), gt.ShapeError, r"\(2, 1, 4\)"),
    "string": ("mean", gt.UnsupportedError, "str"),
    "NaN": (float("nan"), gt.DomainError, "nan"),
    "inf": (float("inf"), gt.DomainError, "inf"),
    "callable returning None": (lambda dist: None, gt.UnsupportedError, "NoneType"),
    "callable of a wrong shape": (lambda dist: torch.zeros(3), gt.ShapeError, r"\(3,\)"),
}


@pytest.mark.parametrize("what", WRONG_BASELINES)
def test_wrong_baselines_are_refused(what):
    baseline, kind, word = WRONG_BASELINES[what]
    with refuses(kind, "baseline", word):
        gt.expect(f, X, gt.Reinforce(baseline=baseline), samples=2)


def test_wrong_proposals_are_refused():
    for proposal in (normal(4, 5), gt.Bernoulli(X), gt.Categorical(normal(2, 4, 3))):
        with refuses(gt.ShapeError, "proposal", r"\(4, 3\)"):
            gt.expect(f, X, gt.Reinforce(proposal=proposal))
    with refuses(gt.UnsupportedError, "str"):
        gt.expect(f, X, gt.Reinforce(proposal="uniform"))


# --- Rollout


def test_rollout_misuse():
    rollout = gt.Rollout(gt.RLOO(), samples=2)
    with refuses(gt.ConfigError, "sample"):
        rollout.combine(torch.zeros(2, 4))
    with refuses(gt.ShapeError, "2 samples", "expand"):
        rollout.sample(X)
    with refuses(gt.ShapeError, "2 samples"):
        rollout.sample(torch.zeros(3))
    rollout.sample(rollout.expand(X))
    with refuses(gt.ShapeError, r"\(2, 4\)", r"\(4,\)"):
        rollout.combine(torch.zeros(4))
    with refuses(gt.UnsupportedError, "float"):
        rollout.combine(1.0)
    with refuses(gt.UnsupportedError, "int64"):
        rollout.combine(torch.zeros(2, 4, dtype=torch.int64))


def test_a_rollout_of_rows_that_do_not_match_is_refused():
    rollout = gt.Rollout(gt.RLOO(), samples=2)
    rollout.sample(rollout.expand(X))
    rollout.sample(torch.zeros(2, 4, 5, 3))
    with refuses(gt.ShapeError, r"\(2, 4, 5\)", r"\(2, 4\)"):
        rollout.combine(torch.zeros(2, 4))


@every(select(lambda e: not e.traits.many_draws))
def test_an_estimator_of_one_latent_is_refused_by_rollout(name):
    with refuses(gt.UnsupportedError, "one latent", "Nest"):
        gt.Rollout(estimator(name), samples=2)


def test_a_proposal_serves_one_latent():
    rollout = gt.Rollout(gt.Reinforce(proposal=torch.zeros(4, 3)))
    for _ in range(2):
        rollout.sample(rollout.expand(torch.zeros(4, 3)))
    with refuses(gt.UnsupportedError, "proposal", "one latent"):
        rollout.combine(torch.zeros(1, 4))


@every()
def test_a_bound_estimator_samples_only_along_a_path(name):
    one = estimator(name)
    ex = gt.Bound(one, samples=samples_for(one))
    if one.traits.pathwise:
        assert ex.sample(X).shape == X.shape
        return
    with refuses(gt.UnsupportedError, "expect"):
        ex.sample(X)
