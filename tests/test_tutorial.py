"""The tutorial's two VAEs, the temperature that decays, and the numbers on the tutorial's page."""

import csv
import importlib.util
import itertools
import json
import math
import re
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch

import gradthrough as gt
from gradthrough import cli
from gradthrough.bench import loop
from gradthrough.bench.cells import cells
from gradthrough.bench.config import RunConfig
from gradthrough.bench.experiment_file import load
from gradthrough.bench.optimizers import tempered
from gradthrough.bench.request import Training, run_requested
from gradthrough.bench.seeds import Seeds
from gradthrough.bench.tasks import TASKS
from gradthrough.bench.tasks.gaussian_vae import GaussianVAE
from gradthrough.bench.tasks.tutorial_vae import TutorialVAE
from gradthrough.bench.together import run_together
from gradthrough.bench.train import run

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "tutorial.md"
TINY = {"hidden": (8,), "bound_samples": 3}
CATEGORICAL = TutorialVAE("digits", latents=2, classes=3, **TINY)
NORMAL = GaussianVAE("digits", latents=2, **TINY)
BOTH = pytest.mark.parametrize("task", [CATEGORICAL, NORMAL], ids=["categorical", "normal"])
EVERY = pytest.mark.parametrize("key", gt.ESTIMATORS)


def zero(f, q):
    """An estimator that says 0 whatever f is: what is left of the loss is the KL."""
    return torch.zeros(gt.as_distribution(q).batch_shape)


def with_laws(task, code):
    """Return the task's model with an encoder that puts out these numbers."""
    model = task.model(Seeds(0))
    model.encoder = torch.nn.Identity()
    return model, torch.tensor(code, requires_grad=True)


# Training ------------------------------------------------------------------------------------


def trained(task, estimator, steps=3):
    model = task.model(Seeds(0))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    bound = gt.Bound(estimator, estimator.traits.min_samples, torch.Generator().manual_seed(1))
    losses = []
    for batch in itertools.islice(task.batches("train", Seeds(0), epoch=0, size=20), steps):
        loss = task.losses(model, batch, bound)
        assert loss.shape == (20,)
        loss.mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
    return torch.stack(losses), dict(model.named_parameters())


@BOTH
@EVERY
def test_every_estimator_trains_the_model_or_is_refused_with_a_reason(task, key):
    estimator = gt.estimator(key)
    reason = task.refuses(estimator)
    family = task.law().family
    assert (reason is None) == (family in estimator.traits.families)
    if reason is not None:
        assert family in reason
        return
    losses, after = trained(task, estimator)
    again, repeated = trained(task, estimator)
    before = dict(task.model(Seeds(0)).named_parameters())
    assert losses.isfinite().all()
    assert torch.equal(losses, again)
    for name, x in after.items():
        assert x.isfinite().all()
        assert not torch.equal(x, before[name]), name
        assert torch.equal(x, repeated[name])


@pytest.mark.parametrize("key", ["pathwise", "rloo", "reinforce"])
def test_the_continuous_model_has_the_estimators_of_the_tutorials(key):
    assert NORMAL.refuses(gt.estimator(key)) is None


def test_a_refused_estimator_is_a_run_that_is_skipped(tmp_path):
    one = RunConfig(NORMAL.name, NORMAL.options(), "reinmax", epochs=1)
    result = run(one, out=tmp_path, progress=False, task=NORMAL)
    assert result.status == "skipped"
    assert "the distribution is continuous" in result.records[-1].reason


@BOTH
def test_a_run_has_the_metrics_of_its_task(task, tmp_path):
    task = replace(task, kl_epochs=1, free_bits=0.1)
    one = RunConfig(task.name, task.options(), "rloo", epochs=2, batch_size=500)
    result = run(one, out=tmp_path, accelerator="cpu", progress=False, task=task)
    found = {(r.split, r.metric) for r in result.records if r.kind == "metric"}
    tested = {("test", name) for name in ("neg_elbo", "neg_bound", "kl")}
    assert (result.status, found) == ("done", {("train", "loss"), *tested})
    assert len(list(tmp_path.rglob("*.png"))) == 2


TOGETHER = [
    (CATEGORICAL, "reinmax"), (NORMAL, "pathwise"), (NORMAL, "rloo"), (NORMAL, "measure_valued")
]  # fmt: skip


@pytest.mark.parametrize(("task", "key"), TOGETHER, ids=[f"{t.name}-{k}" for t, k in TOGETHER])
def test_seeds_train_together_while_the_weight_grows(task, key, tmp_path):
    task = replace(task, kl_epochs=2)
    one = RunConfig(task.name, task.options(), key, epochs=2, batch_size=500)
    together = run_together(
        one, (0, 1), out=tmp_path / "two", accelerator="cpu", progress=False, task=task
    )
    for seed, result in enumerate(together):
        alone = run(
            replace(one, seed=seed), out=tmp_path / "one", accelerator="cpu", progress=False,
            task=task,
        )  # fmt: skip
        for a, b in zip(alone.records, result.records, strict=True):
            assert (a.split, a.metric) == (b.split, b.metric)
            assert a.value == (None if b.value is None else pytest.approx(b.value, rel=1e-4))


# The models ----------------------------------------------------------------------------------


def test_the_sizes_are_those_of_the_tutorials():
    def shapes(task):
        model = task._network(784)
        return [tuple(p.shape) for name, p in model.named_parameters() if "weight" in name]

    assert shapes(TutorialVAE()) == [(400, 784), (200, 400), (400, 200), (784, 400)]
    assert shapes(GaussianVAE()) == [(400, 784), (40, 400), (400, 20), (784, 400)]
    assert (TutorialVAE().latents, TutorialVAE().classes, GaussianVAE().latents) == (10, 20, 20)
    assert TutorialVAE().law().logits.shape == (1, 10, 20)


def test_the_kl_to_the_uniform_law_by_hand():
    model, code = with_laws(CATEGORICAL, [[0.5, 0.25, 0.25, 1.0, 1.0, 1.0]])
    kls = model.kls(model.encode(code.log()))
    # log 3 minus an entropy of 1.5 bits; and nothing.
    want = torch.tensor([[math.log(3) - 1.5 * math.log(2), 0.0]])
    torch.testing.assert_close(kls, want, rtol=0, atol=1e-6)
    q = model.encode(code.log())
    torch.testing.assert_close(model.kl(q), want.sum(-1), rtol=0, atol=1e-6)
    torch.testing.assert_close(model.kl(q), q.kl(model.prior()), rtol=0, atol=1e-6)


def test_the_kl_to_the_standard_normal_by_hand():
    model, code = with_laws(NORMAL, [[1.0, 0.0, 2 * math.log(2.0), 0.0]])
    # Mean 1 and deviation 2: (1 + 4 - 1) / 2 - log 2; the prior itself: nothing.
    want = torch.tensor([[2 - math.log(2), 0.0]])
    for q in (model.posterior(code), model.encode(code)):
        torch.testing.assert_close(model.kls(q), want, rtol=0, atol=1e-6)
    prior = torch.distributions.Normal(torch.zeros(1, 2), 1.0)
    other = torch.distributions.kl_divergence(model.posterior(code).base_dist, prior)
    torch.testing.assert_close(model.kls(model.encode(code)), other)


@pytest.mark.parametrize(
    ("options", "want"),
    [
        ({}, 0.7 + 0.1),
        ({"kl_beta": 4.0}, 4 * 0.8),
        ({"kl_beta": 0.0}, 0.0),
        ({"free_bits": 0.5}, 0.7 + 0.5),
        ({"free_bits": 1.0, "kl_beta": 2.0}, 2 * (1.0 + 1.0)),
    ],
)
def test_beta_and_free_bits_by_hand(options, want):
    task = replace(NORMAL, **options)
    # Means m with m^2 / 2 = 0.7 and 0.1, and deviation 1.
    model, code = with_laws(task, [[math.sqrt(1.4), math.sqrt(0.2), 0.0, 0.0]])
    loss = model(code, zero, task.kl_beta)
    assert loss.item() == pytest.approx(want, abs=1e-6)


@BOTH
def test_a_variable_below_its_free_bits_has_no_gradient_of_the_kl(task):
    code = {"tutorial_vae": [[0.0, 0.0, 3.0, 0.0, 0.0, 0.1]], "gaussian_vae": [[2.0, 0.1, 0, 0]]}
    model, x = with_laws(replace(task, free_bits=0.3), code[task.name])
    (g,) = torch.autograd.grad(model(x, zero).sum(), x)
    first, second = g.unflatten(-1, (2, 3))[0] if g.shape[-1] == 6 else g[0, :2].unbind()
    assert first.abs().max() > 0
    assert second.abs().max() == 0


@BOTH
def test_the_weight_of_the_kl_grows_from_nothing_step_by_step(task):
    task = replace(task, kl_beta=3.0, kl_epochs=2)
    found = {}
    for epoch in range(4):
        batches = list(task.batches("train", Seeds(0), epoch=epoch, size=500))
        assert [len(b) for b in batches] == [500, 500, 437]
        plain = replace(task, kl_epochs=0).batches("train", Seeds(0), epoch=epoch, size=500)
        for batch, images in zip(batches, plain, strict=True):
            assert torch.equal(batch[:, :-1], images)
        found[epoch] = [batch[0, -1].item() for batch in batches]
        assert all((b[:, -1] == b[0, -1]).all() for b in batches)
    assert found[0] == pytest.approx([0, 1 / 6, 2 / 6])
    assert found[1] == pytest.approx([3 / 6, 4 / 6, 5 / 6])
    assert found[2] == found[3] == [1, 1, 1]
    assert all(len(b[0]) == 64 for b in task.batches("test", Seeds(0), epoch=0, size=500))


@BOTH
def test_the_loss_takes_the_weight_that_comes_with_the_images(task):
    task = replace(task, kl_beta=3.0, kl_epochs=4)
    model = task.model(Seeds(0))
    batch = next(task.batches("train", Seeds(0), epoch=1, size=20))
    assert batch[0, -1] == 0.25
    kl = model.kl(model.encode(batch[:, :-1]))
    assert kl.min() > 1e-4
    torch.testing.assert_close(task.losses(model, batch, zero), 0.75 * kl)
    whole = replace(task, kl_epochs=0)
    torch.testing.assert_close(whole.losses(model, batch[:, :-1], zero), 3.0 * kl)
    assert task.latent(model, batch).batch_shape == (20,)


@BOTH
def test_what_is_reported_has_the_whole_kl(task):
    model = task.model(Seeds(0))
    others = ({}, {"kl_beta": 0.1}, {"kl_epochs": 9}, {"free_bits": 5.0})
    tasks = [replace(task, **options) for options in others]
    found = [one.evaluate(one.model(Seeds(0)), "test", Seeds(0)) for one in tasks]
    assert all(one == found[0] for one in found)
    images = task.data.test
    kl = model.kl(model.encode(images)).mean().item()
    assert found[0]["kl"] == pytest.approx(kl, rel=1e-5)
    assert found[0]["neg_elbo"] > kl


def test_the_bound_of_many_samples_is_the_likelihood():
    task = GaussianVAE("digits", latents=1, hidden=(8,), bound_samples=4_000)
    model, x = task.model(Seeds(0)), task.prepare(torch.device("cpu")) or task.data.test[:3]
    bound = task._bound(model, x, torch.Generator().manual_seed(0))
    grid = torch.linspace(-8, 8, 801)
    with torch.no_grad():
        joint = -model.reconstruction(grid.reshape(-1, 1, 1).expand(-1, 3, 1), x)
        joint = joint + torch.distributions.Normal(0.0, 1.0).log_prob(grid).unsqueeze(-1)
    exact = -(joint.logsumexp(0) + math.log(float(grid[1] - grid[0])))
    torch.testing.assert_close(bound, exact, rtol=0, atol=0.02)


def test_normals_are_sampled_from_the_generator_and_without_a_gradient():
    model, code = with_laws(NORMAL, [[1.0, -3.0, 0.0, -4.0]] * 20_000)
    q = model.encode(code)
    z, again = (q.sample(generator=torch.Generator().manual_seed(0)) for _ in range(2))
    assert torch.equal(z, again)
    assert not z.requires_grad
    torch.testing.assert_close(z.mean(0), torch.tensor([1.0, -3.0]), rtol=0, atol=0.05)
    torch.testing.assert_close(z.std(0), torch.tensor([1.0, math.exp(-2)]), rtol=0.05, atol=0)
    want = model.posterior(code).log_prob(z)
    torch.testing.assert_close(model.log_posterior(q, z), want)


@pytest.mark.parametrize("key", ["pathwise", "rloo"])
def test_normal_latents_learn(key):
    task = GaussianVAE("digits", latents=4, hidden=(32,))
    losses, _ = trained(task, gt.estimator(key), steps=60)
    assert losses[-1].mean() < 0.75 * losses[0].mean()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"kl_beta": -1.0}, "kl_beta must be finite and at least 0"),
        ({"free_bits": math.inf}, "free_bits must be finite"),
        ({"kl_epochs": -1}, "kl_epochs must be at least 0"),
        ({"latents": 0}, "latents must be at least 1"),
    ],
)
@BOTH
def test_options_are_checked(task, options, words):
    with pytest.raises(gt.DomainError, match=words):
        replace(task, **options)


def test_one_class_is_no_choice():
    with pytest.raises(gt.DomainError, match="classes must be at least 2"):
        replace(CATEGORICAL, classes=1)


@BOTH
def test_options_make_a_config_and_a_config_makes_the_task(task):
    listed = {k: list(v) if isinstance(v, tuple) else v for k, v in task.options().items()}
    assert TASKS[task.name](**listed) == task  # as JSON has them
    config = RunConfig(task.name, task.options(), "rloo")
    assert TASKS[config.task](**config.task_options) == task


# The temperature that decays -----------------------------------------------------------------


def annealed(**changes):
    fields = {"epochs": 150, "tau_end": 0.5, "tau_rate": 6e-3} | changes
    return RunConfig("tutorial_vae", {}, "gumbel_softmax", {"tau": 1.0}, **fields)


def test_tau_decays_by_epochs_as_the_schedule_does_by_steps():
    schedule = gt.schedules.Exponential(1.0, rate=1e-5, floor=0.5, every=600)
    found = [tempered(gt.GumbelSoftmax(1.0), annealed(), e).tau for e in range(150)]
    assert found == pytest.approx([schedule(600 * e) for e in range(150)])
    assert found[115] > 0.5 == found[116]


def test_a_run_trains_with_the_tau_of_each_epoch(tmp_path, monkeypatch):
    seen = []
    losses = TutorialVAE.losses

    def noted(self, model, batch, expect):
        seen.append(expect.estimator.tau)
        return losses(self, model, batch, expect)

    monkeypatch.setattr(TutorialVAE, "losses", noted)
    one = RunConfig(
        "tutorial_vae", CATEGORICAL.options(), "gumbel_softmax", {"tau": 1.0},
        epochs=4, batch_size=1_000, tau_end=0.5, tau_rate=0.3,
    )  # fmt: skip
    result = run(one, out=tmp_path, accelerator="cpu", progress=False, task=CATEGORICAL)
    assert result.status == "done"
    want = [max(0.5, math.exp(-0.3 * e)) for e in range(4)]
    assert seen == pytest.approx([tau for tau in want for _ in range(2)])


def test_the_rate_is_in_the_label_and_in_the_key_only_where_there_is_one():
    plain = annealed(tau_rate=None)
    assert "tau_rate" not in plain.as_dict()
    assert annealed().key != plain.key
    assert "tau_end=0.5, tau_rate=0.006" in annealed().label
    assert RunConfig(**json.loads(json.dumps(annealed().as_dict()))) == annealed()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tau_end": None}, "there is no tau_end"),
        ({"tau_rate": 0.0}, "tau_rate must be finite and above 0"),
        ({"tau_rate": True}, "tau_rate is True, but must be a number"),
    ],
)
def test_a_rate_that_cannot_be_is_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        annealed(**changes)


def test_the_command_line_hands_the_rate_on(tmp_path):
    training = Training(
        estimator="stgs", epochs=1, tau_end=0.5, tau_rate=0.1, out=tmp_path, accelerator="cpu"
    )
    (result,) = run_requested("tutorial_vae", CATEGORICAL, training, {"tau": 1.0})
    assert (result.config.tau_rate, result.config.tau_end) == (0.1, 0.5)


def test_the_experiment_anneals_as_the_tutorials_do():
    every = cells(load(ROOT / "experiments" / "tutorial.toml"), "paper")
    found = {c.levels["method"]: c.config for c in every if c.levels["objective"] == "ELBO"}
    one = found["GS, annealed"]
    assert loop.build_task(one) == TutorialVAE()
    assert loop.build_task(found["normal, pathwise"]) == GaussianVAE()
    assert (one.estimator_options, one.tau_end) == ({"tau": 1.0}, 0.5)
    assert one.tau_rate == pytest.approx(1e-5 * 60_000 / one.batch_size)
    assert math.exp(-one.tau_rate * one.epochs) < 0.5  # it gets there


# The page ------------------------------------------------------------------------------------


@cache
def numbers(name):
    path = ROOT / "docs" / "figures" / "tutorial" / f"{name}.csv"
    with path.open(encoding="utf-8") as file:
        return [{k: _number(v) for k, v in row.items()} for row in csv.DictReader(file)]


def _number(text):
    try:
        return float(text)
    except ValueError:
        return text


def where(name, **wanted):
    return [r for r in numbers(name) if all(r[k] == v for k, v in wanted.items())]


def short(x, digits=3):
    """A number with some significant digits, without a power of ten."""
    places = max(digits - 1 - math.floor(math.log10(abs(x))), 0)
    return f"{x:.{places}f}"


def test_the_numbers_are_of_full_size_and_of_one_seed():
    behind = {name: json.loads(numbers(name)[0]["environment"]) for name in
              ("gumbel", "gumbel-max", "temperature", "variance", "tau-variance")}  # fmt: skip
    for name, one in behind.items():
        assert (one["seed"], one["smoke"]) == (0, False), name
        assert one["commit"], name
        assert one["device"], name
        assert {r["environment"] for r in numbers(name)} == {json.dumps(one, sort_keys=True)}
    assert len({(one["commit"], one["device"]) for one in behind.values()}) == 1


def test_the_table_of_temperatures_is_that_of_the_numbers():
    text = PAGE.read_text(encoding="utf-8")
    for tau in (5.0, 1.0, 0.5, 0.1):
        nearly, distance = (
            where("temperature", tau=tau, what=what)[0]["value"]
            for what in ("nearly one-hot", "distance")
        )
        assert f"| {tau:g} | {100 * nearly:.1f} % | {distance:.3f} |" in text


def test_the_table_of_ratios_is_that_of_the_numbers():
    text = PAGE.read_text(encoding="utf-8")
    for reward in dict.fromkeys(r["reward"] for r in numbers("variance")):
        parts = []
        for name in ("REINFORCE", "exact baseline", "RLOO", "ReinMax"):
            (row,) = where("variance", reward=reward, estimator=name, statistic="ratio")
            assert row["samples"] == 1000
            digits = 2 if row["exact"] < 1 else 3
            measured = short(row["value"], 2 if row["value"] < 1 else 3)
            parts.append(f"{short(row['exact'], digits)} ({measured})")
        assert f"| {reward} | {' | '.join(parts)} |" in text


def test_the_ratios_in_the_text_are_those_of_the_numbers():
    text = re.sub(r"\s+", " ", PAGE.read_text(encoding="utf-8"))
    spread = {
        name: where("variance", reward="U(0, 1)", estimator=name, statistic="ratio, any r")[0]
        for name in ("REINFORCE", "exact baseline")
    }
    plain, better = spread["REINFORCE"], spread["exact baseline"]
    assert (
        f"U(0, 1) is {short(plain['value'])}, and from the 5 % to the 95 % quantile it goes from "
        f"{short(plain['low'], 2)} to {short(plain['high'])}"
    ) in text
    assert (
        f"the median is {short(better['value'])}, and from {short(better['low'])} to "
        f"{short(better['high'])}"
    ) in text
    (mean,) = where("variance", reward="U(0, 1)", estimator="GS, τ = 0.5", statistic="mean")
    (other,) = where("variance", reward="U(0, 1)", estimator="ReinMax", statistic="mean")
    assert f"is {mean['exact'] / other['exact']:.2f} of the exact one" in text


def test_the_table_of_exponents_is_that_of_the_numbers():
    text = PAGE.read_text(encoding="utf-8")
    for tau in (1.0, 0.5, 0.2, 0.1, 0.05, 0.01, 0.001):
        parts = []
        for law in ("1 bit", "8 classes"):
            (row,) = where("tau-variance", law=law, tau=tau)
            exponent = f"{row['exponent']:.2f}".replace("-", "−")
            parts += [short(row["tau x variance"]), exponent]
        assert f"| {tau:g} | {' | '.join(parts)} |" in text
    limits = [where("tau-variance", law=law)[0]["limit"] for law in ("1 bit", "8 classes")]
    assert f"| limit | {short(limits[0])} | −1 | {short(limits[1])} | −1 |" in text


def test_what_is_said_of_the_pictures_holds_of_their_numbers():
    assert all(r["low"] < r["softmax"] < r["high"] for r in numbers("gumbel-max"))
    exponents = {r["tau"]: r["exponent"] for r in where("tau-variance", law="8 classes")}
    assert exponents[0.5] < -2 < exponents[0.2]
    for row in where("variance", statistic="slope"):
        assert row["value"] == pytest.approx(row["exact"], abs=0.06)
    for row in numbers("tau-variance"):
        error = (row["high"] - row["low"]) / 2 / 1.96
        assert abs(row["drawn"] - row["variance"]) < 4.5 * error


def test_the_commands_of_the_page_have_their_flags(capsys):
    text = PAGE.read_text(encoding="utf-8").replace("\\\n", " ")
    commands = re.findall(r"^gradthrough (bench .+)$", text, re.MULTILINE)
    assert len(commands) == 4
    for words in (command.split() for command in commands):
        with pytest.raises(SystemExit):
            cli.main([*words[: 3 if words[1] == "run" else 2], "--help"])
        known = set(re.findall(r"--[a-z-]+", capsys.readouterr().out))
        assert {w for w in words if w.startswith("--")} <= known


def test_the_blocks_of_the_page_run_as_a_reader_would_type_them(monkeypatch, tmp_path):
    spec = importlib.util.spec_from_file_location("wheel", ROOT / "scripts" / "check_wheel.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "__main__"}
    blocks = list(module.python_blocks(PAGE.read_text(encoding="utf-8")))
    for line, code, run_it in blocks:
        assert run_it
        exec(compile("\n" * (line - 1) + code, str(PAGE), "exec"), namespace)
    assert len(blocks) == 5
