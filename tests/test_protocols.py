"""What published protocols ask of a run besides Adam at a fixed rate; and probes along the way."""

import math

import pytest
import torch
from torch import nn

import gradthrough as gt
from gradthrough.bench import loop, optimizers
from gradthrough.bench.config import RunConfig
from gradthrough.bench.seeds import Seeds
from gradthrough.bench.tasks.polynomial import Polynomial
from gradthrough.bench.tasks.vae import VAE
from gradthrough.bench.together import run_together
from gradthrough.bench.train import run

TASK = Polynomial(length=3, steps_per_epoch=2)
DIGITS = VAE(dataset="digits", latents=2, classes=3, hidden=(8,), valid=400, bound_samples=0)
SGD = {"optimizer": "sgd", "lr": 0.5, "momentum": 0.9, "weight_decay": 0.1, "clip": 0.01}


def config(task=TASK, estimator="enumerate", options=None, **changes):
    fields = {"epochs": 3, "batch_size": 4, "lr": 0.1} | changes
    return RunConfig(task.name, task.options(), estimator, options or {}, **fields)


def train(folder, one, task=None):
    return run(one, out=folder, accelerator="cpu", progress=False, task=task)


def test_keys_of_before_stay_as_they_were():
    assert not set(config().as_dict()) & {"momentum", "weight_decay", "clip", "schedule", "tau_end"}


def by_hand(steps, *, nesterov):
    """Bits after steps of SGD: the gradient is cut, decays are added, and it gains speed."""
    model = TASK.model(Seeds(0))
    (x,) = model.parameters()
    velocity = torch.zeros_like(x)
    for _ in range(steps):
        loss = TASK.expected_loss(model.logits.double())
        (g,) = torch.autograd.grad(loss, x)
        norm = float(g.norm())
        assert norm > 0.01  # the gradient is cut
        g = g * 0.01 / norm + 0.1 * x.detach()
        velocity = 0.9 * velocity + g
        with torch.no_grad():
            x -= 0.5 * (g + 0.9 * velocity if nesterov else velocity)
    return x


class Ahead(Polynomial):
    """Trained with Nesterov's momentum."""

    def optimizers(self, model, config):
        return (optimizers.build(config, model.parameters(), nesterov=True),)


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_with_momentum_decay_and_clipping_is_the_loop_by_hand(nesterov, tmp_path):
    task = (Ahead if nesterov else Polynomial)(length=3, steps_per_epoch=2)
    result = train(tmp_path, config(**SGD), task)
    want = by_hand(6, nesterov=nesterov)
    torch.testing.assert_close(result.model.logits, want, atol=1e-6, rtol=1e-4)
    assert (want - by_hand(6, nesterov=not nesterov)).abs().max() > 1e-3


def test_without_momentum_there_is_none_of_nesterov():
    weights = nn.Linear(1, 1).parameters
    for one in (config(**(SGD | {"momentum": 0.0})), config()):
        built, plain = (optimizers.build(one, weights(), nesterov=n) for n in (True, False))
        assert built.defaults == plain.defaults


def rates(schedule, watched, better="lower"):
    one = config(epochs=4, lr=1.0, lr_end=0.2, patience=1, schedule=schedule)
    optimizer = optimizers.build(one, nn.Linear(1, 1).parameters())
    moving = optimizers.Schedule(one, optimizer, better)
    found = []
    for number in watched:
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        moving.step(number, evaluated=number != "not looked at")
    return found


def test_cosine_falls_to_its_end():
    want = [0.2 + 0.4 * (1 + math.cos(math.pi * e / 4)) for e in range(4)]
    assert rates("cosine", [None] * 4) == pytest.approx(want)


@pytest.mark.parametrize(("better", "sign"), [("lower", 1), ("higher", -1)])
def test_plateau_halves_after_its_patience(better, sign):
    numbers = [3, 2, 2, 2, 1, 1, 1, 1]
    found = rates("plateau", [sign * x for x in numbers], better)
    assert found == [1, 1, 1, 1, 0.5, 0.5, 0.5, 0.25]


@pytest.mark.parametrize(("better", "sign"), [("lower", 1), ("higher", -1)])
@pytest.mark.parametrize("size", [1e3, 1e-3, -1e3])
def test_plateau_takes_whatever_is_better_at_all_and_nothing_that_is_equal(better, sign, size):
    step = 1e-9  # far below torch's default thresholds, which are relative to the number
    falling = [sign * (size - i * step) for i in range(5)]
    assert rates("plateau", falling, better) == [1] * 5
    assert rates("plateau", [falling[0]] * 6, better) == [1, 1, 1, 0.5, 0.5, 0.25]


def test_plateau_does_not_count_epochs_that_were_not_looked_at():
    assert rates("plateau", [2, "not looked at", "not looked at", 2, 2]) == [1] * 5


def test_plateau_without_held_out_data_is_refused(tmp_path):
    with pytest.raises(gt.ConfigError, match="holds no data out to watch"):
        train(tmp_path, config(schedule="plateau"))


def test_tau_moves_from_the_first_epoch_to_the_last():
    one = config(estimator="stgs", options={"tau": 10.0}, epochs=3, tau_end=1.0)
    start = one.build_estimator()
    assert [optimizers.tempered(start, one, e).tau for e in range(3)] == [10.0, 5.5, 1.0]
    assert "tau_end=1.0" in one.label
    single = config(estimator="stgs", options={"tau": 10.0}, epochs=1, tau_end=1.0)
    assert optimizers.tempered(start, single, 0).tau == 10.0


class StoppedError(Exception):
    pass


@pytest.mark.parametrize(
    "changes",
    [
        {"schedule": "cosine", "options": {"tau": 2.0}, "tau_end": 0.5, **SGD},
        {"schedule": "plateau", "patience": 0},
    ],
    ids=["cosine", "plateau"],
)
def test_a_run_taken_up_again_ends_where_it_would_have(changes, tmp_path, monkeypatch):
    one = config(DIGITS, "stgs", **({"epochs": 4, "batch_size": 300} | changes))
    whole = train(tmp_path / "whole", one)
    measured = loop.metrics

    def stop(task, model, config, *, epoch, final):
        if epoch == 3:
            raise StoppedError
        return measured(task, model, config, epoch=epoch, final=final)

    with monkeypatch.context() as patched:
        patched.setattr(loop, "metrics", stop)
        with pytest.raises(StoppedError):
            train(tmp_path / "cut", one)
    again = train(tmp_path / "cut", one)
    numbers = [[(r.split, r.metric, r.step, r.value) for r in x.records if r.kind == "metric"]
               for x in (whole, again)]  # fmt: skip
    assert numbers[0] == numbers[1]


class Probed(Polynomial):
    def probe(self, model, config, *, epoch):
        assert not model.training
        return {"lr": config.lr, "epoch": float(epoch)}


class Two(Polynomial):
    """Its first bit is trained by one optimizer, and nothing by the second."""

    def optimizers(self, model, config):
        return optimizers.build(config, model.parameters()), torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=1.0)  # fmt: skip  # noqa: E501


def test_probes_are_recorded_whenever_the_run_is_evaluated(tmp_path):
    one = config(evaluate_every=2)
    for results in ([train(tmp_path / "one", one, Probed(3, steps_per_epoch=2))],
                    run_together(one, (0, 1), out=tmp_path / "two", accelerator="cpu",
                                 progress=False, task=Probed(3, steps_per_epoch=2))):  # fmt: skip
        for result in results:
            found = [r.value for r in result.records if (r.split, r.metric) == ("probe", "epoch")]
            assert found == [2.0, 3.0]


def test_every_optimizer_of_a_task_steps_and_is_kept(tmp_path):
    result = train(tmp_path, config(), Two(3, steps_per_epoch=2))
    plain = train(tmp_path / "plain", config())
    assert torch.equal(result.model.logits, plain.model.logits)
    state = torch.load(result.path.with_suffix(".ckpt"), weights_only=True)
    assert len(state["further_optimizers"]) == 1
    with pytest.raises(gt.ConfigError, match="optimizers of its own"):
        run_together(config(), (0, 1), out=tmp_path, progress=False, task=Two(3))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"momentum": 1.0, "optimizer": "sgd"}, r"momentum must be in \[0, 1\)"),
        ({"momentum": 0.5}, "momentum is 0.5, but the optimizer is adam"),
        ({"weight_decay": -1.0}, "weight_decay must be"),
        ({"clip": 0.0}, "clip must be finite and above 0"),
        ({"schedule": "step"}, "schedule is 'step', but must be one of none, cosine, plateau"),
        ({"tau_end": 0.5}, "enumerate has no tau"),
        ({"estimator": "stgs", "tau_end": 0.5, "compile": "default"}, "keeps its estimator"),
    ],
)
def test_what_cannot_be_is_refused_in_words(changes, words):
    with pytest.raises(ValueError, match=words):
        config(**changes)


@pytest.mark.parametrize(
    "changes", [{"clip": 1.0}, {"schedule": "cosine"}, {"estimator": "stgs", "tau_end": 0.5}]
)
def test_seeds_do_not_share_what_moves_or_looks_at_all_weights(changes, tmp_path):
    with pytest.raises(gt.ConfigError, match="share one optimizer"):
        run_together(config(**changes), (0, 1), out=tmp_path, progress=False)


class Watching(VAE):
    watched = "kl"


def test_plateau_looks_at_what_the_task_watches(tmp_path):
    options = {"schedule": "plateau", "patience": 0, "epochs": 4, "batch_size": 500, "lr": 1e-3}
    task = Watching(**(DIGITS.options()))
    result = train(tmp_path, config(task, "reinmax", **options), task)
    kls = [r.value for r in result.records if (r.split, r.metric) == ("valid", "kl")]
    state = torch.load(result.path.with_suffix(".ckpt"), weights_only=True)
    assert state["schedule"]["best"] == min(kls)
