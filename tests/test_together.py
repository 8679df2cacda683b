"""Several seeds at once: each ends where its own run does, whatever happens to the others."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch
from torch import nn

import gradthrough as gt
from gradthrough.bench import checkpoint, records
from gradthrough.bench.config import RunConfig
from gradthrough.bench.journal import Journal
from gradthrough.bench.stacked import Stack
from gradthrough.bench.tasks._images import AbstractVAE
from gradthrough.bench.tasks.bernoulli_vae import BernoulliVAE
from gradthrough.bench.tasks.vae import VAE, CategoricalVAE
from gradthrough.bench.together import run_together
from gradthrough.bench.train import run
from problems import DISCRETE

SMALL = VAE("digits", latents=2, classes=3, hidden=(32, 16), valid=137, bound_samples=7)
BINARY = BernoulliVAE(
    "digits", 4, hidden=(32, 16), valid=137, bound_samples=7, kl="sampled", prior="learned"
)
SEEDS = (0, 1, 5)
EVERY = pytest.mark.parametrize("key", DISCRETE)


def config(key="reinmax", task=SMALL, *, epochs=1, lr=1e-3, **changes):
    """A run of ten steps an epoch."""
    return RunConfig(
        task.name, task.options(), key, batch_size=130, epochs=epochs, lr=lr, **changes
    )


def together(folder, one, seeds=SEEDS, task=None):
    return run_together(one, seeds, out=folder, progress=False, accelerator="cpu", task=task)


def alone(folder, one, seeds=SEEDS):
    return [run(replace(one, seed=s), out=folder, progress=False, accelerator="cpu") for s in seeds]


def lines(result):
    """Return all numbers of a run but its times."""
    return [
        (r.step, r.split, r.metric, r.evaluations, r.value)
        for r in records.read(result.path)
        if r.kind == "metric"
    ]


def assert_close(many, ones, tolerance=1e-5):
    """Compare weights, optimizers, records and files of two lists of results."""
    for a, b in zip(many, ones, strict=True):
        assert a.config == b.config
        assert a.path.name == b.path.name
        assert a.status == b.status == "done"
        torch.testing.assert_close(
            a.model.state_dict(), b.model.state_dict(), rtol=0, atol=tolerance
        )
        got, want = (checkpoint.load(r.path.with_suffix(".ckpt"), "cpu") for r in (a, b))
        for state in (got, want):
            del state["seconds"]
        torch.testing.assert_close(got, want, rtol=1e-3, atol=tolerance)
        assert [x[:4] for x in lines(a)] == [x[:4] for x in lines(b)]
        values = [torch.tensor([x[4] for x in lines(r)]) for r in (a, b)]
        torch.testing.assert_close(*values, rtol=0, atol=10 * tolerance)  # sums of 64 pixels
        files = [sorted(p.name for p in r.path.parent.glob(f"{r.path.stem}*")) for r in (a, b)]
        assert files[0] == files[1]


@pytest.mark.parametrize("key", ["reinmax", "rloo"])
@pytest.mark.parametrize("task", [SMALL, BINARY], ids=["vae", "bernoulli_vae"])
def test_ten_steps_are_those_of_the_seeds_own_runs(key, task, tmp_path):
    many, ones = (f(tmp_path / f.__name__, config(key, task)) for f in (together, alone))
    assert {r.records[-1].step for r in many} == {10}
    assert_close(many, ones)


@EVERY
def test_every_estimator_trains_several_seeds(key, tmp_path):
    task = SMALL if "categorical" in gt.ESTIMATORS[key].traits.families else BINARY
    # Adam would blow up the rounding of a gradient near zero to a whole step.
    one = config(key, task, optimizer="sgd", lr=1e-2)
    many, ones = (f(tmp_path / f.__name__, one, SEEDS[:2]) for f in (together, alone))
    assert_close(many, ones)


@pytest.mark.parametrize("optimizer", ["adam", "radam", "sgd"])
def test_every_optimizer_serves_each_seed(optimizer, tmp_path):
    one = config(optimizer=optimizer, epochs=2, evaluate_every=2)
    assert_close(together(tmp_path / "a", one), alone(tmp_path / "b", one))


def test_low_precision_is_that_of_the_own_runs(tmp_path):
    one = config(precision="bf16-mixed", optimizer="sgd", lr=1e-2)
    assert_close(together(tmp_path / "a", one), alone(tmp_path / "b", one), 1e-2)


def test_the_records_say_how_many_trained_and_share_the_time(tmp_path, monkeypatch):
    now = iter(range(0, 1000, 6))
    monkeypatch.setattr("gradthrough.bench.together.time.perf_counter", lambda: next(now))
    results = together(tmp_path, config())
    for result in results:
        assert {r.together for r in result.records} == {3}
        assert result.records[-1].seconds == 2.0  # of 6 that passed
    assert {r.together for r in alone(tmp_path / "b", config(), [0])[0].records} == {None}
    assert '"together"' not in alone(tmp_path / "b", config(), [0])[0].path.read_text()


def test_a_run_of_its_own_goes_on_where_several_stopped_and_the_other_way_round(tmp_path):
    short, whole = config(optimizer="sgd"), config(epochs=2, optimizer="sgd")
    for folder, first, then in (("a", together, alone), ("b", alone, together)):
        for result in first(tmp_path / folder, short):
            disguise(result, replace(whole, seed=result.config.seed))
        assert_close(then(tmp_path / folder, whole), alone(tmp_path / "c", whole))


def disguise(result, longer):
    """Make a finished run the unfinished beginning of a longer one."""
    target = result.path.with_name(f"{longer.key}.jsonl")
    kept = [r for r in result.records if r.kind != "end" and r.metric != "neg_bound"]
    kept = [replace(r, key=longer.key) for r in kept]
    records.write(target, kept)
    result.path.with_suffix(".ckpt").rename(target.with_suffix(".ckpt"))
    for path in result.path.parent.glob(f"{result.path.stem}*"):
        path.unlink()
    target.with_suffix(".lock").touch()


def test_seeds_that_are_behind_catch_up_and_done_ones_stay(tmp_path):
    one = config(epochs=2, optimizer="sgd")
    done = alone(tmp_path / "a", one, SEEDS[:1])[0].path.read_bytes()
    for result in alone(tmp_path / "a", config(optimizer="sgd"), SEEDS[1:2]):
        disguise(result, replace(one, seed=result.config.seed))
    results = together(tmp_path / "a", one)  # done, half done, not begun
    assert results[0].path.read_bytes() == done
    assert_close(results, alone(tmp_path / "b", one))
    assert [r.step for r in results[1].records if r.kind == "start"] == [0, 10]


FLAGS = (
    "bench run vae --dataset digits --latents 2 --classes 3 --hidden 32 16 --valid 137 "
    "--bound-samples 7 --batch-size 130 --lr 1e-3 --epochs 15 --threads 1 --accelerator cpu "
    "--seeds 0,1,5 --estimator rloo --out"
).split()


def test_a_killed_run_ends_as_an_uninterrupted_one(tmp_path):
    one = config("rloo", epochs=15)
    paths = [tmp_path / "a" / "vae" / f"{replace(one, seed=s).key}.jsonl" for s in SEEDS]
    words = [sys.executable, "-m", "gradthrough.cli", *FLAGS, str(tmp_path / "a")]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not all(p.with_suffix(".ckpt").exists() for p in paths):
        assert process.poll() is None, "the run ended before it could be killed"
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert all(records.read(p)[-1].kind != "end" for p in paths)
    resumed, whole = (together(tmp_path / name, one) for name in "ab")
    for a, b in zip(resumed, whole, strict=True):
        assert sum(r.kind == "start" for r in a.records) == 2
        assert [x[:4] for x in lines(a)] == [x[:4] for x in lines(b)]
        # Where the kill fell between two checkpoints, the seeds meet in groups of another size.
        for x, y in zip(lines(a), lines(b), strict=True):
            assert x[4] == pytest.approx(y[4], abs=1e-2)


# In the third epoch: before anything of it is written, and after the lines but before a checkpoint.
@pytest.mark.parametrize(("owner", "name"), [(Stack, "state"), (Journal, "save")])
def test_taken_up_between_epochs_it_ends_bit_for_bit_the_same(owner, name, tmp_path, monkeypatch):
    one = config(epochs=3)
    whole = together(tmp_path / "whole", one)
    real = getattr(owner, name)
    calls = []

    def killed(self, x):
        calls.append(x)
        if len(calls) > 2 * len(SEEDS):
            raise KeyboardInterrupt
        return real(self, x)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, killed)
        with pytest.raises(KeyboardInterrupt):
            together(tmp_path / "killed", one)
    again = together(tmp_path / "killed", one)
    for a, b in zip(again, whole, strict=True):
        assert lines(a) == lines(b)
        for key, x in a.model.state_dict().items():
            assert torch.equal(x, b.model.state_dict()[key])


def poison(monkeypatch, cls, seed, value):
    """Let one seed start from weights that no training survives."""
    fresh = cls.model

    def model(self, seeds):
        made = fresh(self, seeds)
        if seeds.root == seed:
            with torch.no_grad():
                value(made)
        return made

    monkeypatch.setattr(cls, "model", model)


@pytest.mark.parametrize("kind", ["logits", "loss"])
def test_a_seed_that_diverges_ends_alone_with_the_reason_of_its_own_run(
    kind, tmp_path, monkeypatch
):
    healthy = alone(tmp_path / "c", config(), [0, 5])

    def value(model):
        (model.encoder if kind == "logits" else model.decoder)[-1].bias[0] = torch.nan

    poison(monkeypatch, VAE, 1, value)
    # The trial looks at the first two seeds, fresh: there it must not be the poisoned one.
    first, other, bad = together(tmp_path / "a", config(), [0, 5, 1])
    (own,) = alone(tmp_path / "b", config(), [1])
    assert_close([first, other], healthy)
    assert {r.together for r in first.records if r.kind == "end"} == {2}
    assert bad.status == own.status == "diverged"
    assert bad.records[-1].reason == own.records[-1].reason
    assert (bad.records[-1].step, lines(bad)) == (own.records[-1].step, lines(own))
    assert bad.model is None


@pytest.mark.parametrize("lr", [1e12, 1e20])  # some survive the first, nobody the second
def test_wild_seeds_end_as_their_own_runs(lr, tmp_path):
    one = config("st", optimizer="sgd", lr=lr, epochs=3)
    many, ones = (f(tmp_path / f.__name__, one) for f in (together, alone))
    for a, b in zip(many, ones, strict=True):
        assert (a.status, a.records[-1].reason) == (b.status, b.records[-1].reason)
        assert a.records[-1].step == b.records[-1].step
    assert {r.status for r in many} >= {"diverged"}


class Counting(CategoricalVAE):
    """A network that keeps state between steps."""

    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.register_buffer("steps", torch.zeros(()))

    def encode(self, x):
        self.steps += 1
        return super().encode(x)


class Dropping(CategoricalVAE):
    """A network with randomness of its own."""

    def encode(self, x):
        return super().encode(nn.functional.dropout(x))


class Branching(CategoricalVAE):
    """A network that looks at numbers."""

    def encode(self, x):
        return super().encode(x if self.encoder[0].bias.sum() > 0 else -x)


@pytest.mark.parametrize(
    ("network", "why"),
    [(Counting, "keeps state"), (Dropping, "random"), (Branching, "data-dependent control flow")],
)
def test_what_cannot_be_vectorised_is_refused_before_anything_is_written(
    network, why, tmp_path, monkeypatch
):
    monkeypatch.setattr(
        VAE, "_network", lambda self, pixels: network(pixels, self.hidden, 2, 3), raising=True
    )
    with pytest.raises(gt.ConfigError, match=f"cannot train several seeds as one.*{why}"):
        together(tmp_path, config())
    assert not list(tmp_path.glob("*/*.jsonl"))


@pytest.mark.parametrize("name", ["sample", "rollout"])
def test_a_task_that_does_more_than_call_expect_is_refused(name, tmp_path, monkeypatch):
    def forward(self, x, expect):
        getattr(expect, name)(*([self.encode(x).logits] if name == "sample" else []))

    monkeypatch.setattr(AbstractVAE, "forward", forward)
    with pytest.raises(gt.ConfigError, match=rf"expect\.{name}\(\)"):
        together(tmp_path, config())


def test_options_that_exclude_several_seeds_are_named(tmp_path):
    for changes, why in (
        ({"key": "reinforce", "tuning_lr": 1e-2}, "tuning_lr"),
        ({"compile": "default"}, "compile"),
    ):
        with pytest.raises(gt.ConfigError, match=why):
            together(tmp_path, config(**changes))
    for seeds in ((), (1, 1)):
        with pytest.raises(gt.ConfigError, match="seeds"):
            together(tmp_path, config(), seeds)
    assert not list(tmp_path.iterdir())


def test_a_seed_that_somebody_else_trains_is_left_to_them(tmp_path):
    (result,) = alone(tmp_path, config(), [5])
    lock = records.Lock(result.path)
    with pytest.raises(records.LockedError, match="another process"):
        together(tmp_path, config())
    lock.release()
    assert [r.status for r in together(tmp_path, config())] == ["done"] * 3


def test_an_estimator_of_another_family_is_skipped_for_every_seed(tmp_path):
    results = together(tmp_path, config("disarm"))
    assert [r.status for r in results] == ["skipped"] * 3
    assert "serves bernoulli" in results[2].records[-1].reason


def test_torchs_global_randomness_is_left_alone(tmp_path):
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    together(tmp_path, config("rloo"))
    assert torch.equal(torch.random.get_rng_state(), before)
