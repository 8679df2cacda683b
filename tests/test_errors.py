"""Every public door refuses what it cannot take: the kind of error, and what the message holds."""

from dataclasses import fields

import pytest
import torch
import torch.distributions as td

import gradthrough as gt
from problems import (
    F64,
    PATHWISE,
    TEMPERED,
    VARIANTS,
    every,
    family_of,
    law,
    noise_for_rows,
    normal,
    plain,
    refuses,
    samples_for,
    temperatures,
    uniform,
)

BUILTIN = {
    gt.ShapeError: ValueError,
    gt.DomainError: ValueError,
    gt.UnsupportedError: TypeError,
    gt.BackendError: RuntimeError,
    gt.ConfigError: ValueError,
}
X = normal(4, 3)
SLOPE = normal(3, seed=1)


def f(z):
    return (z @ SLOPE.to(z.dtype)) ** 2


def estimator(name):
    return VARIANTS[name](gt.Categorical(X))


def call(name, logits, **keywords):
    """Bare logits go to every estimator of categoricals, and to the others as Bernoullis."""
    one = estimator(name)
    q = logits if family_of(name) == "categorical" else law(name, logits)
    return gt.expect(f, q, one, **({"samples": samples_for(one)} | keywords))


def test_each_kind_is_also_the_builtin():
    assert issubclass(gt.GradthroughError, Exception)
    for kind, builtin in BUILTIN.items():
        assert issubclass(kind, gt.GradthroughError)
        assert issubclass(kind, builtin)


# --- logits

WRONG_LOGITS = {
    "integers": (torch.zeros(4, 3, dtype=torch.int64), gt.UnsupportedError, "int64"),
    "booleans": (torch.zeros(4, 3, dtype=torch.bool), gt.UnsupportedError, "bool"),
    "complex": (torch.zeros(4, 3, dtype=torch.complex64), gt.UnsupportedError, "complex64"),
    "a list": ([[0.0, 1.0]], gt.UnsupportedError, "list"),
    "None": (None, gt.UnsupportedError, "NoneType"),
    "0-d": (torch.tensor(0.0), gt.ShapeError, r"\(\)"),
    "no class": (torch.zeros(4, 0), gt.ShapeError, r"\(4, 0\)"),
    "NaN": (torch.tensor([[0.0] * 3, [0.0, torch.nan, 1.0]]), gt.DomainError, "NaN"),
    "+inf": (torch.tensor([[0.0] * 3, [0.0, torch.inf, 1.0]]), gt.DomainError, r"\+inf"),
    "all masked": (torch.full((2, 3), -torch.inf), gt.DomainError, "masked"),
}
ALL_DOORS = {f"expect {n}": lambda x, n=n: call(n, x) for n in VARIANTS if "proposal" not in n}
ALL_DOORS |= {n: lambda x, n=n: plain(estimator(n))(x) for n in PATHWISE}
ALL_DOORS |= {
    "tensor tau": lambda x: gt.gumbel_softmax(x, torch.tensor(0.5)),
    "hard": lambda x: gt.gumbel_softmax(x, hard=True),
    "Categorical.sample": lambda x: gt.Categorical(x).sample(),
    "Categorical.mode": lambda x: gt.Categorical(x).mode(),
    "Categorical.probs": lambda x: gt.Categorical(x).probs,
    "Categorical.entropy": lambda x: gt.Categorical(x).entropy(),
    "Categorical.log_prob": lambda x: gt.Categorical(x).log_prob(torch.zeros(x.shape)),
    "Categorical.kl": lambda x: gt.Categorical(torch.zeros_like(x)).kl(gt.Categorical(x)),
    "Rollout.sample": lambda x: gt.Rollout(gt.RLOO(), samples=len(x)).sample(x),
    "as_distribution": lambda x: gt.as_distribution(x).sample(),
    "proposal": lambda x: gt.expect(f, torch.zeros(x.shape), gt.Reinforce(proposal=x)),
}
BINARY = [f"expect {n}" for n in VARIANTS if family_of(n) == "bernoulli"]
RETURNS = {
    "0-d": ("gumbel_softmax", "gumbel_softmax tau", "tensor tau", "hard"),  # as torch
    "all masked": BINARY,  # 0 for certain
}


@pytest.mark.parametrize("door", ALL_DOORS)
@pytest.mark.parametrize("what", WRONG_LOGITS)
def test_wrong_logits_are_refused_at_every_door(door, what):
    x, kind, word = WRONG_LOGITS[what]
    if what == "no class" and door in BINARY:  # rows of no variable, which have one point
        return
    if door in RETURNS.get(what, ()):
        assert ALL_DOORS[door](x).shape == (x.shape[:-1] if door in BINARY else x.shape)
        return
    if what == "None" and (door in BINARY or door.startswith("Categorical")):  # nothing passed
        kind, word = gt.ConfigError, "exactly one"
    needs_tensor = door in ("Categorical.log_prob", "Categorical.kl", "Rollout.sample", "proposal")
    if needs_tensor and not (isinstance(x, torch.Tensor) and x.is_floating_point() and x.ndim):
        return  # the test itself would fail first
    with refuses(kind, word):
        ALL_DOORS[door](x)


@pytest.mark.parametrize("family", [gt.Categorical, gt.Bernoulli])
def test_probabilities_are_checked(family):
    for p in (-0.1, torch.nan, torch.inf):
        with refuses(gt.DomainError, "probs", "logits="):
            family(probs=torch.tensor([0.5, p]))
    with refuses(gt.ConfigError, "exactly one"):
        family()
    with refuses(gt.ConfigError, "exactly one"):
        family(X, probs=X.abs())
    with refuses(gt.UnsupportedError, "probs", "list"):
        family(probs=[0.5, 0.5])


def test_probabilities_above_one_and_rows_without_any():
    with refuses(gt.DomainError, r"\[0, 1\]"):
        gt.Bernoulli(probs=torch.tensor([1.5]))
    with refuses(gt.DomainError, "masked"):
        gt.Categorical(probs=torch.zeros(2, 3)).sample()


@pytest.mark.parametrize("event_dims", [-1, True, 1.0, "1", None])
def test_event_dims_must_be_a_count(event_dims):
    with refuses(gt.DomainError, "event_dims", str(event_dims)):
        gt.Categorical(X, event_dims=event_dims)


def test_event_dims_must_fit_the_shape():
    with refuses(gt.ShapeError, r"\(4, 3\)", "2 event"):
        gt.Categorical(X, event_dims=2)
    with refuses(gt.ShapeError, r"\(4, 3\)", "3 event"):
        gt.Bernoulli(X, event_dims=3)


def test_points_must_end_in_the_shape_of_the_logits():
    q = gt.Categorical(X)
    for method in (q.log_prob, q.noise_for):
        with refuses(gt.ShapeError, r"\(4, 3\)", r"\(5, 3\)"):
            method(torch.zeros(5, 3))


def test_kl_needs_two_laws_of_one_kind():
    q = gt.Categorical(X)
    with refuses(gt.UnsupportedError, "categorical", "bernoulli"):
        q.kl(gt.Bernoulli(X))
    with refuses(gt.UnsupportedError, "event_dims=1"):
        q.kl(gt.Categorical(X, event_dims=1))
    with refuses(gt.ShapeError, "3", "5"):
        q.kl(gt.Categorical(normal(4, 5)))
    with refuses(gt.ShapeError, r"\(4,\)", r"\(2,\)"):
        q.kl(gt.Categorical(normal(2, 3)))


def test_what_is_no_point_has_no_probability():
    """Neither a guess nor another error: soft, empty and NaN points, lists and booleans."""
    q, b = gt.Categorical(X), gt.Bernoulli(X)
    for z in (torch.zeros(4, 3), torch.full((4, 3), 0.3), torch.full((4, 3), torch.nan)):
        for dist, points in ((q, z), (b, z + 0.25)):
            with refuses(gt.DomainError, "points"):
                dist.log_prob(points)
    for dist in (q, b):
        with refuses(gt.UnsupportedError, "points", "list"):
            dist.log_prob([[1.0, 0.0, 0.0]] * 4)
    hot = torch.eye(3)[torch.tensor([0, 2, 1, 1])]
    for dist in (q, b):
        want = dist.log_prob(hot.double())
        for z in (hot, hot.long(), hot.bool()):
            torch.testing.assert_close(dist.log_prob(z), want)


@pytest.mark.parametrize("x", [td.Weibull(1.0, 1.0), "logits", 3, [X], td.VonMises(0.0, 1.0)])
def test_what_is_no_law_is_refused(x):
    for door in (gt.as_distribution, lambda x: gt.expect(f, x, gt.ReinMax())):
        with refuses(gt.UnsupportedError, type(x).__name__, "Categorical"):
            door(x)


# --- options

NUMBERS = {
    0: gt.DomainError,
    -1.0: gt.DomainError,
    float("nan"): gt.DomainError,
    float("inf"): gt.DomainError,
    "1": gt.UnsupportedError,
    None: gt.UnsupportedError,
    True: gt.UnsupportedError,
    (1.0,): gt.UnsupportedError,
}
TAUS = [
    (name, option)
    for name in PATHWISE
    for option in (
        *temperatures(estimator(name)),
        *(("t1",) if hasattr(estimator(name), "t1") else ()),
    )
]


@pytest.mark.parametrize("value", NUMBERS)
@pytest.mark.parametrize(("name", "option"), TAUS)
def test_a_temperature_is_a_number_above_zero(name, option, value):
    for door in (type(estimator(name)), lambda **given: plain(estimator(name))(X, **given)):
        with refuses(NUMBERS[value], option):
            door(**{option: value})


@pytest.mark.parametrize("value", [0.0, -1.0, torch.nan, torch.inf])
def test_a_tensor_tau_is_above_zero_throughout(value):
    with refuses(gt.DomainError, "tau"):
        gt.gumbel_softmax(X, torch.tensor([0.5, value, 0.5], dtype=F64))
    with refuses(gt.DomainError, "tau"):
        gt.ReinMax(tau=torch.tensor(value))


@pytest.mark.parametrize("name", TEMPERED)
def test_a_tau_that_overflows_is_no_silent_nan(name):
    one = estimator(name)
    x = (50 * X).float().requires_grad_()
    try:
        z = plain(type(one)(**dict.fromkeys(temperatures(one), 1e-38)))(x)
        (gradient,) = torch.autograd.grad((z @ SLOPE.float()).sum(), x)
    except gt.DomainError:
        return
    assert not gradient.isnan().any()


@pytest.mark.parametrize("gap", [0.0, -1.0, float("nan"), float("inf")])
def test_gap_is_above_zero(gap):
    for door in (gt.GappedStraightThrough, lambda gap: gt.gapped_straight_through(X, gap=gap)):
        with refuses(gt.DomainError, "gap"):
            door(gap=gap)
    with refuses(gt.ConfigError, "gap", "'q'", "'p'"):
        gt.GappedStraightThrough(gap="q")


COUNTS = {0: gt.DomainError, -3: gt.DomainError, 2.5: gt.UnsupportedError}
COUNTS |= {"4": gt.UnsupportedError, True: gt.UnsupportedError, None: gt.UnsupportedError}


@pytest.mark.parametrize(("k", "kind"), COUNTS.items())
def test_k_is_a_count(k, kind):
    for one in (gt.GumbelRao(), gt.ReinMaxRao(), gt.ReinMaxCV()):
        for door in (type(one), lambda k, one=one: plain(one)(X, k=k)):
            with refuses(kind, "k must"):
                door(k=k)
    for one in (gt.ReDGE(), gt.ReinDGE()):
        for door in (type(one), lambda steps, one=one: plain(one)(X, steps=steps)):
            with refuses(kind, "steps must"):
                door(steps=k)
    with refuses(kind, "limit"):
        gt.Enumerate(limit=k)


def options(*names):
    """(key, option) for each estimator that has one of these options."""
    return [
        (key, field.name)
        for key, kind in gt.ESTIMATORS.items()
        for field in fields(kind)
        if field.name in names
    ]


@pytest.mark.parametrize(("key", "option"), options("k", "limit", "steps"))
def test_counts_are_counts(key, option):
    for value, kind in COUNTS.items():
        with refuses(kind, f"{option} must", "at least" if kind is gt.DomainError else "int"):
            gt.estimator(key, **{option: value})


SCALARS = [(key, option) for key, kind in gt.ESTIMATORS.items() for option in kind.traits.scalars]
NO_SCALARS = {
    "NaN": (float("nan"), gt.DomainError, "nan"),
    "inf": (float("inf"), gt.DomainError, "inf"),
    "a NaN tensor": (torch.tensor(torch.nan), gt.DomainError, "nan"),
    "a string": ("1", gt.UnsupportedError, "str"),
    "None": (None, gt.UnsupportedError, "NoneType"),
    "a boolean": (True, gt.UnsupportedError, "bool"),
    "a tuple": ((1.0,), gt.UnsupportedError, "tuple"),
    "a complex number": (1j, gt.UnsupportedError, "complex"),
    "two numbers": (torch.ones(2), gt.UnsupportedError, r"\(2,\)"),
    "an integer tensor": (torch.tensor(1), gt.UnsupportedError, "int64"),
}


@pytest.mark.parametrize(("key", "option"), SCALARS)
@pytest.mark.parametrize("what", NO_SCALARS)
def test_what_may_be_learned_is_one_finite_number(key, option, what):
    value, kind, word = NO_SCALARS[what]
    with refuses(kind, option, word):
        gt.estimator(key, **{option: value})


@pytest.mark.parametrize(("key", "option"), [pair for pair in SCALARS if pair[1] == "tau"])
def test_a_temperature_of_a_control_variate_is_above_zero(key, option):
    for value in (0.0, -1.0):
        with refuses(gt.DomainError, option, str(value)):
            gt.estimator(key, **{option: value})


CHOICES = [
    (gt.Coupled, "kind", ("iw", "sb", "tree")),
    (gt.CARMS, "copula", ("dirichlet", "independent")),
]


@pytest.mark.parametrize(("kind", "option", "names"), CHOICES)
@pytest.mark.parametrize("value", ["IW", "", None, 1])
def test_a_choice_names_what_there_is(kind, option, names, value):
    with refuses(gt.ConfigError, option, repr(value), *names):
        kind(**{option: value})


@pytest.mark.parametrize(("kind", "option"), [(gt.Relax, "control"), (gt.Rodeo, "surrogate")])
def test_what_an_estimator_calls_is_callable(kind, option):
    for value in (1.0, "net", torch.ones(2)):
        with refuses(gt.UnsupportedError, option, "callable", type(value).__name__):
            kind(**{option: value})


def test_relax_without_any_control_variate_is_refused():
    with refuses(gt.ConfigError, "eta=0", "control=", "Reinforce"):
        gt.Relax(eta=0.0)


INNER = [gt.gumbel_rao, gt.reinmax_rao, gt.reinmax_cv]


@pytest.mark.parametrize("door", INNER)
def test_inner_draws_have_a_row_for_each_row(door):
    many, least = (r"K \+ 1", 2) if door is gt.reinmax_cv else ("K", 1)
    for shape in ((4, 3), (4, 5, 2), (3, 5, 3), (1, 4, 5, 3)):
        with refuses(gt.ShapeError, "inner", rf"\(4, '{many}', 3\)"):
            door(X, inner=torch.ones(shape, dtype=F64))
    for wrong in ([[1.0]], torch.ones(4, 5, 3, dtype=torch.int64)):
        with refuses(gt.UnsupportedError, "inner"):
            door(X, inner=wrong)
    door(X, inner=torch.ones(4, least, 3, dtype=F64))
    with refuses(gt.DomainError, "inner", f"at least {least}"):
        door(X, inner=torch.ones(4, least - 1, 3, dtype=F64))
    with refuses(gt.BackendError, "inner", "meta"):
        door(X, inner=torch.ones(4, 5, 3, device="meta"))


@pytest.mark.parametrize(
    ("steps", "t1", "word"), [(1, 0.5, "steps"), (5, 1.5, "t1"), (5, 1e-9, "t1")]
)
def test_the_range_of_a_diffusion(steps, t1, word):
    for door in (
        gt.ReDGE,
        gt.ReinDGE,
        lambda **k: gt.redge(X, **k),
        lambda **k: gt.reindge(X, **k),
    ):
        with refuses(gt.DomainError, word):
            door(steps=steps, t1=t1)


WEIGHTS = {float("nan"): gt.DomainError, float("inf"): gt.DomainError, "1": gt.UnsupportedError}
WEIGHTS |= {None: gt.UnsupportedError, True: gt.UnsupportedError}


@pytest.mark.parametrize(("eta", "kind"), WEIGHTS.items())
def test_a_weight_is_a_finite_number(eta, kind):
    for door in (gt.ReinMaxCV, lambda eta: gt.reinmax_cv(X, eta=eta)):
        with refuses(kind, "eta"):
            door(eta=eta)


def test_a_weight_that_would_be_learned_is_refused():
    with refuses(gt.UnsupportedError, "eta", "gradient"):
        gt.ReinMaxCV(eta=torch.tensor(0.5, requires_grad=True))
    assert gt.ReinMaxCV(eta=torch.tensor(0.5)) == gt.ReinMaxCV(eta=0.5)


@pytest.mark.parametrize("door", INNER)
@pytest.mark.parametrize("value", [0.0, -1.0, torch.nan, torch.inf])
def test_inner_draws_outside_their_range_are_refused(door, value):
    inner = torch.ones(4, 2, 3, dtype=F64)
    inner[1, 0, :] = value
    with refuses(gt.DomainError, "inner"):
        door(X, inner=inner)


SWITCHES = {"importance": "st", "antithetic": "reinforce", "covariance": "redge"}


@pytest.mark.parametrize(("option", "key"), SWITCHES.items())
def test_switches_are_booleans(option, key):
    with refuses(gt.GradthroughError, option):
        gt.estimator(key, **{option: "no"})


@pytest.mark.parametrize("dim", [2, -3, 5])
@every(PATHWISE)
def test_dim_exists(name, dim):
    with refuses(gt.ShapeError, f"dim={dim}", r"\(4, 3\)"):
        plain(estimator(name))(X, dim=dim)
    with refuses(gt.UnsupportedError, "dim"):
        plain(estimator(name))(X, dim=1.0)


@every([name for name in PATHWISE if hasattr(estimator(name), "kernel")])
@pytest.mark.parametrize("backend", ["fast", "", None])
def test_unknown_backends_are_refused(name, backend):
    with refuses(gt.BackendError, "eager"):
        plain(estimator(name))(X, backend=backend)
    assert plain(estimator(name))(X, backend="eager").shape == X.shape


# --- noise

PLAIN = {n: lambda u, n=n, **k: plain(estimator(n))(X, noise=u, **k) for n in PATHWISE}
EXPECT = {f"expect {n}": lambda u, n=n, **k: call(n, X, noise=u, **k) for n in VARIANTS}
SAMPLE = {"sample": lambda u, **k: gt.Categorical(X).sample(noise=u, **k)}
LEARNED = {
    "tensor tau": lambda u, **k: gt.gumbel_softmax(X, torch.tensor(0.5, dtype=F64), noise=u, **k)
}
NOISE_DOORS = PLAIN | EXPECT | SAMPLE | LEARNED


def right_noise(door):
    if door in PLAIN:
        return noise_for_rows(estimator(door), X)
    if door in EXPECT:
        name = door.removeprefix("expect ")
        one = estimator(name)
        return uniform(*one.noise_shape(law(name, X).expand(samples_for(one))))
    return uniform(4) if door == "sample" else uniform(4, 3)


@pytest.mark.parametrize("door", NOISE_DOORS)
def test_noise_of_the_wrong_kind_is_refused(door):
    right, run = right_noise(door), NOISE_DOORS[door]
    run(right)
    for wrong in (right.float(), right.long(), right.tolist(), "noise"):
        with refuses(gt.UnsupportedError, "noise", "float64"):
            run(wrong)
    for wrong in (right[None], right[:0], torch.cat((right, right))):
        if wrong.shape != right.shape:
            with refuses(gt.ShapeError, "noise", *map(str, right.shape)):
                run(wrong)
    with refuses(gt.ConfigError, "noise=", "generator="):
        run(right, generator=torch.Generator())
    with refuses(gt.BackendError, "meta", "cpu"):
        run(right.to("meta"))


@pytest.mark.parametrize("door", NOISE_DOORS)
@pytest.mark.parametrize("value", [1.0, 1.5, -1e-9, torch.nan, torch.inf])
def test_noise_outside_its_range_is_refused(door, value):
    noise = right_noise(door)
    if noise.numel() == 0:
        return
    noise.view(-1)[0] = value
    with refuses(gt.DomainError, r"noise", r"\[0, 1\)"):
        NOISE_DOORS[door](noise)


@pytest.mark.parametrize("door", ["reinmax", "expect rloo", "sample", "tensor tau"])
def test_a_seed_is_no_generator(door):
    with refuses(gt.UnsupportedError, "generator", "int"):
        NOISE_DOORS[door](None, generator=3)


@every()
def test_logits_elsewhere_need_a_generator_there(name):
    one = estimator(name)
    if one.traits.noise == "none" or getattr(one, "proposal", None) is not None:
        return
    with refuses(gt.BackendError, "meta", "generator"):
        call(name, X.to("meta"), generator=torch.Generator())


AWAY = X.to("meta")
ELSEWHERE = {
    "baseline": lambda: gt.expect(f, X, gt.Reinforce(baseline=AWAY[:, 0])),
    "proposal": lambda: gt.expect(f, X, gt.Reinforce(proposal=AWAY)),
    "values": lambda: gt.expect(lambda z: z[..., 0].to("meta"), X, gt.RLOO(), samples=2),
    "inner": lambda: gt.gumbel_rao(X, inner=AWAY[:, None]),
    "tau": lambda: gt.gumbel_softmax(X, AWAY[0, 0]),
}


@pytest.mark.parametrize("what", ELSEWHERE)
def test_tensors_on_another_device_are_refused(what):
    with refuses(gt.BackendError, what, "meta", "cpu"):
        ELSEWHERE[what]()
