"""Polynomial programming: what is evaluated is exact, and every estimator descends towards it."""

import itertools
from dataclasses import replace

import pytest
import torch

import gradthrough as gt
from gradthrough import cli
from gradthrough.bench import checkpoint, records
from gradthrough.bench.config import RunConfig
from gradthrough.bench.probe import cosines
from gradthrough.bench.seeds import Seeds
from gradthrough.bench.tasks.polynomial import Bits, Polynomial
from gradthrough.bench.together import run_together
from gradthrough.bench.train import run
from gradthrough.rollout import Bound

POWERS = (1.5, 2.0, 3.0)
TARGETS = (0.45, "grid")
SMALL = Polynomial(length=4, p=1.5, steps_per_epoch=10)
SEEDS = (0, 1, 5)
SERVED = [key for key, kind in gt.ESTIMATORS.items() if "categorical" in kind.traits.families]


def bits(task, logits):
    """Return a model of the task in float64, at given logits."""
    return Bits(logits.double(), task.targets(), task.p)


def random_bits(task):
    generator = torch.Generator().manual_seed(3)
    return bits(task, torch.randn(task.length, 2, generator=generator))


def measured(task, logits):
    return task.evaluate(bits(task, logits), "test", Seeds(0))


@pytest.mark.parametrize(
    ("p", "start", "optimum"),
    [(1.5, 0.35488, 0.30187), (2.0, 0.25250, 0.20250), (3.0, 0.12875, 0.09113)],
)
def test_fair_bits_and_zero_bits_have_the_known_losses(p, start, optimum):
    task = Polynomial(p=p)
    fair = torch.zeros(128, 2)
    zero = torch.tensor([-60.0, 60.0]).expand(128, 2)
    assert measured(task, fair)["loss"] == pytest.approx((0.45**p + 0.55**p) / 2, rel=1e-14)
    assert measured(task, zero)["loss"] == pytest.approx(0.45**p, rel=1e-14)
    assert task.optimum() == pytest.approx(0.45**p, rel=1e-14)
    assert round(measured(task, fair)["loss"], 5) == start
    assert round(task.optimum(), 5) == optimum


@pytest.mark.parametrize(
    ("length", "start", "optima"),
    [
        (4, (0.3966, 0.3281, 0.2422), (0.13692, 0.07813, 0.02734)),
        (16, (0.3998, 0.3330, 0.2495), (0.14111, 0.08301, 0.03101)),
        (128, (0.4000, 0.3333, 0.2500), (0.14142, 0.08333, 0.03125)),
    ],
)
def test_a_grid_has_the_known_losses(length, start, optima):
    first = (torch.arange(length) < length // 2).double()  # the bits that are nearer to 0
    nearer = 60.0 * torch.stack((-first, first), -1) + 60.0 * torch.stack((1 - first, first), -1)
    for p, loss, optimum in zip(POWERS, start, optima, strict=True):
        task = Polynomial(length=length, p=p, target="grid")
        assert measured(task, torch.zeros(length, 2))["loss"] == pytest.approx(loss, abs=5e-5)
        assert task.optimum() == pytest.approx(optimum, abs=5.1e-6)
        assert measured(task, nearer)["loss"] == pytest.approx(task.optimum(), rel=1e-14)


def test_the_grid_is_the_middles_of_equal_cells():
    assert Polynomial(length=4, target="grid").targets().tolist() == [0.125, 0.375, 0.625, 0.875]
    assert Polynomial(length=3, target=0.25).targets().tolist() == [0.25] * 3


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("p", POWERS)
def test_loss_and_gradient_in_closed_form_are_those_of_enumeration(p, target):
    task = Polynomial(length=5, p=p, target=target)
    model = random_bits(task)
    (want,) = torch.autograd.grad(task.expected_loss(model.logits), model.logits)
    losses = task.losses(model, torch.zeros(3, 1), Bound(gt.Enumerate()))
    (got,) = torch.autograd.grad(losses.mean(), model.logits)
    assert losses.shape == (3,)
    for loss in losses:
        torch.testing.assert_close(loss, task.expected_loss(model.logits), rtol=0, atol=1e-15)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-15)
    # The derivative by hand: the softmax of two logits is the logistic of their difference.
    (c, pi) = task.targets(), model.logits.detach().softmax(-1)[:, 0]
    slope = pi * (1 - pi) * ((1 - c).abs() ** p - c.abs() ** p) / task.length
    torch.testing.assert_close(want, torch.stack((slope, -slope), -1), rtol=0, atol=1e-15)


@pytest.mark.parametrize("target", TARGETS)
def test_the_gap_is_what_the_loss_is_above_the_optimum_and_never_below_zero(target):
    task = Polynomial(length=6, target=target)
    found = task.evaluate(random_bits(task), "test", Seeds(0))
    assert found["loss"] - task.optimum() == pytest.approx(found["gap"], abs=1e-15)
    sign = torch.where(task.targets() < 0.5, -1.0, 1.0)
    best = torch.stack((sign, -sign), -1)
    gaps = [measured(task, scale * best)["gap"] for scale in (1.0, 10.0, 30.0, 400.0)]
    assert sorted(gaps, reverse=True) == gaps
    assert 0 <= gaps[-1] < 1e-300 < gaps[-2] < 1e-25


def test_evaluation_is_as_precise_as_the_logits_allow():
    task = Polynomial(length=9, target="grid")
    logits = torch.randn(9, 2, generator=torch.Generator().manual_seed(3))
    for function in (task.expected_loss, task.gap):
        assert torch.equal(function(logits), function(logits.double()))


@pytest.mark.parametrize("p", POWERS)
def test_the_cost_goes_on_smoothly_between_the_corners(p):
    model = random_bits(Polynomial(length=3, p=p))
    z = torch.tensor([[[0.2, 0.8], [0.7, 0.3], [1.0, 0.0]]], dtype=torch.float64).unsqueeze(0)
    want = (abs(0.2 - 0.45) ** p + abs(0.7 - 0.45) ** p + abs(1 - 0.45) ** p) / 3
    assert float(model.cost(z)) == pytest.approx(want, rel=1e-14)
    assert torch.autograd.gradcheck(model.cost, z.requires_grad_())


def test_evaluation_is_of_the_law_and_needs_no_split_but_the_last():
    model = SMALL.model(Seeds(0))
    assert SMALL.evaluate(model, "valid", Seeds(0)) == {}
    assert SMALL.evaluate(model, "test", Seeds(0), final=True) == {}
    assert list(SMALL.evaluate(model, "test", Seeds(0))) == [m.name for m in SMALL.metrics]
    assert SMALL.evaluate(model, "test", Seeds(0)) == SMALL.evaluate(model, "test", Seeds(7))


def test_an_epoch_is_its_number_of_steps_of_whole_batches():
    shapes = [b.shape for b in SMALL.batches("train", Seeds(0), epoch=0, size=7)]
    assert shapes == [(7, 1)] * 10
    assert not list(SMALL.batches("test", Seeds(0), epoch=0, size=7))
    assert SMALL.latent(SMALL.model(Seeds(0)), torch.zeros(7, 1)).batch_shape == (7,)
    assert SMALL.law().variables == (1, 4)


def test_batches_and_closed_forms_live_where_the_model_does():
    task = Polynomial(length=3, steps_per_epoch=1)
    device = torch.device("meta")
    task.prepare(device)
    (batch,) = task.batches("train", Seeds(0), epoch=0, size=2)
    model = task.model(Seeds(0)).to(device)
    assert model.cost(model.law(2).expand(1).logits).device == batch.device == device
    assert {f(model.logits).device for f in (task.expected_loss, task.gap)} == {device}


def test_logits_start_near_zero_from_the_seed_alone():
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    task = Polynomial(length=1000)
    one, again, other = (task.model(Seeds(s)).logits.detach() for s in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert -0.01 <= one.min() < -0.009
    assert 0.009 < one.max() <= 0.01


def test_a_large_space_cannot_be_enumerated_and_a_bernoulli_estimator_does_not_serve():
    assert "100,000" in Polynomial().refuses(gt.Enumerate())
    assert "serves bernoulli" in Polynomial().refuses(gt.DisARM())
    assert SMALL.refuses(gt.Enumerate()) is None


def config(key="reinmax", task=SMALL, *, lr=1e-2, **changes):
    return RunConfig("polynomial", task.options(), key, batch_size=16, lr=lr, **changes)


def trained(folder, one):
    return run(one, out=folder, progress=False, accelerator="cpu")


def numbers(result):
    """Return all numbers of a run but its times."""
    return [
        (r.step, r.split, r.metric, r.evaluations, r.value)
        for r in records.read(result.path)
        if r.kind == "metric"
    ]


@pytest.mark.parametrize("key", SERVED)
def test_every_estimator_trains_alike_twice(key, tmp_path):
    one = config(key, epochs=1)
    a, b = (trained(tmp_path / name, one) for name in "ab")
    assert a.status == b.status == "done"
    assert numbers(a) == numbers(b)
    before = SMALL.model(Seeds(0)).logits
    assert a.model.logits.isfinite().all()
    assert not torch.equal(a.model.logits, before)
    assert torch.equal(a.model.logits, b.model.logits)
    per_row = one.build_estimator().evaluations(SMALL.law(), one.samples)
    assert numbers(a)[-1][3] == 10 * 16 * per_row


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("key", ["enumerate", "reinmax", "rloo"])
def test_training_closes_the_gap(key, target, tmp_path):
    task = replace(SMALL, target=target, steps_per_epoch=150)
    result = trained(tmp_path, config(key, task, epochs=2, lr=5e-2))
    start = task.evaluate(task.model(Seeds(0)), "test", Seeds(0))["gap"]
    middle, end = (v for _, split, m, _, v in numbers(result) if (split, m) == ("test", "gap"))
    assert start > 2 * middle > 4 * end > 0
    assert result.last("test", "loss") == task.evaluate(result.model, "test", Seeds(0))["loss"]


def test_the_exact_run_is_gradient_descent_on_the_closed_form(tmp_path):
    task = replace(SMALL, target="grid")
    result = trained(tmp_path, config("enumerate", task, epochs=1, optimizer="sgd", lr=3.0))
    logits = task.model(Seeds(0)).logits.detach().double()
    losses = []
    for _ in range(10):
        logits.requires_grad_()
        losses.append(task.expected_loss(logits))
        (slope,) = torch.autograd.grad(losses[-1], logits)
        logits = (logits - 3.0 * slope).detach()
    torch.testing.assert_close(result.model.logits.double(), logits, rtol=0, atol=1e-6)
    # What the loop reports of an epoch is the mean over its steps, while the logits moved.
    assert result.last("train", "loss") == pytest.approx(float(sum(losses).detach()) / 10, abs=1e-6)


@pytest.mark.parametrize(
    ("p", "stall", "plateau"), [(1.5, 0.4749, 0.35222), (2, 0.45, 0.2475), (3, 0.4010, 0.12130)]
)
def test_straight_through_stalls_between_the_corners_and_reinmax_does_not(p, stall, plateau):
    task = Polynomial(length=1, p=p)
    pi = 0.45 ** (p - 1) / (0.45 ** (p - 1) + 0.55 ** (p - 1))
    assert round(pi, 4) == stall
    model = bits(task, torch.tensor([[pi, 1 - pi]], dtype=torch.float64).log())
    assert round(measured(task, model.logits.detach())["loss"], 5) == plateau
    means = {}
    for estimator in (gt.StraightThrough(), gt.ReinMax()):
        q = model.law(1)
        total = torch.zeros(1, 2, dtype=torch.float64)
        for corner in torch.eye(2, dtype=torch.float64).reshape(2, 1, 1, 2):
            noise = q.noise_for(corner).unsqueeze(0)
            value = gt.expect(model.cost, q, estimator, noise=noise).sum()
            (slope,) = torch.autograd.grad(value, model.logits, retain_graph=True)
            total += q.log_prob(corner).exp().detach() * slope
        means[type(estimator)] = total
    assert means[gt.StraightThrough].abs().max() < 1e-16
    assert means[gt.ReinMax][0, 0] > 0.01 > -0.01 > means[gt.ReinMax][0, 1]
    if p == 2:  # where it is exact
        (want,) = torch.autograd.grad(task.expected_loss(model.logits), model.logits)
        torch.testing.assert_close(means[gt.ReinMax], want, rtol=0, atol=1e-16)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("key", SERVED)
def test_seeds_at_once_end_as_their_own_runs(key, target, tmp_path):
    # Adam would blow up the rounding of a gradient near zero to a whole step.
    one = config(key, replace(SMALL, target=target), epochs=2, optimizer="sgd", lr=1.0)
    seeds = SEEDS if key in ("reinmax", "rloo") else SEEDS[:2]
    many = run_together(one, seeds, out=tmp_path / "a", progress=False, accelerator="cpu")
    ones = [trained(tmp_path / "b", replace(one, seed=s)) for s in seeds]
    for a, b in zip(many, ones, strict=True):
        assert a.status == b.status == "done"
        assert [x[:4] for x in numbers(a)] == [x[:4] for x in numbers(b)]
        values = [torch.tensor([x[4] for x in numbers(r)]) for r in (a, b)]
        torch.testing.assert_close(*values, rtol=0, atol=1e-5)
        states = [checkpoint.load(r.path.with_suffix(".ckpt"), "cpu") for r in (a, b)]
        for state in states:
            assert list(state["model"]) == ["logits"]
            del state["seconds"]
        torch.testing.assert_close(*states, rtol=1e-3, atol=1e-5)


def test_a_probe_of_the_gradient_finds_the_exact_one():
    model = random_bits(SMALL)
    labels = {"exact": gt.Enumerate(), "leg": gt.LocalExpectation()}
    found = cosines(SMALL, model, torch.zeros(3, 1), labels, draws=1, seed=0)
    assert found["exact"] == pytest.approx(1.0)
    assert found["leg"] > 0.9


def test_options_make_a_config_and_a_config_makes_the_task():
    keys = set()
    for p, target in itertools.product(POWERS, TARGETS):
        task = Polynomial(length=16, p=p, target=target)
        one = config(task=task)
        assert Polynomial(**one.task_options) == task
        keys.add(one.key)
    assert len(keys) == 6
    assert config(task=Polynomial(p=2, target=0)).key == config(task=Polynomial(target=0.0)).key


def test_the_command_line_takes_a_number_or_the_grid(tmp_path, capsys):
    words = "bench run polynomial --length 4 --steps-per-epoch 3 --epochs 1 --p 3".split()
    for target in ("grid", "0.3"):
        cli.main([*words, "--target", target, "--estimator", "st", "--out", str(tmp_path)])
    assert capsys.readouterr().out.count("done") == 2
    for target in ("grid", 0.3):
        task = Polynomial(length=4, p=3.0, target=target, steps_per_epoch=3)
        want = RunConfig("polynomial", task.options(), "st", epochs=1)
        assert (tmp_path / "polynomial" / f"{want.key}.jsonl").exists()


@pytest.mark.parametrize(
    ("options", "kind", "said"),
    [
        ({"length": 0}, gt.DomainError, "length must be at least 1, but is 0"),
        ({"steps_per_epoch": 0}, gt.DomainError, "steps_per_epoch must be at least 1"),
        ({"p": 0.5}, gt.DomainError, "p must be finite and at least 1, but is 0.5"),
        ({"p": float("nan")}, gt.DomainError, "p must be finite"),
        ({"p": float("inf")}, gt.DomainError, "p must be finite"),
        ({"target": "gird"}, gt.ConfigError, "'gird', but must be a number or 'grid'"),
        ({"target": float("nan")}, gt.DomainError, "target must be finite, but is nan"),
    ],
)
def test_options_are_checked(options, kind, said):
    with pytest.raises(kind, match=said):
        Polynomial(**options)


def test_the_model_holds_nothing_but_the_logits():
    model = Bits(torch.zeros(3, 2), torch.full((3,), 0.45), 2.0)
    assert list(model.state_dict()) == ["logits"]
    assert [tuple(x.shape) for x in model.parameters()] == [(3, 2)]


def test_the_families_have_one_law_and_one_gradient():
    seeds, rows = Seeds(0), torch.zeros(3, 1)
    found = {}
    for family in ("categorical", "bernoulli"):
        task = replace(SMALL, target="grid", family=family)
        model = task.model(seeds)
        loss = task.losses(model, rows, Bound(gt.Enumerate()))
        loss.sum().backward()
        found[family] = (loss.detach(), model.logits.grad, task.gap(model.logits.detach()))
    for x, y in zip(*found.values(), strict=True):
        torch.testing.assert_close(x, y)
    assert "family" not in SMALL.options()
    assert "bernoulli" in replace(SMALL, family="bernoulli").options().values()


@pytest.mark.parametrize("key", ["rodeo", "disarm", "double_cv"])
def test_what_serves_no_categorical_trains_bernoulli_bits(key):
    task = replace(SMALL, family="bernoulli")
    assert SMALL.refuses(gt.estimator(key)) is not None
    assert task.refuses(gt.estimator(key)) is None


def test_an_unknown_family_is_refused():
    with pytest.raises(gt.ConfigError, match="categorical or bernoulli"):
        Polynomial(family="normal")
