"""Figures from fresh numbers: held against closed forms, and against one another."""

import csv
import itertools
import json
import math
from collections import defaultdict
from functools import cache

import pytest
import torch

import gradthrough as gt
from gradthrough import cli
from gradthrough.bench.figures import FIGURES
from gradthrough.bench.figures.linear import exact, gradients, slope, spread
from gradthrough.bench.figures.make import figure, make
from gradthrough.bench.figures.quadrature import binary_moments, forms
from gradthrough.bench.figures.tau_variance import TAUS
from gradthrough.bench.figures.temperature import TAUS as SHOWN
from gradthrough.bench.figures.variance import LOOKS, OFFSETS, REFERENCE, methods

EVERY = pytest.mark.parametrize("name", FIGURES)
R = torch.tensor([0.3, 0.9, 0.1, 0.5, 0.7, 0.2, 0.8, 0.4], dtype=torch.float64)
FLAT = torch.zeros(8, dtype=torch.float64)


@cache
def sheet(name):
    return FIGURES[name](0, True)


def rows(name):
    return sheet(name).rows


def column(found, name):
    return torch.tensor([row[name] for row in found], dtype=torch.float64)


def those(name, **where):
    return [row for row in rows(name) if all(row[k] == v for k, v in where.items())]


# What every figure is ------------------------------------------------------------------------


@EVERY
def test_a_figure_is_a_picture_with_its_numbers_and_their_environment(name, tmp_path, monkeypatch):
    made = sheet(name)
    monkeypatch.setitem(FIGURES, name, lambda seed, smoke: made)
    picture, numbers = make(name, out=tmp_path / "new", seed=0, smoke=True)
    assert picture.read_bytes().startswith(b"\x89PNG")
    with numbers.open(encoding="utf-8") as file:
        written = list(csv.DictReader(file))
    assert len(written) == len(rows(name))
    for row, want in zip(written, rows(name), strict=True):
        where = json.loads(row.pop("environment"))
        assert where.keys() >= {"commit", "dirty", "device", "torch", "threads"}
        assert (where["seed"], where["smoke"]) == (0, True)
        assert row.keys() == want.keys()
        for key, x in want.items():
            got = float(row[key]) if isinstance(x, float) else row[key]
            assert got == (
                pytest.approx(x, rel=1e-7) if isinstance(x, float) else "" if x is None else str(x)
            )


@EVERY
def test_a_seed_makes_the_numbers(name):
    assert FIGURES[name](0, True).rows == rows(name)
    assert FIGURES[name](1, True).rows != rows(name)


def test_an_unknown_figure_is_refused_with_the_near_ones(tmp_path):
    with pytest.raises(gt.ConfigError, match=r"'varience'\. Did you mean 'variance' or 'tau-va"):
        figure("varience")
    with pytest.raises(gt.ConfigError, match="Known: gumbel, gumbel-max, temperature"):
        make("zzz", out=tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_an_error_in_words(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(gt.ConfigError, match="cannot be written"):
        make("gumbel-max", out=tmp_path / "file", smoke=True)


def test_the_command_draws_and_says_where(tmp_path, capsys):
    cli.main(["bench", "figure", "gumbel-max", "--out", str(tmp_path), "--seed", "3", "--smoke"])
    assert capsys.readouterr().out.split() == [
        str(tmp_path / "gumbel-max.png"), str(tmp_path / "gumbel-max.csv")
    ]  # fmt: skip
    assert '""seed"": 3' in (tmp_path / "gumbel-max.csv").read_text()
    with pytest.raises(SystemExit) as stop:
        cli.main(["bench", "figure", "gumble", "--out", str(tmp_path)])
    assert stop.value.code == 2
    assert "Did you mean 'gumbel'" in capsys.readouterr().err


def test_the_command_names_every_figure(capsys):
    with pytest.raises(SystemExit):
        cli.main(["bench", "figure", "--help"])
    told = capsys.readouterr().out
    assert all(name in told for name in FIGURES)


# Gumbels -------------------------------------------------------------------------------------


def test_the_inverse_cdf_is_that_of_the_library_and_inverts_the_cdf():
    found = those("gumbel", part="inverse cdf")
    u, g = column(found, "left"), column(found, "value")
    torch.testing.assert_close(g, column(found, "exact"), rtol=0, atol=1e-12)
    torch.testing.assert_close((-(-g).exp()).exp(), u, rtol=0, atol=1e-12)


def test_the_density_is_the_derivative_of_the_cdf():
    found = those("gumbel", part="density")
    x, density = column(found, "left").requires_grad_(), column(found, "value")
    (want,) = torch.autograd.grad((-(-x).exp()).exp().sum(), x)
    torch.testing.assert_close(density, want, rtol=0, atol=1e-12)


def test_the_histogram_is_near_the_mass_of_its_bins():
    found = FIGURES["gumbel"](0, False).rows
    found = [row for row in found if row["part"] == "histogram"]
    width = column(found, "right") - column(found, "left")
    cdf = torch.distributions.Gumbel(
        torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64)
    ).cdf
    mass = cdf(column(found, "right")) - cdf(column(found, "left"))
    torch.testing.assert_close(column(found, "exact") * width, mass, rtol=0, atol=1e-12)
    counts = 20_000 * width * column(found, "value")
    torch.testing.assert_close(counts, counts.round(), rtol=0, atol=1e-6)
    apart = (counts - 20_000 * mass).abs() / (20_000 * mass * (1 - mass)).sqrt()
    assert apart[mass > 5 / 20_000].max() < 4.5


def test_the_frequencies_of_gumbel_max_are_near_softmax():
    found = FIGURES["gumbel-max"](0, False).rows
    p, frequency = column(found, "softmax"), column(found, "frequency")
    assert p.sum() == pytest.approx(1)
    assert frequency.sum() == pytest.approx(1)
    assert ((frequency - p).abs() / (p * (1 - p) / 8_000).sqrt()).max() < 4.5
    half = 1.96 * (frequency * (1 - frequency) / 8_000).sqrt()
    torch.testing.assert_close(column(found, "high") - frequency, half)
    torch.testing.assert_close(frequency - column(found, "low"), half)


# Temperature ---------------------------------------------------------------------------------


def shown(tau, what):
    return column(those("temperature", tau=tau, what=what), "value")


@pytest.mark.parametrize("what", ["sample 1", "sample 2", "sample 3"])
def test_a_temperature_scales_the_log_ratios_of_one_draw(what):
    logs = [tau * shown(tau, what).log() for tau in SHOWN[:3]]
    first, *others = (x - x[0] for x in logs)
    for other in others:
        torch.testing.assert_close(other, first, rtol=0, atol=1e-12)
    assert len({int(shown(tau, what).argmax()) for tau in SHOWN}) == 1


def soft_means(theta, tau):
    """E softmax((theta + G) / tau), as an integral over one exponential mixture."""
    y = torch.linspace(-45.0, 5.0, 500, dtype=torch.float64)
    u = torch.linspace(-60.0 * max(tau, 1), 8.0 * (1 + tau), 1500, dtype=torch.float64)
    x = tau * y - u[:, None] - theta[:, None, None]
    step = y[1] - y[0]
    none = (((-(-x).exp()).exp()) * (y - y.exp()).exp()).sum(-1) * step
    once = (((-x - (-x).exp()).exp()) * (y - y.exp()).exp()).sum(-1) * step
    others = torch.stack([none[[j for j in range(len(theta)) if j != i]].prod(0)
                          for i in range(len(theta))])  # fmt: skip
    return (once * others).sum(-1) * (u[1] - u[0])


@pytest.mark.parametrize("tau", SHOWN)
def test_the_mean_of_soft_samples_is_near_its_integral_and_not_softmax(tau):
    pi = shown(tau, "softmax")
    want = soft_means(pi.log(), tau)
    assert want.sum() == pytest.approx(1, abs=1e-9)
    assert (shown(tau, "mean") - want).abs().max() < 4.5 * 0.5 / math.sqrt(500)
    distance = shown(tau, "distance").item()
    assert distance == pytest.approx((shown(tau, "mean") - pi).abs().sum().item() / 2)
    assert (want - pi).abs().sum() > 1e-4


def test_cold_samples_are_nearly_one_hot():
    nearly = [shown(tau, "nearly one-hot").item() for tau in SHOWN]
    assert nearly == sorted(nearly)
    assert nearly[0] == 0
    assert nearly[-1] > 0.7


# Moments without a draw ----------------------------------------------------------------------


@pytest.mark.parametrize("tau", [0.001, 0.05, 0.5, 1.0, 5.0])
@pytest.mark.parametrize("logit", [0.3, -2.0])
def test_two_integrals_of_one_bit_agree(tau, logit):
    mean, variance = binary_moments(gt.StraightThroughGumbelSoftmax(tau), logit, tau)
    form = forms(torch.tensor([logit, 0.0], dtype=torch.float64), tau)
    other = form.moments(torch.tensor([1.0, 0.0], dtype=torch.float64))
    assert mean == pytest.approx(other[0].item(), rel=1e-10)
    assert variance == pytest.approx(other[1].item(), rel=1e-9)


def test_the_variance_of_a_bit_is_what_others_found():
    # Of logit 0.3, computed elsewhere.
    known = {0.02: 0.040, 0.05: 0.038, 0.1: 0.035, 0.2: 0.029, 0.5: 0.016, 1.0: 0.006}
    for tau, want in known.items():
        _, variance = binary_moments(gt.StraightThroughGumbelSoftmax(tau), 0.3, tau)
        assert tau * variance == pytest.approx(want, abs=5.1e-4)


@pytest.mark.parametrize("tau", [0.1, 0.5, 2.0])
def test_the_mean_form_is_the_derivative_of_the_soft_mean(tau):
    theta = torch.tensor([0.5, -1.0, 0.0, 2.0], dtype=torch.float64, requires_grad=True)
    value = soft_means(theta, tau) @ R[:4]
    (want,) = torch.autograd.grad(value, theta)
    mean, _ = forms(theta.detach(), tau).moments(R[:4])
    assert mean.item() == pytest.approx(want[0].item(), rel=1e-9)


@pytest.mark.parametrize("tau", [0.2, 1.0])
def test_the_square_form_is_that_of_drawn_gradients(tau):
    theta = torch.tensor([0.5, -1.0, 0.0, 2.0], dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    wide = R[:4].expand(100_000, 4)
    one = gt.GumbelSoftmax(tau)
    value, error = spread(gradients(one, wide, logits=theta, generator=generator))
    _, want = forms(theta, tau).moments(R[:4])
    assert abs(value - want.item()) < 4.5 * error


def test_more_nodes_change_nothing():
    few, many = (forms(torch.linspace(-1, 1, 4, dtype=torch.float64), 0.3, n) for n in (400, 900))
    for x, y in zip(few, many, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-11, atol=1e-14)


def test_rewards_that_are_all_the_same_have_no_gradient():
    for number in forms(FLAT, 0.5).moments(torch.full((8,), 3.0, dtype=torch.float64)):
        assert number == 0


# A linear f ----------------------------------------------------------------------------------


def test_the_exact_moments_are_the_formulas_written_out():
    p, score = 1 / 8, (torch.arange(8) == 0).double() - 1 / 8
    mean = (R[0] - R.mean()) / 8
    made = methods(R)
    for name, c in (("REINFORCE", 0.0), ("exact baseline", R.mean())):
        found = exact(made[name], R)
        want = (p * ((R - c) * score).square()).sum() - mean**2
        torch.testing.assert_close(found.mean, mean, rtol=0, atol=1e-15)
        torch.testing.assert_close(found.variance(5), want / 5, rtol=1e-12, atol=0)
    # ReinMax is half of straight-through, a constant here, and half of REINFORCE with a baseline.
    reinmax = exact(made["ReinMax"], R)
    torch.testing.assert_close(reinmax.mean, mean, rtol=0, atol=1e-15)
    quarter = exact(made["exact baseline"], R).one / 4
    torch.testing.assert_close(reinmax.one, quarter, rtol=1e-12, atol=0)
    torch.testing.assert_close(exact(made["RLOO"], R).mean, mean, rtol=0, atol=1e-15)


@pytest.mark.parametrize("samples", [2, 3])
def test_the_variance_of_rloo_is_that_of_all_its_draws(samples):
    q = gt.Categorical(FLAT)
    each = q.noise_for(q.support())
    draws = torch.tensor(list(itertools.product(range(8), repeat=samples)))
    found = gradients(
        gt.RLOO(), R.expand(len(draws), 8), samples=samples, noise=each[draws].T.contiguous()
    )
    want = found.var(correction=0)
    torch.testing.assert_close(exact(gt.RLOO(), R).variance(samples), want, rtol=1e-10, atol=0)


def test_many_rewards_at_once_are_each_on_its_own():
    many = torch.stack((R, R.flip(0), R + 2))
    for name, one in methods(many.unsqueeze(-2)).items():
        if name == "RLOO":
            continue
        together = exact(one, many).variance(3)
        alone = [exact(methods(r)[name], r).variance(3) for r in many]
        torch.testing.assert_close(together, torch.stack(alone), rtol=1e-9, atol=1e-18)


def test_hard_or_soft_the_gradient_of_a_linear_f_is_the_same_draw_by_draw():
    noise = torch.rand(1, 50, 8, dtype=torch.float64)
    soft, hard = (
        gradients(one, R.expand(50, 8), noise=noise)
        for one in (gt.GumbelSoftmax(0.5), gt.StraightThroughGumbelSoftmax(0.5))
    )
    torch.testing.assert_close(soft, hard, rtol=0, atol=1e-15)


def test_an_offset_moves_plain_reinforce_alone():
    near, far = ({n: exact(m, r).variance(10) for n, m in methods(r).items()} for r in (R, R + 3))
    for name in LOOKS:
        if name == "REINFORCE":
            assert far[name] > 20 * near[name]
        else:
            torch.testing.assert_close(far[name], near[name], rtol=1e-9, atol=0)


# The figures of variances --------------------------------------------------------------------


@pytest.mark.parametrize("reward", OFFSETS)
def test_measured_variances_are_near_the_exact_ones(reward):
    found = those("variance", reward=reward, statistic="variance")
    assert {row["estimator"] for row in found} == set(LOOKS)
    for row in found:
        assert row["low"] < row["value"] < row["high"]
    # Of 50 trials each: one number for all, as the tails are long.
    ratio = column(found, "value") / column(found, "exact")
    assert ratio.log().mean().abs() < 0.2


@pytest.mark.parametrize("reward", OFFSETS)
def test_the_exact_variance_falls_like_one_over_the_samples(reward):
    for row in those("variance", reward=reward, statistic="slope"):
        if row["estimator"] == "RLOO":
            assert -1.6 < row["exact"] < -1.05  # its baseline becomes better, too
        else:
            assert row["exact"] == pytest.approx(-1, abs=1e-9)


def test_the_measured_slopes_are_near_the_exact_ones():
    found = those("variance", statistic="slope")
    apart = column(found, "value") - column(found, "exact")
    assert apart.mean().abs() < 0.1
    assert apart.abs().max() < 0.6


def test_means_are_near_the_exact_ones_and_only_gumbel_softmax_is_off():
    truth = {}
    for row in those("variance", statistic="mean"):
        assert abs(row["value"] - row["exact"]) < 4.5 / 1.96 * (row["high"] - row["value"])
        truth.setdefault(row["reward"], {})[row["estimator"]] = row["exact"]
    for found in truth.values():
        (want,) = {round(found[name], 12) for name in LOOKS if "τ" not in name}
        assert {round(x / want, 4) for n, x in found.items() if "τ" in n} == {0.9225}


def test_ratios_are_of_the_variances_with_most_samples():
    for row in those("variance", statistic="ratio"):
        where = {"reward": row["reward"], "statistic": "variance", "samples": row["samples"]}
        own, below = (
            those("variance", estimator=name, **where)[0] for name in (row["estimator"], REFERENCE)
        )
        assert row["exact"] == own["exact"] / below["exact"]
        assert row["value"] == own["value"] / below["value"]


def test_the_tenfold_needs_an_offset_and_no_baseline():
    exact_ratios = defaultdict(dict)
    for row in those("variance", statistic="ratio"):
        exact_ratios[row["estimator"]][row["reward"]] = row["exact"]
    first, *_, last = OFFSETS
    assert exact_ratios["REINFORCE"][first] < 10 < 100 < exact_ratios["REINFORCE"][last]
    for name in ("exact baseline", "RLOO", "ReinMax"):
        assert max(exact_ratios[name].values()) < 3
    for row in those("variance", statistic="ratio, any r", estimator="exact baseline"):
        assert row["low"] < row["value"] < row["high"] < 3


@pytest.mark.parametrize("law", ["1 bit", "8 classes"])
def test_the_exponent_of_tau_tends_to_minus_one(law):
    found = those("tau-variance", law=law)
    exponents = [row["exponent"] for row in found[1:]]
    assert exponents == sorted(exponents)  # from below, as tau falls
    assert exponents[-1] == pytest.approx(-1, abs=0.06)  # at 0.02 and 0.01
    points = [(row["tau"], row["variance"]) for row in found[-2:]]
    assert slope(points) == pytest.approx(exponents[-1])


def test_tau_times_the_variance_tends_to_the_limit():
    bit = torch.tensor([0.3, 0.0], dtype=torch.float64)
    p = bit.softmax(-1)[0].item()
    _, variance = binary_moments(gt.StraightThroughGumbelSoftmax(1e-5), 0.3, 1e-5)
    assert 1e-5 * variance == pytest.approx(p * (1 - p) / 6, rel=1e-4)
    _, variance = forms(FLAT, 1e-5).moments(R)
    assert 1e-5 * variance.item() == pytest.approx(
        (R[0] - R).square().sum().item() / 64 / 6, rel=1e-4
    )
    for row in rows("tau-variance"):
        assert row["tau x variance"] < row["limit"]
        assert row["tau x variance"] == pytest.approx(row["tau"] * row["variance"])
    assert those("tau-variance", law="1 bit")[0]["limit"] == pytest.approx(p * (1 - p) / 6)


def test_drawn_variances_over_tau_are_near_the_exact_ones():
    found = rows("tau-variance")
    assert {row["tau"] for row in found} < set(TAUS)
    for row in found:
        error = (row["high"] - row["low"]) / 2 / 1.96
        assert abs(row["drawn"] - row["variance"]) < 4.5 * error
