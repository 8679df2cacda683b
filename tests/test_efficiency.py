"""The cost of a step: bytes are counted exactly, and the training is the problem's own."""

import copy
import dataclasses
from pathlib import Path

import pytest
import torch

import gradthrough as gt
from gradthrough.auditing.cost import allocated_bytes
from gradthrough.bench import records
from gradthrough.bench.config import RunConfig
from gradthrough.bench.seeds import Seeds
from gradthrough.bench.tasks.efficiency import Efficiency
from gradthrough.bench.tasks.polynomial import Polynomial
from gradthrough.bench.tasks.vae import VAE
from gradthrough.bench.train import run

CPU = torch.device("cpu")
QP = Efficiency("qp", steps_per_epoch=3, rounds=2)
IMAGES = Efficiency("vae", dataset="digits", rounds=1)
PROBED = ("milliseconds", "ratio", "peak_megabytes", "estimator_megabytes")


def config_of(task, estimator="reinmax", **changes):
    fields = {"batch_size": 8, "epochs": 1} | changes
    return RunConfig(task.name, task.options(), estimator, **fields)


def probed(task, estimator="reinmax", **changes):
    model = task.model(Seeds(0)).eval()
    return task.probe(model, config_of(task, estimator, **changes), epoch=1)


def test_bytes_held_at_a_time_are_counted_and_those_of_before_are_not():
    x, rows, layer = torch.zeros(1000), torch.zeros(3, 1000), torch.nn.Linear(1000, 500)

    def frees():
        y = x.neg()
        del y
        return x.neg()

    assert allocated_bytes(lambda: x.neg_(), CPU) == 0
    assert allocated_bytes(lambda: x.expand(7, 1000), CPU) == 0
    assert allocated_bytes(frees, CPU) == 4000
    assert allocated_bytes(lambda: (x.neg(), x.neg()), CPU) == 8000
    assert allocated_bytes(lambda: layer(rows), CPU) == 3 * 500 * 4


@pytest.mark.parametrize(
    ("task", "inner", "size"),
    [(QP, Polynomial(steps_per_epoch=3), 8), (IMAGES, VAE("digits", 30, classes=10), 500)],
)
def test_training_is_that_of_the_problem(task, inner, size, tmp_path: Path):
    inner = dataclasses.replace(inner, bound_samples=0) if isinstance(inner, VAE) else inner
    ours, theirs = (
        run(config_of(t, batch_size=size), out=tmp_path, accelerator="cpu", progress=False)
        for t in (task, inner)
    )
    assert ours.status == theirs.status == "done"
    for x, y in zip(ours.model.parameters(), theirs.model.parameters(), strict=True):
        assert torch.equal(x, y)
    headline = inner.metrics[0].name
    for split in ("train", "test"):
        assert latest(ours, split, "loss") == latest(theirs, split, headline)
    for name in PROBED:
        assert latest(ours, "probe", name) > 0


def latest(result, split, metric):
    lines = records.read(result.path)
    return [r.value for r in lines if (r.split, r.metric) == (split, metric)][-1]


@pytest.mark.parametrize("task", [QP, IMAGES])
def test_what_is_probed_is_what_is_promised(task):
    assert set(probed(task)) == set(PROBED) == {m.name for m in task.metrics[1:]}


def test_a_probe_changes_neither_the_model_nor_the_global_noise():
    model = IMAGES.model(Seeds(0)).eval()
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    IMAGES.probe(model, config_of(IMAGES), epoch=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert not model.training
    assert all(p.grad is None for p in model.parameters())
    for name, x in model.state_dict().items():
        assert torch.equal(x, before[name])


@pytest.mark.parametrize("name", ["peak_megabytes", "estimator_megabytes"])
def test_memory_of_gumbel_rao_does_not_grow_with_its_draws(name):
    few, many = (probed(QP, "gumbel_rao", estimator_options={"k": k})[name] for k in (10, 200))
    assert few == many


def test_memory_counts_the_samples_that_the_run_takes():
    one, four = (probed(QP, samples=n)["estimator_megabytes"] for n in (1, 4))
    values = 8 * 128 * 2 * 4 / 1e6  # of the logits, in float32
    assert one > values
    assert four > one + 3 * values


@pytest.mark.parametrize("task", [QP, IMAGES], ids=["qp", "vae"])
@pytest.mark.parametrize("key", gt.ESTIMATORS)
def test_whatever_trains_the_problem_can_be_measured(key, task):
    traits = gt.ESTIMATORS[key].traits
    # Classes, and too many of them to visit every point.
    if "categorical" in traits.families and traits.noise != "none":
        assert task.refuses(gt.estimator(key)) is None
        found = probed(task, key)
        assert found.keys() == set(PROBED)
        assert min(found.values()) > 0
    else:
        assert task.refuses(gt.estimator(key))


@pytest.mark.parametrize(
    ("options", "kind", "word"),
    [
        ({"problem": "qap"}, gt.ConfigError, "qp or vae"),
        ({"rounds": 0}, gt.DomainError, "rounds"),
        ({"steps_per_epoch": 0}, gt.DomainError, "steps_per_epoch"),
    ],
)
def test_wrong_options_are_refused(options, kind, word):
    with pytest.raises(kind, match=word):
        Efficiency(**options)
