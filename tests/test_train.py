"""The training loop: it learns, resumes exactly, says when it diverges and refuses what it must."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch

import gradthrough as gt
from gradthrough.bench import checkpoint, records
from gradthrough.bench.config import RunConfig
from gradthrough.bench.loop import build_task
from gradthrough.bench.seeds import Seeds
from gradthrough.bench.tasks.bernoulli_vae import BernoulliVAE
from gradthrough.bench.tasks.vae import VAE
from gradthrough.bench.train import run
from problems import DISCRETE

SMALL = VAE("digits", latents=2, classes=3, hidden=(32, 16), valid=137, bound_samples=7)
BINARY = BernoulliVAE("digits", latents=4, hidden=(32, 16), valid=137, bound_samples=7)
FLAGS = (
    "--dataset digits --latents 2 --classes 3 --hidden 32 16 --valid 137 --bound-samples 7 "
    "--lr 1e-3 --threads 1"
).split()
REINMAX = "--estimator reinmax --tau 1.3".split()


def config(estimator="reinmax", epochs=2, task=SMALL, **changes):
    return RunConfig(task.name, task.options(), estimator, epochs=epochs, lr=1e-3, **changes)


def metrics(path):
    """Return everything that a run measured; times differ from run to run."""
    return [
        (r.step, r.split, r.metric, r.value, r.evaluations)
        for r in records.read(path)
        if r.kind == "metric"
    ]


def train(folder, one, **options):
    return run(one, out=folder, progress=False, **options)


EVERY = pytest.mark.parametrize("key", DISCRETE)


def task_of(key):
    return SMALL if "categorical" in gt.ESTIMATORS[key].traits.families else BINARY


@EVERY
def test_every_estimator_trains(key, tmp_path):
    result = train(tmp_path, config(key, task=task_of(key)))
    assert result.status == "done"
    first, last = (metrics(result.path)[i][3] for i in (0, -2))
    assert last < first
    per_example = result.config.build_estimator().evaluations(
        result.task.law(), result.config.samples
    )
    assert result.records[-1].evaluations == 2 * 1300 * per_example


@EVERY
def test_every_estimator_learns_what_it_can(key, tmp_path):
    one = config(key, epochs=1, task=task_of(key), tuning_lr=1e-2)
    try:
        _, module = gt.estimator(key).learned(task_of(key).law())
    except gt.UnsupportedError:
        with pytest.raises(gt.ConfigError, match="nothing to learn"):
            train(tmp_path, one)
        assert not list(tmp_path.glob("*/*.jsonl"))
        return
    result = train(tmp_path, one)
    assert result.status == "done"
    tuned = state_of(result)["tuning"]
    assert tuned["module"].keys() == module.state_dict().keys()
    assert all(s["step"] == 13 for s in tuned["optimizer"]["state"].values())
    assert len(tuned["optimizer"]["state"]) == len(list(module.parameters()))
    assert all(x.isfinite().all() for x in tuned["module"].values())


def test_the_splits_and_the_bound_are_recorded(tmp_path):
    result = train(tmp_path, config())
    found = {(r.split, r.metric) for r in result.records if r.kind == "metric"}
    assert found == {
        ("train", "neg_elbo"),
        *((s, m) for s in ("valid", "test") for m in ("neg_elbo", "kl", "neg_bound")),
    }
    assert result.last("test", "neg_bound") < result.last("test", "neg_elbo") + 0.1
    assert {p.suffix for p in result.path.parent.iterdir()} >= {".jsonl", ".ckpt", ".png"}
    start = result.records[0]
    assert start.config == result.config.as_dict() | {
        "task_options": result.config.as_dict()["task_options"] | {"hidden": [32, 16]}
    }
    assert start.environment["torch"] == torch.__version__


def test_the_same_config_gives_the_same_numbers_and_a_done_run_is_not_done_again(tmp_path):
    one, other = (train(tmp_path / name, config("gumbel_rao")) for name in "ab")
    assert metrics(one.path) == metrics(other.path)
    written = one.path.read_bytes()
    again = train(tmp_path / "a", config("gumbel_rao"))
    assert again.path.read_bytes() == written
    assert again.model is not None


def test_torchs_global_randomness_is_left_alone(tmp_path):
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    train(tmp_path, config("reinforce", epochs=1, tuning_lr=1e-2))
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize(
    ("flags", "changes"),
    [
        (REINMAX, {"estimator": "reinmax", "estimator_options": {"tau": 1.3}}),
        (
            "--estimator reinforce --tuning-lr 1e-2".split(),
            {"estimator": "reinforce", "tuning_lr": 1e-2},
        ),
    ],
    ids=["fixed", "learned"],
)
def test_a_killed_run_ends_with_the_metrics_of_an_uninterrupted_one(flags, changes, tmp_path):
    command = [sys.executable, "-m", "gradthrough.cli", "bench", "run", "vae", *FLAGS, *flags]
    command += ["--epochs", "12", "--out", str(tmp_path / "killed")]
    folder = tmp_path / "killed" / "vae"
    for epochs in (3, 7):  # killed twice, somewhere in an epoch
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_for(folder, epochs * 13, process)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    (path,) = folder.glob("*.jsonl")
    assert records.read(path)[-1].kind != "end"
    path.write_bytes(path.read_bytes() + b'{"half a li')
    one = config(epochs=12, **changes)
    resumed, whole = (train(tmp_path / name, one) for name in ("killed", "whole"))
    assert resumed.path.name == path.name
    assert metrics(resumed.path) == metrics(whole.path)
    assert resumed.status == "done"
    assert same(state_of(resumed), state_of(whole))


def state_of(result):
    """Return the checkpoint of a run, but for its times."""
    state = checkpoint.load(result.path.with_suffix(".ckpt"), torch.device("cpu"))
    return {k: v for k, v in state.items() if k != "seconds"}


def same(a, b):
    """Say whether two states are equal bit for bit."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def wait_for(folder, step, process):
    """Wait until a run's checkpoint has passed a step."""
    for _ in range(600):
        time.sleep(0.1)
        assert process.poll() is None, "the run ended before it could be killed"
        for path in folder.glob("*.ckpt"):
            if checkpoint.load(path, torch.device("cpu"))["step"] >= step:
                return
    pytest.fail("the run never got there")


def test_lines_beyond_the_checkpoint_are_done_again(tmp_path):
    whole = train(tmp_path / "whole", config(epochs=3))
    part = train(tmp_path / "part", config(epochs=3))
    state = checkpoint.load(part.path.with_suffix(".ckpt"), torch.device("cpu"))
    assert state["epoch"] == 3
    lines = records.read(part.path)
    records.write(part.path, [r for r in lines if r.kind != "end" and r.metric != "neg_bound"])
    again = train(tmp_path / "part", config(epochs=3))
    assert metrics(again.path) == metrics(whole.path)


def test_a_nan_ends_the_run_with_a_reason(tmp_path):
    wild = RunConfig("vae", SMALL.options(), "st", optimizer="sgd", lr=1e12, epochs=3)
    result = train(tmp_path, wild)
    assert result.status == "diverged"
    assert "step" in result.records[-1].reason
    assert result.model is None
    assert metrics(result.path) == []


def test_a_space_too_large_to_enumerate_is_skipped_with_a_reason(tmp_path):
    result = train(tmp_path, config("enumerate", task=VAE("digits", latents=20, classes=10)))
    assert result.status == "skipped"
    assert "100,000" in result.records[-1].reason


def test_a_damaged_checkpoint_is_named(tmp_path):
    result = train(tmp_path, config(epochs=1))
    target = result.path.with_suffix(".ckpt")
    target.write_bytes(target.read_bytes()[:100])
    with pytest.raises(gt.DomainError, match="Remove it"):
        train(tmp_path, config(epochs=1))


def test_an_unknown_task_is_refused():
    with pytest.raises(gt.ConfigError, match="vae"):
        build_task(RunConfig("nae", {}, "st"))


def test_the_bound_of_one_sample_is_the_elbo_in_law():
    task = VAE("digits", latents=1, classes=2, hidden=(8, 8), bound_samples=4000)
    model = task.model(Seeds(0))
    x = task.data.test[:3]
    bound = task._bound(model, x, torch.Generator().manual_seed(0))
    with torch.no_grad():
        z = torch.eye(2).reshape(2, 1, 1, 2).expand(2, 3, 1, 2)
        exact = -torch.logsumexp(-model.reconstruction(z, x) + torch.log(torch.tensor(0.5)), 0)
    torch.testing.assert_close(bound, exact, rtol=0, atol=0.02)


def test_low_precision_trains(tmp_path):
    result = train(tmp_path, config(precision="bf16-mixed"), accelerator="cpu")
    assert result.status == "done"
    first, last = (metrics(result.path)[i][3] for i in (0, -3))
    assert last < first


def test_too_few_samples_are_a_wrong_config_and_not_a_diverged_run():
    with pytest.raises(gt.DomainError, match="at least 2"):
        config("rloo", samples=1)
    with pytest.raises(gt.DomainError, match="pairs"):
        config("reinforce", samples=3, estimator_options={"antithetic": True})


def test_records_and_checkpoint_that_do_not_fit_are_not_glued_together(tmp_path):
    whole = train(tmp_path / "whole", config())
    lost = train(tmp_path / "lost", config())
    lost.path.unlink()
    again = train(tmp_path / "lost", config())
    assert metrics(again.path) == metrics(whole.path)
    again.path.with_suffix(".ckpt").unlink()
    done = train(tmp_path / "lost", config())
    assert done.status == "done"
    assert done.model is None


def test_a_resumed_run_says_where_it_went_on(tmp_path):
    result = train(tmp_path, config())
    lines = [r for r in records.read(result.path) if r.kind != "end" and r.metric != "neg_bound"]
    records.write(result.path, lines)
    again = train(tmp_path, config())
    starts = [r for r in again.records if r.kind == "start"]
    assert [r.step for r in starts] == [0, 26]
    assert all(r.environment["devices"] == 1 for r in starts)


def test_two_devices_count_every_evaluation(tmp_path):
    command = [sys.executable, "-m", "gradthrough.cli", "bench", "run", "vae", *FLAGS, *REINMAX]
    command += [*"--epochs 1 --accelerator cpu --devices 2 --out".split(), str(tmp_path)]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    (path,) = tmp_path.glob("vae/*.jsonl")
    last = records.read(path)[-1]
    assert (last.status, last.evaluations) == ("done", 1300)


def test_what_an_estimator_learns_moves_and_is_in_the_checkpoint(tmp_path):
    fixed, learned = (
        state_of(train(tmp_path, config("reinforce", tuning_lr=lr))) for lr in (None, 1e-2)
    )
    assert "tuning" not in fixed
    assert not same(fixed["model"], learned["model"])
    torch.manual_seed(Seeds(0).of("tuning"))
    _, fresh = gt.Reinforce().learned(gt.Categorical(torch.zeros(100, 2, 3), event_dims=1))
    tuned = learned["tuning"]["module"]
    assert tuned.keys() == fresh.state_dict().keys()
    assert not any(torch.equal(x, tuned[name]) for name, x in fresh.state_dict().items())
    assert all(s["step"] == 26 for s in learned["tuning"]["optimizer"]["state"].values())


def test_a_learned_baseline_lowers_its_tuning_loss(tmp_path):
    # The negative ELBO of the digits is near 40 nats: that is where the baseline has to get.
    result = train(tmp_path, config("reinforce", tuning_lr=1e-2, epochs=30))
    tuned = state_of(result)["tuning"]["module"]
    critic = gt.Reinforce().learned(gt.Categorical(torch.zeros(100, 2, 3), event_dims=1))[1]
    critic.load_state_dict(tuned)
    law = result.task.latent(result.model, result.task.data.train[:100])
    baseline = critic(law).detach()
    assert abs(float(baseline.mean()) - result.last("train", "neg_elbo")) < 10


def test_learning_works_in_low_precision(tmp_path):
    one = config("reinforce", precision="bf16-mixed", tuning_lr=1e-2)
    result = train(tmp_path, one, accelerator="cpu")
    assert result.status == "done"
    tuned = state_of(result)["tuning"]["module"]
    assert all(x.dtype == torch.float32 and x.isfinite().all() for x in tuned.values())


def test_evaluating_less_often_changes_no_number(tmp_path):
    often, seldom = (train(tmp_path, config(epochs=5, evaluate_every=n)) for n in (1, 2))
    steps = {r.step for r in seldom.records if r.metric == "kl"}
    assert steps == {26, 52, 65}  # and after the last epoch, whatever the interval
    assert [m for m in metrics(often.path) if m in metrics(seldom.path)] == metrics(seldom.path)


def test_an_estimator_of_another_family_is_skipped_with_a_reason(tmp_path):
    result = train(tmp_path, config("disarm"))
    assert result.status == "skipped"
    assert "serves bernoulli, but the distribution is categorical" in result.records[-1].reason
