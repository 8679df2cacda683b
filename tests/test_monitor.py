"""The Monitor: each illness is provoked and named, sound training is left in peace."""

import contextlib
import math
import re
import warnings

import pytest
import torch
import torch.distributions as td
import torch.nn.functional as F
from torch import nn

import gradthrough as gt
from gradthrough.monitoring.illnesses import Thresholds
from gradthrough.monitoring.monitor import Monitor, MonitorWarning
from problems import F64, refuses

DTYPES = pytest.mark.parametrize("dtype", [F64, torch.float32, torch.bfloat16, torch.float16])


def kinds(found):
    return {one.kind for one in found}


def flow(monitor, q, **options):
    """Observe a law with some sound gradient."""
    for p in monitor.parameters:
        p.grad = torch.randn_like(p)
    monitor.step(q, **options)


def flow_twice(monitor, q):
    for _ in range(2):
        flow(monitor, q)


def quiet(every=1, **options):
    return Monitor(torch.nn.Parameter(torch.ones(3)), every=every, **options)


def train(sample, steps=40, *, beta=0.05, rate=0.05, **options):
    """Train a code of four clusters with four classes; return the monitor."""
    encoder, decoder = nn.Linear(4, 4), nn.Linear(4, 4)
    optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=rate)
    monitor = Monitor(encoder, every=1, **options)
    x = 3.0 * torch.eye(4).repeat(8, 1)
    for _ in range(steps):
        optimizer.zero_grad()
        q = gt.Categorical(encoder(x))
        z = sample(q.logits)
        loss = (decoder(z) - x).square().sum(-1).mean() + beta * (math.log(4) - q.entropy()).mean()
        loss.backward()
        monitor.step(q, loss=loss, z=z)
        optimizer.step()
    return monitor


@contextlib.contextmanager
def warned(said):
    """Collect what is said, if anything is."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    said += [str(w.message) for w in caught]


def hard(soft):
    return F.one_hot(soft.argmax(-1), soft.shape[-1]).to(soft.dtype)


# Statistics


@DTYPES
def test_numbers_of_the_law_are_those_of_its_definition(dtype):
    logits = torch.randn(16, 3, 5).to(dtype)
    q = gt.Categorical(logits, event_dims=1)
    p = logits.double().softmax(-1)
    monitor = quiet(tau=0.5)
    flow(monitor, q)
    entropy = -(p * p.log()).sum(-1)
    marginal = p.mean(0)
    sharp = (2.0 * logits.double()).softmax(-1)
    row = monitor.history[-1]
    want = {
        "entropy": entropy.mean(),
        "max_prob": p.amax(-1).mean(),
        "kl": math.log(5) - entropy.mean(),
        "mutual_information": (-(marginal * marginal.log()).sum(-1) - entropy.mean(0)).mean(),
        "attenuation": 2 * (1 - sharp.square().sum(-1)).sum() / (1 - p.square().sum(-1)).sum(),
        "tau": 0.5,
    }
    for name, value in want.items():
        assert row[name] == pytest.approx(float(value), rel=1e-4, abs=1e-6), name
    torch.testing.assert_close(monitor.usage.double(), marginal, rtol=1e-4, atol=1e-6)


def test_bernoulli_and_torch_distributions_say_the_same_as_ours():
    logits = torch.randn(8, 3, dtype=F64)
    rows = []
    for q in (
        gt.Bernoulli(logits, event_dims=1),
        td.Independent(td.Bernoulli(logits=logits), 1),
        gt.Categorical(torch.stack((logits, torch.zeros_like(logits)), -1), event_dims=1),
        td.Independent(td.OneHotCategorical(logits=torch.stack((logits, 0 * logits), -1)), 1),
    ):
        monitor = quiet()
        flow(monitor, q)
        rows.append(monitor.history[-1])
    entropy = gt.Bernoulli(logits, event_dims=1).entropy().mean() / 3
    for row in rows:
        assert row["entropy"] == pytest.approx(float(entropy))
        assert row["classes"] == 6
        assert row["latents"] == 3
        assert row["mutual_information"] == pytest.approx(rows[0]["mutual_information"])


def test_kl_is_to_the_prior_that_was_given():
    q = gt.Categorical(torch.randn(8, 2, 3, dtype=F64), event_dims=1)
    prior = gt.Categorical(torch.randn(2, 3, dtype=F64), event_dims=1)
    monitor = quiet(prior=prior)
    flow(monitor, q)
    want = q.kl(prior.expand(8)).mean() / 2
    assert monitor.history[-1]["kl"] == pytest.approx(float(want))


@pytest.mark.parametrize("decay", [0.5, 0.9])
def test_moments_of_the_gradient_are_the_weighted_ones_of_all_gradients(decay):
    a, b = nn.Parameter(torch.randn(3, 2, dtype=F64)), nn.Parameter(torch.randn(4))
    monitor = Monitor([a, b], every=1, decay=decay)
    kept, norms, losses = [], [], []
    for t in range(12):
        a.grad = 100.0 + torch.randn_like(a)  # a mean that would eat a variance of squares
        b.grad = torch.randn_like(b) if t != 5 else None
        flat = (a.grad.flatten(), torch.zeros(4) if b.grad is None else b.grad)
        kept.append(torch.cat([g.double() for g in flat]))
        norms.append(float(kept[-1].norm()))
        losses.append(float(t + 1))
        monitor.step(torch.randn(8, 3), loss=torch.tensor(losses[-1]))
        w = decay ** torch.arange(t, -1, -1, dtype=F64)
        w = w / w.sum()
        g = torch.stack(kept)
        mean = w @ g
        row = monitor.history[-1]
        weights = math.hypot(float(a.detach().norm()), float(b.detach().norm()))
        size = float(w @ torch.tensor(norms, dtype=F64))
        mean_loss = float(w @ torch.tensor(losses, dtype=F64))
        assert row["grad_norm"] == pytest.approx(norms[-1])
        assert row["mean_norm"] == pytest.approx(size)
        assert row["relative_gradient"] == pytest.approx(size * weights / mean_loss, rel=1e-6)
        if t == 0:
            assert math.isnan(row["snr"])
            continue
        variance = (w @ (g - mean).square().sum(-1)) / (1 - w.square().sum())
        signal = mean.square().sum() - variance * w.square().sum()
        assert row["grad_variance"] == pytest.approx(float(variance), rel=1e-6)
        assert row["snr"] == pytest.approx(float(signal / variance), rel=1e-6)


def test_running_use_of_classes_is_weighted_over_observed_batches():
    monitor, seen = quiet(decay=0.7), []
    for t in range(5):
        logits = torch.randn(4 + t, 2, 3, dtype=F64)
        seen.append(logits.softmax(-1).mean(0))
        flow(monitor, gt.Categorical(logits, event_dims=1))
    w = 0.7 ** torch.arange(4, -1, -1, dtype=F64)
    want = torch.einsum("t,tlc->lc", w / w.sum(), torch.stack(seen))
    torch.testing.assert_close(monitor.usage, want)


def test_nothing_grows_but_the_history():
    monitor = quiet()

    def held():
        own = vars(monitor._statistics.gradients) | vars(monitor._statistics.means)
        flat = [y for x in own.values() for y in (x.values() if isinstance(x, dict) else [x])]
        flat = [y for x in flat for y in (x if isinstance(x, list | tuple) else [x])]
        return sum(x.numel() for x in flat if isinstance(x, torch.Tensor)), len(flat)

    for _ in range(3):
        flow(monitor, torch.randn(8, 3), loss=1.0)
    before = held()
    for _ in range(30):
        flow(monitor, torch.randn(8, 3), loss=1.0)
    assert held() == before
    assert len(monitor.history) == 33


# What a look leaves alone, and when there is one


def test_only_every_nth_step_is_looked_at():
    monitor = quiet(every=4)
    for step in range(10):
        assert monitor.due == (step % 4 == 0)
        q = torch.randn(8, 3) if step % 4 == 0 else None  # whatever comes in between
        flow(monitor, q)
    assert [row["step"] for row in monitor.history] == [0, 4, 8]


def test_gradients_noise_logits_and_graph_stay_as_they_were():
    encoder = nn.Linear(4, 3)
    monitor = Monitor(encoder, every=1, tau=1.0)
    q = gt.Categorical(encoder(torch.randn(8, 4)))
    z = gt.reinmax(q.logits)
    loss = (z * torch.arange(3.0)).sum(-1).square().mean()
    state, logits = torch.get_rng_state(), q.logits.detach().clone()
    assert monitor.check_sample(z, q, loss=loss) == []
    assert all(p.grad is None for p in encoder.parameters())
    loss.backward()
    before = [p.grad.clone() for p in encoder.parameters()]
    versions = [p.grad._version for p in encoder.parameters()]
    monitor.step(q, loss=loss, z=z)
    for p, was, version in zip(encoder.parameters(), before, versions, strict=True):
        assert torch.equal(p.grad, was)
        assert p.grad._version == version
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(q.logits, logits)
    assert not z.retains_grad
    assert torch.is_grad_enabled()


def test_held_gradients_are_those_before_the_clipping():
    monitor = quiet(every=2)
    p = monitor.parameters[0]
    for step in range(5):
        p.grad = torch.full((3,), 10.0)
        if step < 4:
            monitor.hold()
        p.grad.mul_(0.01)
        monitor.step(torch.randn(8, 3))
        if step == 2:
            assert monitor.history[-1]["mean_norm"] == pytest.approx(10 * 3**0.5)
            assert monitor.history[-1]["grad_variance"] == 0.0
    want = [pytest.approx(x * 3**0.5) for x in (10.0, 10.0, 0.1)]  # what is held serves once
    assert [row["grad_norm"] for row in monitor.history] == want


def test_an_evaluation_adds_no_row_and_counts_no_step():
    model = nn.Linear(4, 3)
    monitor = Monitor(model, every=2)
    model.eval()
    monitor.step(torch.randn(8, 3))
    with torch.no_grad():
        quiet_one = quiet()
        quiet_one.step(torch.randn(8, 3))
    assert monitor.history == quiet_one.history == []
    assert monitor.due
    monitor.step(model(torch.randn(8, 4)), training=True)
    assert len(monitor.history) == 1


def test_the_temperature_is_read_where_it_stands():
    monitor = quiet(tau=gt.GumbelSoftmax(tau=0.7))
    flow(monitor, torch.randn(8, 3))
    for tau in (0.5, torch.tensor(0.25), nn.Parameter(torch.tensor(0.125)), gt.RLOO(), None):
        monitor.tau = tau
        flow(monitor, torch.randn(8, 3))
    got = [row["tau"] for row in monitor.history]
    assert got[:4] == [0.7, 0.5, 0.25, 0.125]
    assert all(map(math.isnan, got[4:]))


def test_printed_it_shows_the_last_row_and_the_warnings():
    monitor = quiet()
    assert str(monitor) == "Monitor: 0 steps, 0 observed"
    with pytest.warns(MonitorWarning):
        flow(monitor, torch.full((4, 3), torch.nan))
    lines = str(monitor).splitlines()
    assert lines[0] == "Monitor: 1 steps, 1 observed"
    numbers = [line for line in lines if line.startswith("  ")]
    assert len({line.index(line.split()[1], 4) for line in numbers}) == 1  # aligned
    assert lines[-1].startswith("nonfinite: ")


# Sound training


@pytest.mark.parametrize(
    "estimator",
    [
        gt.GumbelSoftmax(tau=0.7),
        gt.StraightThroughGumbelSoftmax(tau=1.0),
        gt.StraightThrough(),
        gt.ReinMax(),
        gt.GumbelRao(tau=0.5),
    ],
    ids=lambda e: type(e).__name__,
)
def test_sound_training_is_left_in_peace(estimator):
    monitor = train(gt.Bound(estimator).sample, tau=estimator)
    assert monitor.warnings == []
    assert len(monitor.history) == 40
    row = monitor.history[-1]
    assert row["dead_latents"] == row["dead_classes"] == row["bad_rows"] == 0
    assert row["mean_information"] > 0.1


@pytest.mark.parametrize("tau", [0.3, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("rows", [2, 16, 64])
@pytest.mark.parametrize(
    "draw",
    [
        gt.straight_through,
        gt.straight_through_gumbel_softmax,
        gt.gapped_straight_through,
        gt.gumbel_rao,
        gt.reinmax,
    ],
    ids=lambda f: f.__name__,
)
def test_no_sound_sample_is_suspected(draw, rows, tau):
    for flat in (False, True):
        logits = torch.zeros(rows, 4) if flat else torch.randn(rows, 4)
        logits.requires_grad_()
        z = draw(logits, tau=tau)
        loss = (z * torch.randn(4)).sum()
        assert quiet(tau=tau).check_sample(z, logits, loss=loss) == []


def test_samples_of_torch_distributions_are_not_suspected():
    logits = torch.randn(6, 4, requires_grad=True)
    for given in ({"logits": logits}, {"probs": logits.softmax(-1)}):
        own = td.OneHotCategoricalStraightThrough(**given)
        z = own.rsample()
        assert quiet(tau=1.0).check_sample(z, own) == []
        own.log_prob(z.detach())  # torch keeps logits and probs from now on
        assert quiet(tau=1.0).check_sample(own.rsample(), own) == []


def test_a_factor_that_a_temperature_explains_is_not_suspected():
    flat = torch.zeros(6, 2, requires_grad=True)  # here tau acts as a factor of the Jacobian
    assert quiet(tau=2.0).check_sample(gt.straight_through(flat), flat) == []


# Illnesses that show in the course of training


def test_a_gradient_that_vanishes_at_a_large_tau():
    with pytest.warns(MonitorWarning, match=r"gradient vanishes.*tau = 1e\+03 .*Lower it"):
        monitor = train(gt.Bound(gt.StraightThrough(tau=1e3)).sample, tau=1e3, beta=0.0)
    (found,) = (w for w in monitor.warnings if w.kind == "vanishing_gradient")
    row = next(r for r in monitor.history if r["step"] == found.step)
    assert found.value == row["relative_gradient"] < 1e-2
    assert row["attenuation"] < 0.25


def test_a_strong_gradient_at_a_large_tau_is_no_illness():
    monitor = quiet(tau=1e3, thresholds=Thresholds(warmup=2))
    for _ in range(4):
        flow(monitor, torch.randn(8, 3), loss=1.0)
    assert monitor.warnings == []


def test_a_gradient_of_zero_is_told_whatever_tau():
    monitor = quiet(thresholds=Thresholds(warmup=3))
    for _ in range(2):
        monitor.step(torch.randn(8, 3))
    with pytest.warns(MonitorWarning, match="exactly 0"):
        monitor.step(torch.randn(8, 3))
    assert monitor.warnings[0].step == 2


@pytest.mark.parametrize(("tau", "want"), [(0.01, {"exploding_variance"}), (1.0, set())])
def test_variance_that_explodes_at_a_small_tau(tau, want):
    theta, said = nn.Parameter(torch.zeros(32, 3)), []
    monitor = Monitor(theta, every=1, tau=tau)
    for _ in range(30):
        theta.grad = None
        z = gt.gumbel_softmax(theta, tau=tau)
        loss = (z * torch.tensor([0.0, 1.0, 2.0])).sum(-1).mean()
        loss.backward()
        with warned(said):
            monitor.step(torch.randn(8, 3), loss=loss)  # a law that is well
    assert kinds(monitor.warnings) == want
    if want:
        assert monitor.warnings[0].value < 0.1
        assert monitor.history[monitor.warnings[0].step]["snr"] == monitor.warnings[0].value
        assert "Raise tau" in said[0]


def test_posterior_collapse():
    with pytest.warns(MonitorWarning, match="posterior has collapsed.*nats"):
        monitor = train(gt.Bound(gt.ReinMax()).sample, steps=120, beta=50.0)
    assert kinds(monitor.warnings) == {"posterior_collapse"}
    assert monitor.warnings[0].value < 0.01


def test_a_collapse_is_judged_only_after_the_warmup():
    monitor = quiet(thresholds=Thresholds(warmup=5))
    for _ in range(4):
        flow(monitor, torch.zeros(8, 3))
    assert monitor.warnings == []
    with pytest.warns(MonitorWarning):
        flow(monitor, torch.zeros(8, 3))


def test_latents_that_do_not_depend_on_the_data():
    monitor = quiet(thresholds=Thresholds(warmup=2))
    logits = torch.randn(32, 4, 3)
    logits[:, 1:3] = torch.tensor([0.3, 0.0, -0.2])
    with pytest.warns(MonitorWarning, match="2 of 4 latents do not depend"):
        flow_twice(monitor, gt.Categorical(logits, event_dims=1))
    assert kinds(monitor.warnings) == {"dead_latents"}
    assert monitor.warnings[0].value == 0.5


def test_a_single_row_says_nothing_of_dependence():
    monitor = quiet(thresholds=Thresholds(warmup=2))
    for _ in range(3):
        flow(monitor, torch.zeros(3))
        flow(monitor, torch.zeros(1, 3))
    assert monitor.warnings == []
    assert math.isnan(monitor.history[-1]["mutual_information"])


@pytest.mark.parametrize("law", [gt.Categorical, gt.Bernoulli])
def test_unused_codes(law):
    monitor = quiet(thresholds=Thresholds(warmup=2))
    logits = torch.randn(32, 2, 4)
    logits[..., 2:] -= 20.0
    said = []
    with warned(said):
        flow_twice(monitor, law(logits, event_dims=1 if law is gt.Categorical else 2))
    (found,) = (w for w in monitor.warnings if w.kind == "unused_codes")
    assert found.value == (0.5 if law is gt.Categorical else 0.25)
    want = "4 of 8 classes" if law is gt.Categorical else "4 of 16 classes"
    assert any(f"{want} are hardly ever probable" in text for text in said)


def test_masked_classes_are_not_dead():
    monitor = quiet(thresholds=Thresholds(warmup=2))
    logits = torch.randn(32, 4)
    logits[:, 0] = -torch.inf  # never allowed
    logits[::2, 1] = -torch.inf  # allowed in half of the rows
    for _ in range(3):
        flow(monitor, logits)
    row = monitor.history[-1]
    assert monitor.warnings == []
    assert (row["classes"], row["dead_classes"], row["bad_rows"]) == (3, 0, 0)
    p = logits.softmax(-1)
    allowed = torch.where(p > 0, p, torch.nan)
    torch.testing.assert_close(monitor.usage[1:], allowed.nanmean(0)[1:])
    assert monitor.usage[0].isnan()
    entropy = -(torch.xlogy(p, p)).sum(-1)
    want = ((~logits.isneginf()).sum(-1).log() - entropy).mean()
    assert row["kl"] == pytest.approx(float(want), rel=1e-5)


def test_a_class_that_is_seldom_allowed_is_not_dead():
    monitor = quiet(thresholds=Thresholds(warmup=2))
    logits = torch.randn(500, 3)
    logits[1:, 0] = -torch.inf
    flow_twice(monitor, logits)
    assert monitor.history[-1]["dead_classes"] == 0


def test_numbers_that_are_not_finite():
    good = torch.randn(8, 3)
    bad = good.clone()
    bad[0, 0], bad[1, 2], bad[2] = torch.nan, torch.inf, -torch.inf
    for q, loss, slope, words in (
        (bad, 1.0, 1.0, "3 rows of logits"),
        (good, torch.tensor(torch.nan), 1.0, "loss is nan"),
        (good, 1.0, torch.inf, "gradients of 1 parameters"),
        (gt.Categorical(good.half()), 1.0, torch.nan, "gradients of 1 parameters"),
    ):
        monitor = quiet()
        flow(monitor, good, loss=1.0)
        usage = monitor.usage.clone()
        monitor.parameters[0].grad = torch.full((3,), slope)
        with pytest.warns(MonitorWarning, match=words):
            monitor.step(q, loss=loss)
        assert kinds(monitor.warnings) == {"nonfinite"}
        assert torch.equal(monitor.usage, usage)  # it does not enter the running numbers
        flow(monitor, good, loss=1.0)
        assert math.isfinite(monitor.history[-1]["snr"])


def test_each_kind_is_warned_about_once_and_kept():
    monitor = quiet()
    with pytest.warns(MonitorWarning) as caught:
        flow_twice(monitor, torch.full((4, 3), torch.nan))
    assert len(caught) == len(monitor.warnings) == 1
    assert str(caught[0].message) == f"step 0: {monitor.warnings[0].text}"
    assert caught[0].filename == __file__  # it points at the loop


def test_a_warning_that_is_made_an_error_loses_nothing():
    monitor = quiet()
    with pytest.raises(MonitorWarning):
        flow(monitor, torch.full((4, 3), torch.nan))
    assert kinds(monitor.warnings) == {"nonfinite"}
    assert len(monitor.history) == 1
    flow(monitor, torch.randn(4, 3))


# Samples and losses


@DTYPES
@pytest.mark.parametrize("law", [gt.Categorical, gt.Bernoulli])
def test_soft_samples_at_evaluation(law, dtype):
    model = nn.Linear(4, 3)
    logits = model(torch.randn(8, 4)).to(dtype)
    soft = logits.softmax(-1) if law is gt.Categorical else logits.sigmoid()
    sharp = hard(soft) if law is gt.Categorical else soft.round()
    monitor = Monitor(model)
    monitor.step(law(logits), z=soft)  # in training a relaxed sample is allowed
    assert monitor.warnings == []
    model.eval()
    for z in (sharp, sharp - soft.detach() + soft, sharp.expand(2, 8, 3)):
        Monitor(model).step(law(logits), z=z)
    with pytest.warns(MonitorWarning, match="evaluated on soft samples"):
        monitor.step(law(logits), z=soft)
    assert kinds(monitor.warnings) == {"soft_at_evaluation"}
    with torch.no_grad(), pytest.warns(MonitorWarning, match="evaluated on soft samples"):
        quiet().check_sample(soft, law(logits))


def straight_lines(logits, tau):
    soft = (logits / tau).softmax(-1)
    one = hard(soft + torch.rand_like(soft))
    through = one - soft.detach() + soft
    return {
        "right": through,
        "right too": one + (soft - soft.detach()),
        "soft_value": soft - one.detach() + one,
        "no_gradient": one,
        "no_gradient too": one - soft + soft,
        "reversed_gradient": one - soft + soft.detach(),
        "doubled_gradient": through - soft.detach() + soft,
    }


@DTYPES
@pytest.mark.parametrize("tau", [1.0, 0.5])
@pytest.mark.parametrize("rows", [1, 6])
@pytest.mark.parametrize(
    "name",
    [
        *("right", "right too", "soft_value", "no_gradient", "no_gradient too"),
        *("reversed_gradient", "doubled_gradient"),
    ],
)
def test_straight_through_lines_the_right_and_the_wrong_way_round(name, rows, tau, dtype):
    logits = torch.randn(rows, 2, 4).to(dtype).requires_grad_()
    z = straight_lines(logits, tau)[name]
    monitor = quiet(tau=tau)
    kind = name.removesuffix(" too")
    if kind == "right":
        assert monitor.check_sample(z, logits) == []
        return
    with pytest.warns(MonitorWarning, match="soft.detach"):
        found = monitor.check_sample(z, logits)
    assert kinds(found) == {kind}
    z.sum().backward() if z.requires_grad else None  # the graph is still there


def test_a_reversed_gumbel_sample_is_found_in_many_rows():
    logits = torch.randn(16, 4, requires_grad=True)
    soft = gt.gumbel_softmax(logits, tau=0.7)
    with pytest.warns(MonitorWarning, match="wrong way"):
        quiet(tau=0.7).check_sample(hard(soft) - soft + soft.detach(), logits)


def test_straight_through_lines_of_bernoulli():
    logits = torch.randn(6, 5, requires_grad=True)
    soft = logits.sigmoid()
    one = (torch.rand_like(soft) < soft).float()
    q, right = gt.Bernoulli(logits), one + (soft - soft.detach())
    assert quiet(tau=1.0).check_sample(right, q) == []
    for z, kind in (
        (one, "no_gradient"),
        (soft, "soft_value"),
        (one - soft + soft.detach(), "reversed_gradient"),
        (right + soft - soft.detach(), "doubled_gradient"),
    ):
        with pytest.warns(MonitorWarning):
            assert kinds(quiet(tau=1.0).check_sample(z, q)) == {kind}


def test_samples_in_front_and_a_saturated_law_are_no_illness():
    logits = torch.randn(6, 4, requires_grad=True)
    for samples in (2, 5):
        z = gt.straight_through(logits.expand(samples, 6, 4))
        assert quiet(tau=1.0).check_sample(z, logits) == []
    sure = torch.tensor([[200.0, 0.0, 0.0]], requires_grad=True)
    assert quiet(tau=1.0).check_sample(gt.straight_through(sure), sure) == []


TRAPS = {
    "z.sum": lambda z: z.sum(-1).square().mean(),
    "z.mean": lambda z: (z.mean(-1) - 3.0).square().sum(),
    "equal weights": lambda z: (z @ torch.full((4, 2), 0.3, dtype=z.dtype)).cos().sum(),
}


@DTYPES
@pytest.mark.parametrize("trap", TRAPS)
def test_the_sum_trap(trap, dtype):
    logits = torch.randn(6, 4).to(dtype).requires_grad_()
    z = gt.straight_through(logits)
    with pytest.warns(MonitorWarning, match="same for every class"):
        found = quiet().check_sample(z, logits, loss=TRAPS[trap](z))
    assert kinds(found) == {"sum_trap"}


def test_the_sum_trap_is_found_in_a_step_if_z_kept_its_gradient():
    weight = nn.Parameter(torch.randn(6, 4))
    for loss_of, want in ((TRAPS["z.sum"], {"sum_trap"}), (lambda z: z[:, 0].sum(), set())):
        monitor, said = Monitor(weight), []
        z = gt.straight_through(weight * 1.0)
        z.retain_grad()
        loss = loss_of(z)
        loss.backward()
        with warned(said):
            monitor.step(weight, loss=loss, z=z)
        assert kinds(monitor.warnings) == want


def test_the_sum_trap_minds_masked_classes():
    logits = torch.randn(6, 4)
    logits[:, 3] = -torch.inf
    logits.requires_grad_()
    z = gt.straight_through(logits)
    with pytest.warns(MonitorWarning, match="same for every class"):
        quiet().check_sample(z, logits, loss=(z * torch.tensor([1.0, 1.0, 1.0, 7.0])).sum())
    z = gt.straight_through(logits)
    assert quiet().check_sample(z, logits, loss=(z * torch.tensor([1.0, 1, 2, 7])).sum()) == []


def test_a_loss_without_the_sample():
    logits = torch.randn(6, 4, requires_grad=True)
    z = gt.straight_through(logits)
    for loss in (logits.sum(), (z.detach() * torch.arange(4.0)).sum(), (0.0 * z).sum()):
        with pytest.warns(MonitorWarning, match="does not depend on the sample"):
            assert kinds(quiet().check_sample(z, logits, loss=loss)) == {"unused_sample"}


# Refusals


def test_what_cannot_be_watched_is_refused():
    p = nn.Parameter(torch.ones(3))
    used = iter([p])
    Monitor(used)
    with refuses(gt.ConfigError, "none of the 0", "iterator"):
        Monitor(used)
    with refuses(gt.ConfigError, "none of the 1"):
        Monitor([torch.ones(3)])
    with refuses(gt.UnsupportedError, "tuple", r"module.parameters\(\)"):
        Monitor(nn.Linear(2, 2).named_parameters())
    for every in (0, 2.5, True):
        with refuses(gt.DomainError, "every", repr(every)):
            Monitor(p, every=every)
    for decay in (0.0, 1.0):
        with refuses(gt.DomainError, "decay", str(decay)):
            Monitor(p, decay=decay)
    with refuses(gt.DomainError, "tau"):
        Monitor(p, tau=-1.0)
    with refuses(gt.UnsupportedError, "tau", "str"):
        Monitor(p, tau="cold")
    with refuses(gt.DomainError, "warmup"):
        Thresholds(warmup=1)
    with refuses(gt.DomainError, "dead_share"):
        Thresholds(dead_share=0.0)


def test_what_does_not_fit_is_refused():
    monitor = quiet(prior=torch.zeros(5))
    with refuses(gt.ShapeError, "prior", re.escape("(8, 3)"), re.escape("(5,)")):
        flow(monitor, torch.randn(8, 3))
    monitor = quiet()
    flow(monitor, torch.randn(8, 3))
    with refuses(gt.ShapeError, re.escape("(3,)"), re.escape("(2, 3)")):
        flow(monitor, gt.Categorical(torch.randn(8, 2, 3), event_dims=1))
    with refuses(gt.UnsupportedError, "one_hot", "int64"):
        monitor.check_sample(torch.zeros(8, dtype=torch.long), torch.randn(8, 3))
    with refuses(gt.ShapeError, re.escape("(8, 3)"), re.escape("(8, 4)")):
        monitor.check_sample(torch.zeros(8, 4), torch.randn(8, 3))
    with refuses(gt.UnsupportedError, "discrete"):
        flow(monitor, td.Normal(0.0, 1.0))


def test_an_empty_batch_says_nothing():
    monitor = quiet()
    flow(monitor, torch.zeros(0, 3))
    assert monitor.check_sample(torch.zeros(0, 3), torch.zeros(0, 3, requires_grad=True)) == []
    assert monitor.history == []
