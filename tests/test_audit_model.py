"""audit_model: the gradient of whole programs, and the references that it is held against."""

import importlib
import math
from itertools import product

import pytest
import torch

import gradthrough as gt
from gradthrough.auditing import support
from gradthrough.auditing.batches import over_batches
from gradthrough.auditing.model import ModelProblem, tensors
from gradthrough.auditing.support import exact_gradient
from problems import F64, normal, refuses

ROWS, LATENTS, C, WIDTH = 5, 2, 3, 4


@pytest.fixture(autouse=True)
def untimed(monkeypatch):
    """Leave out the stopwatch, which takes most of a small audit."""
    module = importlib.import_module("gradthrough.auditing.engine")
    monkeypatch.setattr(module, "halves", lambda steps: dict.fromkeys(steps, (0.1, 0.2)))


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def linear(inputs, outputs, seed):
    layer = torch.nn.Linear(inputs, outputs, dtype=F64)
    with torch.no_grad():
        layer.weight.copy_(normal(outputs, inputs, seed=seed))
        layer.bias.copy_(normal(outputs, seed=seed + 1))
    return layer


class Autoencoder:
    """A few rows of data, an encoder into classes, and a decoder."""

    def __init__(self, family="categorical"):
        width = C if family == "categorical" else 1
        self.family, self.x = family, normal(ROWS, WIDTH, seed=31)
        self.encoder = linear(WIDTH, LATENTS * width, 32)
        self.decoder = linear(LATENTS * width, WIDTH, 34)
        self.parameters = [*self.encoder.parameters(), *self.decoder.parameters()]

    def law(self):
        if self.family == "bernoulli":
            return gt.Bernoulli(self.encoder(self.x), event_dims=1)
        return gt.Categorical(self.encoder(self.x).unflatten(-1, (LATENTS, C)), event_dims=1)

    def f(self, z):
        return (self.decoder(z.flatten(2)) - self.x).square().sum(-1)

    def loss(self, expect):
        return expect(self.f, self.law())


def gradient(value, parameters):
    return torch.cat([x.flatten() for x in torch.autograd.grad(value, parameters)])


def exact_of(loss_fn, parameters):
    """The exact gradient that an audit takes, and its number of points."""
    return ModelProblem(loss_fn, parameters, seeded()).exact()


# --- the exact reference


@pytest.mark.parametrize("part", [2**16, 13, 1])
@pytest.mark.parametrize("family", ["categorical", "bernoulli"])
def test_the_exact_reference_reaches_encoder_and_decoder(family, part, monkeypatch):
    monkeypatch.setattr(support, "_PART", part)
    model = Autoencoder(family)
    found, points = exact_of(model.loss, model.parameters)
    value = gt.expect(model.f, model.law(), gt.Enumerate()).mean()
    torch.testing.assert_close(found, gradient(value, model.parameters))
    assert points == model.law().support_size


def test_the_exact_reference_of_logits_is_that_of_a_function():
    theta = normal(4, 3, seed=36).requires_grad_()
    f = lambda z: (z @ normal(3, seed=37)) ** 3  # noqa: E731
    found, _ = exact_of(lambda expect: expect(f, theta), theta)
    torch.testing.assert_close(found, exact_gradient(f, gt.Categorical(theta.detach())))


def test_the_exact_reference_does_not_see_a_large_constant():
    theta = normal(16, 8, seed=38, dtype=torch.float32).requires_grad_()
    w = torch.arange(8) / 4  # of which 1e6 leaves every digit in float32
    plain, _ = exact_of(lambda expect: expect(lambda z: z @ w, theta), theta)
    lifted, _ = exact_of(lambda expect: expect(lambda z: z @ w + 1e6, theta), theta)
    torch.testing.assert_close(lifted, plain, rtol=0.0, atol=1e-5 * float(plain.norm()))


def test_masked_classes_are_no_part_of_the_exact_reference():
    theta = normal(4, 3, seed=39)
    theta[1, 2] = theta[3, 0] = -torch.inf
    dead = theta.isneginf()
    theta.requires_grad_()

    def f(z):
        return torch.where((z * dead).sum(-1) > 0, torch.nan, (z @ normal(3, seed=40)) ** 2)

    found, _ = exact_of(lambda expect: expect(f, theta), theta)
    assert bool(found.isfinite().all())
    assert bool((found.reshape(4, 3)[dead] == 0).all())
    value = gt.expect(f, theta, gt.Enumerate()).mean()
    torch.testing.assert_close(found, gradient(value, [theta]))


NESTED = [normal(4, 3, seed=41).requires_grad_(), normal(3, 2, seed=42).requires_grad_()]


def nested(expect):
    """A choice, and another one that depends on it."""
    theta, phi = NESTED

    def outer(z):
        return expect(lambda y: (3 * y[..., 0] - z[..., 1] - 0.3) ** 2, z @ phi)

    return expect(outer, theta)


def nested_truth():
    theta, phi = NESTED
    total = torch.zeros((), dtype=F64)
    for k, j in product(range(3), range(2)):
        value = (3.0 * (j == 0) - (k == 1) - 0.3) ** 2
        total = total + (theta.softmax(-1)[:, k] * phi.softmax(-1)[k, j] * value).mean()
    return gradient(total, NESTED)


@pytest.mark.parametrize("part", [2**16, 8])
def test_nested_choices_have_an_exact_reference(part, monkeypatch):
    monkeypatch.setattr(support, "_PART", part)
    torch.testing.assert_close(exact_of(nested, NESTED)[0], nested_truth())


@pytest.mark.parametrize(("limit", "reached"), [(4 * 3 + 4 * 3 * 2, True), (35, False)])
def test_the_points_of_nested_choices_multiply(limit, reached, monkeypatch):
    monkeypatch.setattr(importlib.import_module("gradthrough.auditing.model"), "LIMIT", limit)
    assert (exact_of(nested, NESTED) is not None) == reached


def test_estimators_of_nested_choices_are_held_against_it():
    report = gt.audit_model(
        nested, NESTED, ["rloo", "enumerate", "st"], replicates=200, generator=seeded()
    )
    assert report.reference.kind == "exact"
    assert report.reference.norm == pytest.approx(float(nested_truth().norm()))
    assert report.dimensions == 18
    rloo, exactly, st = report.rows
    assert not rloo.biased
    assert exactly.bias_high < 1e-9
    assert st.biased


# --- the three ways to make a choice


def two_steps(expect):
    """A sample, and one whose logits depend on it; the rows are apart."""
    theta, phi = NESTED
    z = expect.sample(theta)
    y = expect.sample(z @ phi)
    return (3 * y[..., 0] - z[..., 1] - 0.3) ** 2


def rolled(expect):
    theta, phi = NESTED
    rollout = expect.rollout()
    z = rollout.sample(rollout.expand(theta))
    y = rollout.sample(z @ phi)
    return rollout.combine((3 * y[..., 0] - z[..., 1] - 0.3) ** 2)


def mixed(expect):
    """A sample within the function of an expectation."""
    theta, phi = NESTED
    return expect(lambda z: (3 * expect.sample(z @ phi)[..., 0] - z[..., 1] - 0.3) ** 2, theta)


def one_loss(expect):
    return two_steps(expect).mean()


@pytest.mark.parametrize("program", [two_steps, rolled, mixed, one_loss])
def test_a_drawn_reference_agrees_with_all_runs_of_the_program(program):
    problem = ModelProblem(program, NESTED, seeded())
    assert problem.exact() is None
    (one,) = problem.unbiased()
    assert one.kind == "score function"
    draws, truth = one.draw(400, seeded()), nested_truth()
    error = (draws.var(0) / len(draws)).sqrt()
    assert bool(((draws.mean(0) - truth).abs() <= 4.5 * error + 1e-12).all())
    assert float(error.norm()) < 0.25 * float(truth.norm())


@pytest.mark.parametrize("rows", [2, 3])
def test_rows_are_not_taken_for_samples_nor_for_steps(rows):
    """The score of a choice goes to its own row, also where another dim is as long as the batch."""
    theta = normal(rows, 3, seed=43).requires_grad_()
    phi, steps = NESTED[1], normal(rows, rows, 2, seed=44).requires_grad_()  # steps come first
    weight = torch.arange(1, rows + 1, dtype=F64)

    def within(expect):
        return expect(lambda z: (3 * expect.sample(z @ phi)[..., 0] - z[..., 1]) ** 2, theta)

    def stepwise(expect):
        return (expect.sample(steps)[..., 0] * weight.unsqueeze(-1)).sum(0) ** 2

    total = torch.zeros((), dtype=F64)
    for k, j in product(range(3), range(2)):
        value = (3.0 * (j == 0) - (k == 1)) ** 2
        total = total + (theta.softmax(-1)[:, k] * phi.softmax(-1)[k, j] * value).mean()
    p, sums = steps.softmax(-1)[..., 0], torch.zeros((), dtype=F64)
    for bits in product((0.0, 1.0), repeat=rows):
        on = torch.tensor(bits, dtype=F64).unsqueeze(-1)
        probability = (on * p + (1 - on) * (1 - p)).prod(0)
        sums = sums + (probability * (on.squeeze(-1) @ weight) ** 2).mean()
    for program, parameters, value in (
        (within, [theta, phi], total),
        (stepwise, [steps], sums),
    ):
        (one,) = ModelProblem(program, parameters, seeded()).unbiased()
        draws, truth = one.draw(400, seeded()), gradient(value, parameters)
        error = (draws.var(0) / len(draws)).sqrt()
        assert bool(((draws.mean(0) - truth).abs() <= 4.5 * error + 1e-12).all()), program


def test_of_programs_that_sample_those_without_a_sample_are_left_out_in_words():
    report = gt.audit_model(
        two_steps, NESTED, ["st", "reinmax", "rloo", "leg"], replicates=20, generator=seeded()
    )
    assert report.reference.kind == "score function"
    assert report.reference.standard_error > 0
    st, reinmax, rloo, leg = report.rows
    for row in (st, reinmax):
        assert (row.skipped, row.evaluations, row.replicates) == (None, 4, 20)
    for row in (rloo, leg):
        assert "no sample that carries a gradient" in row.skipped
        assert row.skipped.endswith(".")


def test_a_program_that_samples_runs_as_often_as_f_would_be_evaluated():
    runs = []
    problem = ModelProblem(lambda expect: runs.append(1) or two_steps(expect), NESTED, seeded())
    one = gt.StraightThrough()
    for evaluations in (1, 6):
        samples, used = problem.samples(one, evaluations)
        runs.clear()
        problem.gradients(one, samples, 3, seeded())
        assert len(runs) == 3 * evaluations == 3 * used


def test_rollouts_serve_who_can_and_the_others_say_why():
    report = gt.audit_model(
        rolled, NESTED, ["rloo", "st", "leg", "arm"], replicates=100, generator=seeded()
    )
    rloo, st, leg, arm = report.rows
    assert not rloo.biased
    assert st.replicates == 100
    assert "one latent at a time" in leg.skipped
    assert "serves bernoulli" in arm.skipped


def test_the_exact_reference_is_refused_where_a_program_samples():
    for program in (two_steps, rolled):
        with refuses(gt.UnsupportedError, "out of reach", "'auto'"):
            gt.audit_model(program, NESTED, ["st"], reference="exact", generator=seeded())
    with refuses(gt.UnsupportedError, "'local expectation' is out of reach"):
        gt.audit_model(two_steps, NESTED, ["st"], reference="local expectation")


# --- the report


def test_an_audit_of_a_model_finds_what_one_of_its_function_finds():
    model = Autoencoder()
    theta = model.law().logits.detach().requires_grad_()
    q = gt.Categorical(theta, event_dims=1)
    f = lambda z: model.f(z).detach() if not z.requires_grad else model.f(z)  # noqa: E731
    own = gt.audit_model(
        lambda expect: expect(f, q), theta, ["st"], replicates=400, generator=seeded()
    )
    (a,) = own.rows
    (b,) = gt.audit(f, q, ["st"], replicates=400, generator=seeded(1)).rows
    assert own.batch == ROWS
    assert own.dimensions == theta.numel()
    assert a.bias_low <= b.bias_high
    assert b.bias_low <= a.bias_high
    assert a.variance_low <= b.variance_high
    assert b.variance_low <= a.variance_high


def test_parameters_come_as_module_tensor_list_or_mapping_each_once():
    model = Autoencoder()
    encoder = model.encoder
    frozen = torch.zeros(3)
    want = list(encoder.parameters())
    for given in (
        encoder,
        encoder.parameters(),
        dict(encoder.named_parameters()),
        [*want, frozen, *want],
    ):
        assert all(a is b for a, b in zip(tensors(given), want, strict=True))
    assert tensors(encoder.weight)[0] is encoder.weight
    found = gt.audit_model(
        model.loss, encoder.parameters(), ["st"], replicates=20, generator=seeded()
    )
    assert found.dimensions == sum(x.numel() for x in want)


def test_a_seed_gives_one_report_and_the_parameters_stay_as_they_are():
    model = Autoencoder()

    def once(seed):
        state = torch.get_rng_state()
        report = gt.audit_model(
            model.loss, model.encoder, ["st", "rloo"], replicates=30, generator=seeded(seed)
        )
        assert torch.equal(torch.get_rng_state(), state)
        assert all(x.grad is None for x in model.parameters)
        return [(row.bias, row.variance, row.cosine_single) for row in report.rows]

    assert once(1) == once(1)
    assert once(1) != once(2)


def test_an_audit_needs_no_grad_mode_of_its_caller():
    model = Autoencoder()
    with torch.no_grad():
        for program, parameters in ((model.loss, model.encoder), (two_steps, NESTED)):
            report = gt.audit_model(
                program, parameters, ["st", "reinmax"], replicates=20, generator=seeded()
            )
            assert [row.skipped for row in report.rows] == [None, None]


# --- several batches


class Noisy:
    """A batch moves the gradient by a known vector; a fair coin turns its sign around a mean."""

    dimensions = 3

    def __init__(self, mean):
        self.mean = mean

    def gradients(self, estimator, samples, n, generator):
        coin = torch.randint(2, (n, 1), generator=generator) * 2.0 - 1
        return self.mean + 2.0 * coin * torch.ones(3)


def test_both_parts_of_the_variance_are_found_without_bias():
    means = torch.tensor([[1.0, 0.0, 0.0], [-1.0, 0.0, 2.0], [0.0, 3.0, 1.0]])
    problems = [Noisy(m) for m in means]
    found = [
        over_batches(problems, None, 1, replicates=30, generator=seeded(seed))
        for seed in range(300)
    ]
    for name, truth in (
        ("sampling_variance", 12.0),
        ("minibatch_variance", float(means.var(0).sum())),
    ):
        x = torch.tensor([one[name] for one in found])
        assert float(x.mean()) == pytest.approx(truth, abs=4 * float(x.std()) / 300**0.5)


def test_with_batches_the_noise_of_the_data_is_told_from_that_of_the_draws():
    theta = torch.zeros(1, 2, dtype=F64).requires_grad_()
    batches = [torch.tensor(x, dtype=F64) for x in (1.0, 2.0, 4.0)]

    # The gradient of E x z_0 at a fair coin is x / 4 (1, -1), whose variance over x is known.
    def loss(expect, x):
        return expect(lambda z: x * z[..., 0], theta)

    report = gt.audit_model(
        loss, theta, ["st", "enumerate", "rloo", "arm"], batches=batches, replicates=2000,
        generator=seeded(),
    )  # fmt: skip
    assert report.batches == 3
    between = 2 * torch.tensor([1.0, 2.0, 4.0]).var() / 16
    for row in report.rows[:2]:  # linear in the point: without variance of their own
        assert row.minibatch_variance == pytest.approx(float(between))
        assert row.sampling_variance == pytest.approx(0.0, abs=1e-12)
    # rloo with four samples: half of 1/3 sum_n (f_n - mean f) times (z_n - p), in x^2
    rloo = report.rows[2]
    assert rloo.sampling_variance == pytest.approx(7 * rloo.variance, rel=0.2)  # mean x^2 is 7
    assert rloo.minibatch_variance == pytest.approx(float(between), rel=0.3)
    assert report.rows[3].minibatch_variance is None
    assert "over 3 batches" in str(report)


def test_without_batches_there_is_no_variance_over_them():
    model = Autoencoder()
    (row,) = gt.audit_model(
        model.loss, model.encoder, ["st"], replicates=20, generator=seeded()
    ).rows
    assert row.minibatch_variance is None
    assert row.sampling_variance is None


# --- errors of use


def test_what_cannot_be_audited_is_refused_with_a_remedy():
    model, theta = Autoencoder(), NESTED[0]
    for kind, words, loss, params, options in (
        (gt.ConfigError, ["no random choice"], lambda e: theta.sum(-1), theta, {}),
        (gt.ConfigError, ["none of which"], model.loss, [torch.zeros(2)], {}),
        (gt.ConfigError, ["0 tensors"], model.loss, [], {}),
        (gt.UnsupportedError, ["tuple", "dict"], model.loss, model.encoder.named_parameters(), {}),
        (gt.ShapeError, ["(5, 4)"], lambda e: e(model.f, model.law())[:, None] + model.x,
         model.encoder, {}),
        (gt.ShapeError, ["float"], lambda e: 3.0, model.encoder, {}),
        (gt.UnsupportedError, ["depend"], lambda e: e(lambda z: z[..., 0], NESTED[0]),
         model.encoder, {}),
        (gt.DomainError, ["replicates"], model.loss, model.encoder, {"replicates": 3}),
        (gt.ConfigError, ["at least 2"], lambda e, x: model.loss(e), model.encoder,
         {"batches": [1]}),
    ):  # fmt: skip
        with refuses(kind, *(w.replace("(", r"\(").replace(")", r"\)") for w in words)):
            gt.audit_model(loss, params, ["st"], generator=seeded(), **options)


def test_a_pathwise_estimator_of_a_loss_without_a_slope_is_left_out_in_words():
    report = gt.audit_model(
        lambda expect: expect(lambda z: z.argmax(-1).to(F64), NESTED[0]),
        NESTED[0],
        ["st", "rloo"],
        replicates=20,
        generator=seeded(),
    )
    st, rloo = report.rows
    assert "differentiabl" in st.skipped
    assert rloo.skipped is None
    assert not math.isnan(rloo.bias)


def test_an_exact_expectation_may_depend_on_another_one(monkeypatch):
    monkeypatch.setattr(support, "_PART", 16)  # several parts, of two points each
    theta = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    w = torch.randn(4, dtype=torch.float64, requires_grad=True)

    def program(expect):
        first = expect(lambda z: (z * w).sum(-1) ** 2, gt.Categorical(theta))
        logits = torch.stack((first, first**2, w[0] * first), -1) + theta[:, :3]

        def inner(z):
            f = lambda y: (y[..., 0] - z[..., 1] * w[1]) ** 2  # noqa: E731
            return expect(f, theta.expand(*z.shape[:-1], 4))

        return expect(inner, gt.Categorical(logits)) * first

    exact = support.Exact(torch.Generator())
    found = exact.gradient(program(exact).mean(), [theta, w])
    whole = program(gt.Bound(gt.Enumerate())).mean()
    for ours, theirs in zip(found, torch.autograd.grad(whole, [theta, w]), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)


def test_a_program_that_is_random_itself_has_no_exact_reference():
    torch.manual_seed(0)
    theta = torch.zeros(4, 3, requires_grad=True)
    drop = torch.nn.Dropout(0.5)
    program = lambda expect: expect(lambda z: drop(z[..., 0] * 3) ** 2, theta)  # noqa: E731
    report = gt.audit_model(program, theta, ["rloo"], replicates=100)
    assert report.reference.kind == "local expectation"
    assert "random itself" in report.reference.words
    assert not report.row("rloo").biased
    function = gt.audit(lambda z: drop(z[..., 0] * 3) ** 2, theta, ["rloo"], replicates=100)
    assert "random itself" in function.reference.words
    with refuses(gt.UnsupportedError, "random itself"):
        gt.audit(lambda z: drop(z[..., 0]), theta, ["rloo"], reference="exact")


@pytest.mark.parametrize(("curved", "loss"), [(False, lambda v: 3 * v + 1), (True, torch.exp)])
def test_a_loss_that_is_not_affine_in_an_expectation_is_named(curved, loss):
    theta = torch.randn(4, 3, requires_grad=True)
    w = torch.tensor([0.1, 0.7, -0.4])
    program = lambda expect: loss(expect(lambda z: (z * w).sum(-1), theta))  # noqa: E731
    report = gt.audit_model(program, theta, ["rloo"], replicates=50, reference="local expectation")
    assert ("not affine" in report.reference.words) == curved


def test_a_graph_from_outside_is_named():
    encoder = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Tanh())
    logits = encoder(torch.ones(4, 2))
    with refuses(gt.ConfigError, "within loss_fn"):
        gt.audit_model(
            lambda expect: expect(lambda z: z[..., 0] ** 2, logits),
            encoder,
            ["rloo"],
            reference="score function",
        )


def test_a_batch_that_cannot_be_audited_is_named():
    theta = torch.zeros(3, requires_grad=True)
    with refuses(gt.DomainError, "batch 1"):
        gt.audit_model(
            lambda expect, x: expect(lambda z: z[..., 0], x * theta),
            theta,
            ["rloo"],
            batches=[torch.ones(2, 3), torch.full((2, 3), torch.nan)],
            replicates=20,
        )


def test_what_is_no_program_and_no_batches_is_refused():
    theta = torch.zeros(3, requires_grad=True)
    with refuses(gt.UnsupportedError, "int", "forward pass"):
        gt.audit_model(5, theta)
    with refuses(gt.ConfigError, "3", "at least two"):
        gt.audit_model(lambda expect, x: expect(lambda z: z[..., 0], theta), theta, batches=3)
