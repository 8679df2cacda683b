"""What is refused when an estimator, an f or a Rollout is used: the error and its words."""

import pytest
import torch
from torch.func import grad, jacfwd, jvp, vmap

import gradthrough as gt
from problems import (
    PATHWISE,
    VARIANTS,
    every,
    law,
    normal,
    refuses,
    samples_for,
    select,
    uniform,
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
        gt.expect(wrong, law(name, X), one, samples=samples_for(one, 2))


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


def asks_for_slopes(e):
    q = gt.Bernoulli(X, event_dims=1) if e.traits.families == {"bernoulli"} else gt.Categorical(X)
    q = q.expand(samples_for(e))
    return e.draw(q, e.noise(q)).gradients != "none"


SLOPES = select(lambda e: e.traits.needs_point_gradients)
SLOPES = [name for name in SLOPES if asks_for_slopes(estimator(name))]
MODES = {
    "autograd": lambda loss: lambda x: torch.autograd.grad(loss(x.requires_grad_()).sum(), x),
    "grad": lambda loss: grad(lambda x: loss(x).sum()),
    "jvp": lambda loss: lambda x: jvp(loss, (x,), (torch.ones_like(x),)),
    "jacfwd": jacfwd,
    "vmap of grad": lambda loss: vmap(grad(lambda x: loss(x[None]).sum())),
}


@every([*PATHWISE, *SLOPES])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("what", ["argmax", "detach", "argmax with a learned table"])
def test_an_f_without_slope_is_refused_in_every_mode(name, mode, what):
    """Where a gradient of f is needed, none is made up: zeros would be silently wrong."""
    one, rows = estimator(name), X[:1] if "vmap" in mode else X
    q = law(name, rows)
    n = samples_for(one)
    noise = uniform(*one.noise_shape(q.expand(n)))

    def loss(x):
        return gt.expect(NO_SLOPE[what], law(name, x), one, samples=n, noise=noise)

    with refuses(gt.UnsupportedError, "differentia", "RLOO"):
        MODES[mode](loss)(X.clone())


@every([*PATHWISE, *SLOPES])
def test_without_a_graph_no_slope_is_needed(name):
    q, one = law(name, X), estimator(name)
    with torch.no_grad():
        value = gt.expect(NO_SLOPE["argmax"], q, one, samples=samples_for(one))
    assert value.isfinite().all()


def corners_only(z):
    """An f that is not defined elsewhere, and says so."""
    if not bool(((z == 0) | (z == 1)).all()):
        raise ZeroDivisionError("off the corners")
    return f(z)


@every()
def test_an_f_of_corners_is_never_asked_elsewhere_unless_the_traits_say_so(name):
    """What f raises comes through; nothing is swallowed."""
    x = X.clone().requires_grad_()
    q, one = law(name, x), estimator(name)
    n = samples_for(one, 2)
    if one.traits.needs_relaxed_points and (one.traits.relaxed or name in SLOPES):
        with pytest.raises(ZeroDivisionError, match="off the corners"):
            gt.expect(corners_only, q, one, samples=n)
        return
    gt.expect(corners_only, q, one, samples=n).sum().backward()
    assert x.grad.isfinite().all()


FLAT = {
    "argmax": lambda z: TABLE[z.argmax(-1)],
    "detach": lambda z: f(z.detach()),
    "constant": lambda z: torch.zeros(z.shape[:2]),
}
NO_CONTROL = {
    "a number": (lambda z: 1.0, gt.UnsupportedError, "float"),
    "None": (lambda z: None, gt.UnsupportedError, "NoneType"),
    "another shape": (lambda z: z, gt.ShapeError, r"\(4, 4, 3\)"),
    "a mean": (lambda z: z.mean(), gt.ShapeError, r"\(\)"),
}


@pytest.mark.parametrize("eta", [0.0, 0.5])
def test_wrong_controls_are_refused(eta):
    x = X.clone().requires_grad_()
    for control in FLAT.values():
        with refuses(gt.UnsupportedError, "control", "differentiabl", "Control"):
            gt.expect(f, x, gt.Relax(control, eta=eta), samples=2)
        with refuses(gt.UnsupportedError, "control", "differentiabl"):
            grad(lambda x, c=control: gt.expect(f, x, gt.Relax(c, eta=eta), samples=2).sum())(X)
        with torch.no_grad():
            assert gt.expect(f, x, gt.Relax(control, eta=eta)).isfinite().all()
    for control, kind, word in NO_CONTROL.values():
        with refuses(kind, "control", word, r"\(4, 4\)"):
            gt.expect(f, x, gt.Relax(control, eta=eta), samples=2)


def test_wrong_surrogates_are_refused():
    q = gt.Bernoulli(X, event_dims=1)
    for surrogate in (lambda x: 1.0, lambda x: None):
        with refuses(gt.UnsupportedError, "surrogate", type(surrogate(None)).__name__):
            gt.expect(f, q, gt.Rodeo(surrogate=surrogate), samples=2)
    with refuses(gt.ShapeError, "surrogate", r"\(2, 1, 4, 2\)", r"\(2, 1, 4\)"):
        gt.expect(f, q, gt.Rodeo(surrogate=lambda x: x[..., 0]), samples=2)


def test_an_estimator_of_another_family_is_refused():
    for name in VARIANTS:
        one = estimator(name)
        for family, q in (("categorical", X), ("bernoulli", gt.Bernoulli(X, event_dims=1))):
            if family not in one.traits.families:
                with refuses(gt.UnsupportedError, type(one).__name__, "serves", family, "RLOO"):
                    gt.expect(f, q, one, samples=samples_for(one))


LIMITED = [key for key, kind in gt.ESTIMATORS.items() if hasattr(kind, "limit")]


@every(LIMITED)
def test_a_limit_of_evaluations_says_what_it_would_take(name):
    q = law(name, normal(2, 5, 3), event_dims=1)
    n = samples_for(estimator(name), 2)
    wanted = estimator(name).evaluations(q, n)
    with refuses(gt.UnsupportedError, f"{wanted:,}", f"{wanted - 1:,}", "limit=", "RLOO"):
        gt.expect(flat_f, q, gt.estimator(name, limit=wanted - 1), samples=n)
    assert gt.expect(flat_f, q, gt.estimator(name, limit=wanted), samples=n).shape == (2,)


def flat_f(z):
    return z.flatten(2).sum(-1)


def test_a_set_without_an_order_has_a_largest_size():
    with refuses(gt.DomainError, "12", "13"):
        gt.expect(f, X, gt.UnorderedSet(), samples=13)


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
    "tuple": ((1.0, 2.0), gt.UnsupportedError, "tuple"),
    "boolean": (True, gt.UnsupportedError, "bool"),
    "NaN": (float("nan"), gt.DomainError, "nan"),
    "inf": (float("inf"), gt.DomainError, "inf"),
    "callable returning None": (lambda dist: None, gt.UnsupportedError, "NoneType"),
    "callable of a wrong shape": (lambda dist: torch.zeros(3), gt.ShapeError, r"\(3,\)"),
}


@pytest.mark.parametrize("option", ["baseline", "variance"])
@pytest.mark.parametrize("what", WRONG_BASELINES)
def test_wrong_baselines_are_refused(what, option):
    value, kind, word = WRONG_BASELINES[what]
    with refuses(kind, option, word):
        gt.expect(f, X, gt.Reinforce(**{option: value}), samples=2)


def test_a_baseline_has_one_name():
    with refuses(gt.ConfigError, "'mean'", "'self_critical'"):
        gt.Reinforce(baseline="mean")
    with refuses(gt.UnsupportedError, "variance", "str"):
        gt.expect(f, X, gt.Reinforce(variance="self_critical"))


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
    with refuses(gt.UnsupportedError, type(estimator(name)).__name__, "one latent", "Nest"):
        gt.Rollout(estimator(name), samples=2)


@every(select(lambda e: e.traits.many_draws and e.evaluations(gt.Categorical(X), 2) != 2))
def test_points_besides_the_samples_have_no_rows_in_a_rollout(name):
    rollout = gt.Rollout(estimator(name), samples=2)
    with refuses(gt.UnsupportedError, type(estimator(name)).__name__, "2 samples", "Nest"):
        rollout.sample(rollout.expand(X))


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


# --- bounds of several samples

BOUNDS = {"vimco": gt.vimco, "vargrad": gt.vargrad}


@pytest.mark.parametrize("door", BOUNDS)
def test_a_bound_refuses_what_an_estimator_refuses(door):
    run = BOUNDS[door]
    for samples, kind in ((1, gt.DomainError), (0, gt.DomainError), (2.0, gt.UnsupportedError)):
        with refuses(kind, "samples"):
            run(f, X, samples)
    with refuses(gt.ShapeError, door, r"\(3, 4\)", r"\(3, 4, 3\)"):
        run(lambda z: z, X, 3)
    with refuses(gt.UnsupportedError, "float"):
        run(lambda z: 1.0, X, 3)
    with refuses(gt.UnsupportedError, "callable", "int"):
        run(3, X, 3)
    with refuses(gt.UnsupportedError, "list"):
        run(f, [X], 3)
    with refuses(gt.ShapeError, "noise", r"\(3, 4\)", r"\(4,\)"):
        run(f, X, 3, noise=uniform(4))
    with refuses(gt.ConfigError, "noise=", "generator="):
        run(f, X, 3, noise=uniform(3, 4), generator=torch.Generator())
    with refuses(gt.DomainError, "NaN"):
        run(f, torch.full((4, 3), torch.nan), 3)


def test_vimco_names_its_baselines():
    with refuses(gt.ConfigError, "'mean'", "'geometric'", "'arithmetic'"):
        gt.vimco(f, X, 3, baseline="mean")


def test_the_log_variance_loss_needs_log_q_from_the_logits():
    x = X.clone().requires_grad_()
    with refuses(gt.UnsupportedError, "graph", "log_prob"):
        gt.vargrad(lambda z: TABLE[z.argmax(-1)], x, 3)
    with torch.no_grad():
        assert gt.vargrad(lambda z: TABLE[z.argmax(-1)], x, 3).isfinite().all()
