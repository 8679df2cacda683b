"""Experiments: every name in a file is checked, settings merge in one order, keys stay."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

import gradthrough as gt
from gradthrough.bench.cells import cells, config_of, grid, merged
from gradthrough.bench.config import RunConfig
from gradthrough.bench.experiment import BUDGETS, Experiment, Override, Part, TableView
from gradthrough.bench.experiment_file import fits, load
from gradthrough.bench.typed import as_declared

COMMITTED = sorted((Path(__file__).parents[1] / "experiments").glob("*.toml"))
FILE = """
title = "Bits"
paper = "none"
skip = [{ size = "large", estimator = "st" }]

[run]
task = "polynomial"
lr = 1
task_options = { p = 2 }

[axes.estimator]
st = { estimator = "st" }
soft = { estimator = "gumbel_softmax", estimator_options = { tau = 1 } }

[axes.size]
small = { task_options = { length = 4 } }
large = { task_options = { length = 8 }, epochs = 7 }

[[overrides]]
where = { estimator = "soft" }
run = { lr = 0.5, estimator_options = { tau = 2 } }

[budgets.smoke]
seeds = "0"
run = { epochs = 1 }

[[budgets.laptop]]
where = { size = "small" }
seeds = "0..2"
together = true

[[budgets.laptop]]
seeds = "4"

[budgets.paper]
seeds = "0..9"

[[tables]]
title = "Loss"
rows = "estimator"
columns = "size"
metrics = { loss = "train/loss" }
published = { st = { small = [0.1, 0.01] } }

[[figures]]
title = "Curves"
lines = "estimator"
panels = "size"
metrics = { loss = "test/loss" }
log = "y"

[search]
space = { lr = { low = 1e-4, high = 1e-1, log = true } }
metric = "train/loss"
where = { estimator = ["st"] }
trials = { smoke = 2 }
"""


def read(tmp_path, text=FILE):
    path = tmp_path / "bits.toml"
    path.write_text(text, encoding="utf-8")
    return load(path)


def found(tmp_path, budget="paper", text=FILE):
    return {cell.title: cell for cell in cells(read(tmp_path, text), budget)}


# The file.


def test_a_file_is_an_experiment(tmp_path):
    one = read(tmp_path)
    assert (one.name, one.title) == ("bits", "Bits")
    assert one.budgets["smoke"] == (Part({}, "0", {"epochs": 1}),)
    assert one.budgets["laptop"][0] == Part({"size": ("small",)}, "0..2", {}, together=True)
    (override,) = one.overrides
    assert override.where == {"estimator": ("soft",)}
    assert one.skip == ({"size": ("large",), "estimator": ("st",)},)
    assert one.search.where == {"estimator": ("st",)}
    assert one.tables[0].published["st"]["small"] == [0.1, 0.01]
    assert one.figures[0].kind == "curves"


def test_a_file_that_is_not_there_names_those_that_are(tmp_path):
    with pytest.raises(gt.ConfigError, match=r"has no \*\.toml"):
        load(tmp_path / "bit.toml")
    read(tmp_path)
    with pytest.raises(gt.ConfigError, match=r"there is no experiment .*bit\.toml.*bits\.toml"):
        load(tmp_path / "bit.toml")


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('title = "Bits"', 'title = "Bits', "is not TOML"),
        ('title = "Bits"', "title = 3", "the file: title is 3, but must be text in quotes"),
        ('title = "Bits"', 'title = "B"\ntilte = "x"', "the file has tilte. Known: about, axes"),
        ('paper = "none"', "", "the file lacks paper"),
        ("[run]", "[walk]", "the file has walk"),
        ("small = { task_options = { length = 4 } }", "small = 4", "axes.size.small is 4"),
        ("[axes.size]", "[axes]\nshape = 3\n[axes.size]", "axes.shape is 3, but must be a table"),
        ("[axes.size]", "[axes.epoch]\na = {}\n[axes.size]", "axes.epoch: an axis needs levels"),
        ("[axes.size]", "[axes.none]\n[axes.size]", "axes.none: an axis needs levels"),
        ('size = "large", est', 'size = "big", est', "skip: size has no level 'big'. Known: small"),
        ('[{ size = "large", estimator = "st" }]', "[3]", "skip is 3, but must be a table"),
        ('where = { estimator = "soft" }', 'where = { e = "soft" }', "overrides[0]: no axis 'e'"),
        ('where = { estimator = "soft" }', 'where = "soft"', "overrides[0] is 'soft'"),
        ("[[overrides]]", "[overrides]", "overrides is one table, but there may be several"),
        ("[budgets.smoke]", "[budgets.fire]", "budgets are ['fire', 'laptop', 'paper']"),
        ('seeds = "0"', "seeds = 0", "budgets.smoke: seeds is 0, but must be text in quotes"),
        ('seeds = "0"', 'seed = "0"', "budgets.smoke has seed. Known: run, seeds"),
        ("together = true", "together = 1", "budgets.laptop: together is 1, but must be true or"),
        ("run = { epochs = 1 }", "run = 1", "budgets.smoke: run is 1, but must be a table"),
        ('rows = "estimator"', 'rows = "method"', "'Loss' spreads 'method'. Known: estimator"),
        ('rows = "estimator"', "", "'Loss' spreads ''"),
        ('columns = "size"', 'columns = "metric"', "'Loss' does not say which size it shows"),
        ('rows = "estimator"', 'rows = "estimator"\nspread = "x"', "tables[0]: spread is 'x', but"),
        ('rows = "estimator"', 'rows = "estimator"\nepochs = ["1"]', "tables[0]: epochs is ['1']"),
        ('metrics = { loss = "test/loss" }', "", "figures[0] lacks metrics"),
        ('"test/loss" }', '"testloss" }', "'Curves' has the metric 'testloss', but"),
        ('"test/loss" }', '"test/" }', "'Curves' has the metric 'test/', but must have 'split/me"),
        ('"test/loss" }', '"tset/loss" }', "one of the splits train, valid, test, probe, run"),
        ("[run]", "[run]\nseed = 3", "run has a seed. Seeds are those of the budgets: seeds = '0"),
        ("small = { task", "small = { seed = 3, task", "axes.size.small has a seed"),
        ("run = { epochs = 1 }", "run = { seed = 1 }", "budgets.smoke[0].run has a seed"),
        ('log = "y"', 'kind = "pies"', "figures[0]: kind is 'pies', but must be curves or bars"),
        ("trials = { smoke = 2 }", 'better = "up"', "search: better is 'up', but must be lower or"),
        ("trials = { smoke = 2 }", 'trials = { smoke = "2" }', "search: trials is {'smoke': '2'}"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(old, new, words, tmp_path):
    assert FILE.count(old) == 1
    with pytest.raises(gt.ConfigError, match=re.escape(words)) as error:
        read(tmp_path, FILE.replace(old, new))
    assert str(error.value).startswith(str(tmp_path / "bits.toml"))


@pytest.mark.parametrize(
    ("hint", "good", "bad"),
    [
        (str, "x", 1),
        (int, 1, True),
        (bool, False, 0),
        (int | None, None, "x"),
        (tuple[int, ...], (1, 2), ("1",)),
        (tuple[int, ...], (), [1]),
        (dict[str, int], {}, ()),
    ],
)
def test_values_fit_what_is_declared(hint, good, bad):
    assert fits(hint, good)
    assert not fits(hint, bad)


# Cells.


def test_the_cells_are_the_grid_without_what_is_skipped(tmp_path):
    one = read(tmp_path)
    assert grid(one) == [
        {"estimator": "st", "size": "small"},
        {"estimator": "soft", "size": "small"},
        {"estimator": "soft", "size": "large"},
    ]
    assert [cell.levels for cell in cells(one, "paper")] == grid(one)
    assert all(cell.seeds == tuple(range(10)) for cell in cells(one, "paper"))


def test_later_settings_win_and_tables_within_tables_merge(tmp_path):
    """All, then the axes in their order, then the overrides in theirs, then the budget."""
    cell = found(tmp_path)["soft, large"]
    assert cell.config.task_options["p"] == 2.0
    assert cell.config.task_options["length"] == 8
    assert cell.config.lr == 0.5
    assert cell.config.estimator_options == {"tau": 2.0}
    assert cell.config.epochs == 7
    assert found(tmp_path)["st, small"].config.lr == 1.0
    assert found(tmp_path, "smoke")["soft, large"].config.epochs == 1
    two = replace(read(tmp_path), overrides=tuple(Override({}, {"lr": lr}) for lr in (0.1, 0.2)))
    assert cells(two, "paper")[0].config.lr == 0.2
    axes = {"a": {"x": {"lr": 0.1}}, "b": {"x": {"lr": 0.2}}, **two.axes}
    assert cells(replace(two, axes=axes, overrides=(), skip=()), "paper")[0].config.lr == 0.2


def test_merging_changes_neither_side():
    a, b = {"x": {"y": 1, "z": 2}}, {"x": {"y": 3}}
    assert merged(a, b) == {"x": {"y": 3, "z": 2}}
    assert (a, b) == ({"x": {"y": 1, "z": 2}}, {"x": {"y": 3}})
    assert merged({"x": 1}, {"x": {"y": 2}}) == {"x": {"y": 2}}


def test_the_first_part_that_matches_holds(tmp_path):
    laptop = found(tmp_path, "laptop")
    assert laptop["st, small"].seeds == (0, 1, 2)
    assert laptop["st, small"].together
    assert laptop["soft, large"].seeds == (4,)
    assert laptop["soft, large"].config.seed == 4
    assert not laptop["soft, large"].together
    one = read(tmp_path)
    turned = replace(one, budgets={"laptop": one.budgets["laptop"][::-1]})
    assert {cell.seeds for cell in cells(turned, "laptop")} == {(4,)}
    only = replace(one, budgets={"laptop": one.budgets["laptop"][:1]})
    assert [cell.title for cell in cells(only, "laptop")] == ["st, small", "soft, small"]


def test_each_seed_has_its_config(tmp_path):
    cell = found(tmp_path, "laptop")["st, small"]
    assert [config.seed for config in cell.configs] == [0, 1, 2]
    assert all(replace(config, seed=0) == cell.config for config in cell.configs)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('task = "polynomial"', 'task = "poly"', "unknown task 'poly'. Known: vae"),
        ('estimator = "st" }\nsoft', 'estimator = "ts" }\nsoft', "unknown estimator 'ts'. Known"),
        ("length = 4", "lenght = 4", "lenght"),
        ("length = 4", "length = 0", "length must be at least 1, but is 0"),
        ("lr = 1\n", "lr = -1\n", "lr must be finite and above 0"),
        ("lr = 1\n", "lr = true\n", "lr is True, but must be a number"),
        ("run = { epochs = 1 }", "run = { epochs = 1.5 }", "epochs is 1.5, but must be a whole"),
        ("length = 4", "length = 4.5", "length is 4.5, but must be a whole number"),
        ("length = 4", "length = 4, p = true", "p is True, but must be a number"),
        ("run = { epochs = 1 }", "run = { task_options = 2 }", "task_options is 2, but must be a"),
        ('seeds = "0"', 'seeds = "3..1"', "write 1..3"),
    ],
)
def test_a_config_that_is_refused_is_named_by_its_cell(old, new, words, tmp_path):
    assert FILE.count(old) == 1
    with pytest.raises(gt.ConfigError, match=re.escape(words)) as error:
        found(tmp_path, "smoke", FILE.replace(old, new))
    assert str(error.value).startswith("bits, estimator=st, size=small: ")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *((name, x) for name in ("epochs", "samples", "batch_size") for x in (1.5, 2.0, True, "2")),
        *((name, x) for name in ("seed", "evaluate_every", "patience") for x in (1.0, False, None)),
        *((name, x) for name in ("lr", "weight_decay", "lr_end") for x in (True, "1", None)),
        *((name, x) for name in ("tuning_lr", "clip", "tau_end") for x in (True, "1")),
    ],
)
def test_a_config_takes_numbers_where_there_are_to_be_numbers(field, value):
    with pytest.raises(gt.ConfigError, match=f"{field} is {value!r}, but must be a"):
        RunConfig("polynomial", {}, "reinmax", **{field: value})


def test_an_unknown_budget_is_refused(tmp_path):
    with pytest.raises(gt.ConfigError, match="budget is 'desk', but bits has smoke, laptop"):
        cells(read(tmp_path), "desk")


def test_an_experiment_without_axes_is_one_cell():
    one = Experiment("one", "", "", {"task": "polynomial", "estimator": "st"}, {}, {"x": (Part(),)})
    (cell,) = cells(one, "x")
    assert cell.title == "st()"
    assert cell.config == RunConfig("polynomial", cell.config.task_options, "st", {})


# Keys.


def test_a_key_is_what_it_was():
    """Records on the disk are found by it: a change here makes all of them run again."""
    config = config_of({"task": "polynomial", "estimator": "reinmax", "lr": 1e-3, "epochs": 40})
    assert config.key == "98973a831fd8"


def test_a_whole_number_is_the_number_that_is_meant(tmp_path):
    text = FILE.replace("lr = 1\n", "lr = 1.0\n").replace("tau = 2", "tau = 2.0")
    text = text.replace("p = 2", "p = 2.0")
    assert text != FILE
    one, other = found(tmp_path), found(tmp_path, text=text)
    assert {k: c.config.key for k, c in one.items()} == {k: c.config.key for k, c in other.items()}


def test_the_order_within_a_file_does_not_move_keys(tmp_path):
    text = FILE.replace('task = "polynomial"\nlr = 1\n', 'lr = 1\ntask = "polynomial"\n').replace(
        "{ low = 1e-4, high", "{ high"
    )
    one, other = found(tmp_path), found(tmp_path, text=text.replace("high = 1e-1", "high = 1"))
    assert {k: c.config.key for k, c in one.items()} == {k: c.config.key for k, c in other.items()}


def test_options_that_a_file_leaves_out_are_in_the_config_of_a_task():
    config = config_of({"task": "polynomial", "estimator": "st"})
    assert config.task_options == {"length": 128, "p": 2.0, "target": 0.45, "steps_per_epoch": 200}
    assert config.estimator_options == {}
    assert config.samples == 1


def test_options_are_as_declared():
    assert as_declared(gt.GumbelRao, {"tau": 1, "k": 10}) == {"tau": 1.0, "k": 10}
    assert type(as_declared(gt.GumbelRao, {"tau": 1})["tau"]) is float
    assert type(as_declared(gt.GumbelRao, {"k": 10})["k"]) is int
    assert as_declared(RunConfig, {"tuning_lr": None, "clip": 5}) == {
        "tuning_lr": None,
        "clip": 5.0,
    }
    assert as_declared(gt.GumbelRao, {"unknown": 1}) == {"unknown": 1}


# What is committed.


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.stem)
def test_committed_experiments_have_cells_under_every_budget(path):
    one = load(path)
    for budget in BUDGETS:
        keys = [config.key for cell in cells(one, budget) for config in cell.configs]
        assert keys
    assert all(isinstance(table, TableView) for table in one.tables)
