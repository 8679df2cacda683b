"""The files of experiments: they load, their cells build, and what they show can be measured."""

import json
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from gradthrough.bench import _files, records
from gradthrough.bench.cells import cells, matches
from gradthrough.bench.experiment import BUDGETS
from gradthrough.bench.experiment_file import load
from gradthrough.bench.nas_tables import COLUMNS
from gradthrough.bench.reporting import derived
from gradthrough.bench.reporting.names import name_of
from gradthrough.bench.reporting.views import Reader
from gradthrough.bench.sweep.space import check_metric, space_of
from gradthrough.bench.tasks import TASKS
from gradthrough.bench.train import run

FOLDER = Path(__file__).parent.parent / "experiments"
FILES = sorted(FOLDER.glob("*.toml"))
EVERY = pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
GENERATED = {"digits", "generated"}  # data that comes with scikit-learn, or from a recipe
VARIANCES = {"mc variance", "minibatch variance", "squared bias", "squared gradient"}
ACCURACY = {"error/exact", "error/mean", "std/mean", "cosine", "bias", "corrected cosine"}
SWEPT = {"variance", "bias", "cosine", "corrected cosine"}
SHARPENED = {"variance", "sampled variance"}
RULES = ("st", "st_importance", "reinmax")
# What a number may be missing for, in a model that has hardly trained.
RARE = ("corrected cosine", "relative squared bias", "error/mean", "std/mean", "cosine")


def experiment(name):
    return load(FOLDER / f"{name}.toml")


def probed(config):
    """Return what the probe of a config may find."""
    options = config.task_options
    found = {"relative squared bias", *VARIANCES} if options.get("variance_minibatches") else set()
    if config.task == "gradient_accuracy":
        found |= {f"{name} {key}" for name in ACCURACY for key in options["estimators"]}
    if config.task == "temperature":
        found |= {f"{name} tau={tau:g}" for name in SWEPT for tau in options["taus"]}
        found |= {
            f"{name} {rule} sharpness={scale:g}"
            for name in SHARPENED
            for rule in RULES
            for scale in options["sharpness"]
        }
        found.add("squared gradient")
    if config.task == "efficiency":
        found |= {m.name for m in TASKS[config.task].metrics[1:]}
    if config.task == "nas":
        found |= {"cell", "entropy", *(("index", *COLUMNS) if options["lookup"] else ())}
    return found


def measured(config):
    """Return every ``split/metric`` that a run of a config may have."""
    metrics = TASKS[config.task].metrics
    found = {f"train/{metrics[0].name}"}
    found |= {f"{split}/{m.name}" for split in ("valid", "test") for m in metrics}
    return found | {f"probe/{name}" for name in probed(config)}


def views(one):
    return (*one.tables, *one.figures)


def steps_of(config, images):
    return config.epochs * math.ceil(images / config.batch_size)


def test_there_is_a_file_for_each_published_table():
    wanted = {
        *("efficiency", "polynomial_grid", "bernoulli_vae", "temperature", "gradient_accuracy"),
        *("arity", "listops", "listops_gr", "nas", "mnist_vae", "polynomial"),
    }
    assert wanted <= {path.stem for path in FILES}


@EVERY
@pytest.mark.parametrize("budget", BUDGETS)
def test_the_cells_of_every_budget_are_configs_of_their_own(path, budget):
    one = load(path)
    found = cells(one, budget)
    assert found
    keys = Counter(config.key for cell in found for config in cell.configs)
    assert keys.most_common(1)[0][1] == 1
    for cell in found:
        assert json.loads(json.dumps(cell.config.as_dict())) is not None
        assert not cell.together or cell.config.tuning_lr is None


@EVERY
def test_a_smoke_budget_is_tiny(path):
    found = cells(load(path), "smoke")
    assert len(found) <= 40
    for cell in found:
        options = cell.config.task_options
        assert cell.config.epochs <= 2
        assert len(cell.seeds) <= 2
        assert options.get("steps_per_epoch", 0) <= 10 or options.get("problem") == "vae"
        assert options.get("source", options.get("dataset", "digits")) in GENERATED or (
            options.get("problem") == "qp"
        )
        assert options.get("bound_samples", 0) <= 10
        hidden = options.get("hidden", 16)
        assert hidden <= 16 if isinstance(hidden, int) else math.prod(hidden) <= 256


@EVERY
def test_views_show_cells_that_exist_and_publish_nothing_else(path):
    one = load(path)
    assert one.tables
    for view in views(one):
        reader = Reader(one, view)  # refuses levels that there are not
        stack = [((), view.published)]
        while stack:
            levels, inner = stack.pop()
            if len(levels) == len(reader.spread):
                assert reader.place(levels) is not None, (view.title, levels)
                continue
            stack += [((*levels, level), x) for level, x in inner.items()]
        assert not view.published or view.source, view.title


@EVERY
def test_what_views_show_is_measured_in_some_of_their_cells(path):
    one = load(path)
    every = [cell for budget in ("laptop", "paper") for cell in cells(one, budget)]
    for view in views(one):
        there = [cell for cell in every if matches(view.where, cell.levels)]
        assert there, f"{view.title}: neither laptop nor paper has a cell of it"
        known = set.union(*(measured(cell.config) for cell in there))
        for metric in view.metrics.values():
            assert name_of(one, metric).title
            if metric.startswith(derived.SPLIT):
                metric = derived.watched(metric)
            assert metric is None or metric in known, (view.title, metric)


@EVERY
def test_a_search_asks_for_settings_that_its_cells_have(path):
    one = load(path)
    if one.search is None:
        return
    for budget in BUDGETS:
        searched = [c for c in cells(one, budget) if matches(one.search.where, c.levels)]
        assert bool(searched) == (one.search.trials.get(budget, 0) > 0)
        for cell in searched:
            assert set(space_of(one.search, cell.config)) == set(one.search.space)
            check_metric(one.search.metric, cell.config.task)


@EVERY
def test_a_cell_of_the_smoke_budget_runs(path, tmp_path, monkeypatch):
    monkeypatch.setattr(_files, "cache_folder", lambda: tmp_path / "cache")
    found = cells(load(path), "smoke")
    cell = min(found, key=lambda c: (c.config.estimator in ("gumbel_rao", "rodeo"), found.index(c)))
    config = replace(cell.config, epochs=1)
    result = run(config, out=tmp_path, accelerator="cpu", progress=False)
    assert result.status == "done", result
    lines = [r for r in records.read(result.path) if r.kind == "metric" and r.split != "train"]
    found = {f"{r.split}/{r.metric}" for r in lines}
    assert found <= measured(config)
    expected = {name for name in probed(config) if not name.startswith(RARE)}
    assert {f"probe/{name}" for name in expected} <= found


def test_temperatures_are_swept_with_the_settings_of_the_table():
    table = {tuple(c.levels.values()): c.config for c in cells(experiment("mnist_vae"), "paper")}
    for cell in cells(experiment("temperature"), "paper"):
        other = table[cell.levels["method"], cell.levels["size"]]
        assert (cell.config.lr, cell.config.optimizer) == (other.lr, other.optimizer)
        assert cell.config.task_options["classes"] == other.task_options["classes"]
        assert cell.config.estimator_options["tau"] == float(cell.levels["tau"])


def test_arities_share_the_size_of_the_code_and_the_number_of_steps():
    one = experiment("arity")
    for budget, steps in (("laptop", 10_000), ("paper", 50_000)):
        for cell in cells(one, budget):
            options = cell.config.task_options
            assert options["latents"] * math.log2(options["classes"]) == 240
            short = steps_of(cell.config, 50_000) - steps
            assert 0 <= short < cell.config.epochs  # the last batch of an epoch is smaller


def test_published_steps_of_bernoulli_vaes():
    images = {"mnist": 60_000, "fashion-mnist": 60_000, "omniglot": 24_345}
    for cell in cells(experiment("bernoulli_vae"), "paper"):
        options = cell.config.task_options
        left = images[options["dataset"]] - options["valid"]
        assert abs(steps_of(cell.config, left) - 10**6) < left / cell.config.batch_size


@pytest.mark.parametrize("budget", ["laptop", "paper"])
def test_methods_of_bernoulli_vaes_evaluate_equally_often(budget):
    for cell in cells(experiment("bernoulli_vae"), budget):
        config = cell.config
        task, estimator = TASKS[config.task](**config.task_options), config.build_estimator()
        law = task.law().expand(config.samples)
        assert len(estimator.draw(law, estimator.noise(law)).points) == int(cell.levels["K"])


def test_one_protocol_of_bernoulli_vaes_differs_in_one_thing():
    one = experiment("bernoulli_vae")
    found = {tuple(c.levels.values()): c.config.as_dict() for c in cells(one, "paper")}
    for (k, dataset, method, protocol), config in found.items():
        shared = found[k, dataset, method, "shared"]
        ours, theirs = config["task_options"], shared["task_options"]
        options = {n for n in {*ours, *theirs} if ours.get(n) != theirs.get(n)}
        settings = {n for n in config if config[n] != shared[n]} - {"task_options"}
        if protocol == "own":
            assert options == {"binarize", "prior", "kl", "link"}
            assert {"optimizer"} <= settings <= {"optimizer", "lr", "estimator_options"}
        elif protocol == "RAdam, tuned":
            assert not options
            assert {"optimizer"} <= settings <= {"optimizer", "lr"}
        else:
            assert len(options) == (protocol != "shared")
            assert not settings


def test_gumbel_rao_of_the_cost_table_has_the_draws_of_its_name():
    for cell in cells(experiment("efficiency"), "laptop"):
        name = cell.levels["method"]
        if name.startswith("GR-"):
            assert cell.config.estimator_options["k"] == int(name.removeprefix("GR-"))
