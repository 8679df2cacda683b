"""The report: its numbers are those of the records, its verdicts say what was compared."""

import html
import itertools
import json
import math
import re
import shutil
import statistics
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from plotly.offline import get_plotlyjs

import gradthrough as gt
from gradthrough import cli
from gradthrough.bench import records
from gradthrough.bench.cells import cells
from gradthrough.bench.experiment import FigureView
from gradthrough.bench.experiment_file import load
from gradthrough.bench.records import Record
from gradthrough.bench.reporting.assembly import section
from gradthrough.bench.reporting.digits import measured, signed, significant
from gradthrough.bench.reporting.markdown import markdown
from gradthrough.bench.reporting.number import Number
from gradthrough.bench.reporting.numbers import Numbers
from gradthrough.bench.reporting.output import write
from gradthrough.bench.reporting.page import page
from gradthrough.bench.reporting.picture import png
from gradthrough.bench.reporting.runs import Store, family
from gradthrough.bench.reporting.style import COLOURS, styles
from gradthrough.bench.reporting.tables import table_of
from gradthrough.bench.reporting.verdicts import verdict
from gradthrough.bench.reporting.views import Published
from gradthrough.bench.sweep.job import Outcome
from gradthrough.bench.sweep.search import Studies

ROOT = Path(__file__).parents[1]
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
BROWSER = next(filter(None, map(shutil.which, BROWSERS)), None)
HEAD = """
title = "Tiny & <i>small</i>"
paper = "A <b>paper</b>"
about = "Two methods | a bar."

[run]
task = "polynomial"
task_options = { length = 4, steps_per_epoch = 10 }
epochs = 20

[axes.method]
"ReinMax" = { estimator = "reinmax", estimator_options = { tau = 1.0 } }
"ST" = { estimator = "st", estimator_options = { tau = 1.0 } }

[axes.p]
"2" = { task_options = { p = 2.0 } }
"3" = { task_options = { p = 3.0 } }
"""
BUDGETS = """
[[budgets.paper]]
seeds = "0..2"
[[budgets.laptop]]
run = { epochs = 10 }
[[budgets.smoke]]
run = { epochs = 1 }
"""
TABLE = """
[[tables]]
title = "Loss"
metrics = { loss = "train/loss" }
rows = "method"
columns = "p"
source = "Table 1"
published.ReinMax = { "2" = [10.0, 0.5], "3" = 20.5 }
published.ST = { "2" = [10.0, 0.5, 7] }
"""
FIGURE = """
[[figures]]
title = "Curves"
metrics = { loss = "train/loss" }
lines = "method"
panels = "p"
log = "x"
published.ReinMax."2" = { 1 = 14.0, 20 = [10.0, 0.5] }
"""


def experiment(folder, *more, head=HEAD, budgets=BUDGETS, name="tiny"):
    path = folder / f"{name}.toml"
    path.write_text("\n".join((head, budgets, *(more or (TABLE,)))), encoding="utf-8")
    return load(path)


def config(found, *levels, seed=0, budget="paper", **more):
    """The config of a cell."""
    cell = next(c for c in cells(found, budget) if tuple(c.levels.values()) == levels)
    return replace(cell.config, seed=seed, **more)


def put(results, one, values, *, end="done", reason=None, name="tiny", dirty=False, **series):
    """Records of a run with these training losses by epoch; `valid={5: 1.0}` adds another split."""
    place = {"commit": "c0ffee1234", "device": "abacus", "torch": "9.9", "dirty": dirty}
    lines = [Record("start", one.key, config=one.as_dict(), environment=place)]
    for epoch, value in enumerate(values, 1):
        cost = {"step": 10 * epoch, "evaluations": 640 * epoch, "seconds": 2.0 * epoch}
        lines.append(Record("metric", one.key, split="train", metric="loss", value=value, **cost))
        lines += [
            Record("metric", one.key, split=split, metric="loss", value=more[epoch], **cost)
            for split, more in series.items()
            if epoch in more
        ]
    if end is not None:
        lines.append(Record("end", one.key, status=end, reason=reason))
    records.write(results / name / f"{one.key}.jsonl", lines)


def falling(last, epochs=20):
    return [last + 0.2 * (epochs - e) for e in range(1, epochs + 1)]


def entry(found, results, *levels, table=0):
    return section(found, results).tables[table].entries[levels]


def test_a_number_is_the_mean_of_its_seeds(tmp_path):
    found = experiment(tmp_path)
    for seed, last in enumerate((1.0, 2.0, 4.0)):
        put(tmp_path, config(found, "ReinMax", "2", seed=seed), falling(last))
    ours = entry(found, tmp_path, "ReinMax", "2").ours
    assert ours.values == (1.0, 2.0, 4.0)
    assert (ours.mean, ours.n) == (pytest.approx(7 / 3), 3)
    assert ours.sd == pytest.approx(math.sqrt(7 / 3))
    assert ours.median == 2.0
    assert ours.quartiles == pytest.approx((1.5, 3.0))
    assert "**2.3 ± 1.5 (n=3)**" in markdown([section(found, tmp_path)], tmp_path)


def test_numbers_have_the_digits_that_they_deserve():
    assert measured(0.2038069, 0.000119) == "0.20381 ± 0.00012"
    assert measured(9.996, 0.0996) == "10.00 ± 0.10"  # rounded first
    assert measured(1234.5, 321.0) == "1234 ± 321"
    assert measured(1.2e-7, 3e-8) == "1.20e-07 ± 0.30e-07"
    assert measured(0.25, 1e-18) == "0.2500 ± 0"
    assert measured(96000.0) == "96000"
    assert significant(0.2038) == "0.2038"
    assert significant(0.99996) == "1.000"
    assert [signed(x) for x in (2.0, 2.04, -2.001, 3.14)] == ["+2.0", "+2.04", "-2.001", "+3.1"]


def number(*values, **more):
    return Number(values, (None,) * len(values), 20, **more)


PUBLISHED = Published(10.0, 0.5, "10.0 ± 0.5", 1)


@pytest.mark.parametrize(
    ("ours", "published", "kind", "text"),
    [
        (number(10.4), PUBLISHED, "within", "+0.8 sd, within 2 sd"),
        (number(9.0), PUBLISHED, "within", "-2.0 sd, within 2 sd"),
        (number(11.55), PUBLISHED, "outside", "outside: +3.1 sd"),
        (number(10.3), Published(10.1, 0.1, "", 1), "within", "+2.0 sd, within 2 sd"),
        (
            number(1.0, short=(5, 10), other="other settings: lr 1, not 2"),
            PUBLISHED,
            "shorter",
            "shorter: 5 of 10 epochs; other settings: lr 1, not 2",
        ),
        (number(8.0, 8.4), PUBLISHED, "outside", "outside: -3.6 sd"),
        (number(10.0, short=(10, 20)), PUBLISHED, "shorter", "shorter: 10 of 20 epochs"),
        (number(10.0, other="other settings: lr 1, not 2"), PUBLISHED, "other", "other settings"),
        (number(), PUBLISHED, "missing", "not run"),
        (number(lost={"diverged": 2}), PUBLISHED, "missing", "2 diverged"),
        (number(10.44), Published(10.0, None, "10.0", 1), "none", "difference +0.4"),
        (number(10.0), Published(10.0, 0.0, "10.0", 1), "none", "difference 0.0"),
        (number(10.0), None, "none", ""),
    ],
)
def test_a_verdict_is_in_units_of_the_published_deviation(ours, published, kind, text):
    found = verdict(ours, published)
    assert found.kind == kind
    assert found.text.startswith(text)


def test_a_standard_error_is_made_a_deviation(tmp_path):
    shared = TABLE.replace('source = "Table 1"', 'source = "Table 1"\nspread = "se"\nn = 16')
    found = experiment(tmp_path, shared)
    put(tmp_path, config(found, "ReinMax", "2"), falling(13.0))
    one = entry(found, tmp_path, "ReinMax", "2")
    assert one.published.sd == pytest.approx(0.5 * 4)
    assert one.verdict.text == "+1.5 sd, within 2 sd"
    assert entry(found, tmp_path, "ST", "2").published.sd == pytest.approx(0.5 * math.sqrt(7))
    with pytest.raises(gt.ConfigError, match="needs n"):
        section(experiment(tmp_path, shared.replace("n = 16", "")), tmp_path)


def test_a_shorter_run_says_so_and_is_not_mixed_with_longer_ones(tmp_path):
    found = experiment(tmp_path)
    short = [config(found, "ReinMax", "2", seed=s, epochs=10) for s in range(3)]
    for one in short:
        put(tmp_path, one, falling(3.0, 10))
    assert entry(found, tmp_path, "ReinMax", "2").verdict.text == "shorter: 10 of 20 epochs"
    assert entry(found, tmp_path, "ReinMax", "2").ours.n == 3
    put(tmp_path, config(found, "ReinMax", "2", seed=1), falling(10.1))
    one = entry(found, tmp_path, "ReinMax", "2")
    assert (one.ours.n, one.ours.mean, one.verdict.kind) == (1, 10.1, "within")


EPOCHS = TABLE.split("published")[0].replace('rows = "method"', 'rows = "epoch"') + (
    'where = { method = "ReinMax" }\nepochs = [5, 7, 10]\npublished."5" = { "2" = [1.0, 1.0] }\n'
)


def test_a_number_at_an_epoch_is_of_that_epoch(tmp_path):
    found = experiment(tmp_path, EPOCHS.replace("train/loss", "valid/loss"))
    valid = {5: 1.5, 10: 1.0, 15: 0.8, 20: 0.7}
    one = config(found, "ReinMax", "2", evaluate_every=5)
    put(tmp_path, one, falling(1.0), valid=valid)
    table = section(found, tmp_path).tables[0]
    assert [table.entries[e, "2"].ours.values for e in ("5", "7", "10")] == [(1.5,), (), (1.0,)]
    assert table.entries["5", "2"].verdict.text == "+0.5 sd, within 2 sd"  # as long as published
    assert table.entries["7", "2"].verdict.text == "1 without a value"
    assert table.entries["7", "3"].verdict.text == "not run"


def test_of_one_seed_the_longest_run_serves_that_has_the_number(tmp_path):
    found = experiment(tmp_path, EPOCHS)
    put(tmp_path, config(found, "ReinMax", "2"), falling(9.0))
    put(tmp_path, config(found, "ReinMax", "2", epochs=10), falling(1.0, 10))
    put(tmp_path, config(found, "ReinMax", "3"), falling(9.0)[:8], end=None)  # killed
    put(tmp_path, config(found, "ReinMax", "3", epochs=10), falling(1.0, 10))
    table = section(found, tmp_path).tables[0]
    assert table.entries["10", "2"].ours.values == (falling(9.0)[9],)
    assert table.entries["7", "3"].ours.values == (falling(9.0)[6],)
    assert table.entries["10", "3"].ours.values == (1.0,)


def test_what_a_killed_run_did_not_reach_is_absent(tmp_path):
    found = experiment(tmp_path)
    put(tmp_path, config(found, "ReinMax", "2"), falling(10.0)[:19], end=None)
    assert entry(found, tmp_path, "ReinMax", "2").verdict.text == "not run"
    assert "unfinished: 19 of 20 epochs" in markdown([section(found, tmp_path)], tmp_path)


@pytest.mark.parametrize("moved", ['schedule = "cosine"', "tau_end = 0.5"])
def test_under_a_schedule_a_run_of_other_length_is_another_protocol(tmp_path, moved):
    found = experiment(tmp_path, EPOCHS, head=HEAD.replace("epochs = 20", f"epochs = 20\n{moved}"))
    long, short = (config(found, "ReinMax", "2", epochs=e) for e in (20, 10))
    assert family(long) != family(short)
    assert family(long) == family(replace(long, seed=7))
    put(tmp_path, config(found, "ReinMax", "2", epochs=15), falling(1.0, 15))  # no budget's
    assert entry(found, tmp_path, "5", "2").ours.values == ()
    put(tmp_path, short, falling(3.0, 10))  # the laptop's
    assert entry(found, tmp_path, "5", "2").verdict.text == "shorter: 10 of 20 epochs"
    put(tmp_path, long, falling(1.0))
    one = entry(found, tmp_path, "5", "2")
    assert one.ours.values == (falling(1.0)[4],)
    assert one.verdict.kind == "outside"


@pytest.mark.parametrize("moved", ["", 'schedule = "cosine"'])
def test_how_often_one_looks_is_no_setting(tmp_path, moved):
    head = HEAD.replace("epochs = 20", f"epochs = 20\n{moved}")
    budgets = BUDGETS.replace("epochs = 10", "epochs = 10, evaluate_every = 5")
    found = experiment(tmp_path, head=head, budgets=budgets)
    put(tmp_path, config(found, "ReinMax", "2", budget="laptop"), falling(3.0, 10))
    assert entry(found, tmp_path, "ReinMax", "2").verdict.text == "shorter: 10 of 20 epochs"


def test_other_settings_get_no_verdict_and_smoke_no_place(tmp_path):
    budgets = BUDGETS.replace("epochs = 10", "epochs = 10, lr = 0.5")
    found = experiment(tmp_path, budgets=budgets.replace("epochs = 1 }", "epochs = 1, lr = 0.1 }"))
    put(tmp_path, config(found, "ReinMax", "2", budget="smoke"), falling(1.0, 1))
    assert entry(found, tmp_path, "ReinMax", "2").verdict.text == "not run"
    put(tmp_path, config(found, "ReinMax", "2", budget="laptop"), falling(10.0, 10))
    one = entry(found, tmp_path, "ReinMax", "2")
    assert one.verdict.text == "other settings: lr 0.5, not 0.0005; epochs 10, not 20"
    put(tmp_path, config(found, "ReinMax", "2"), falling(10.0))
    assert entry(found, tmp_path, "ReinMax", "2").verdict.kind == "within"


def test_a_smoke_run_that_is_only_shorter_has_no_place_either(tmp_path):
    found = experiment(tmp_path, TABLE, FIGURE)
    for seed in (0, 1):  # with --seeds, too
        put(tmp_path, config(found, "ReinMax", "2", budget="smoke", seed=seed), falling(1.0, 1))
    one = section(found, tmp_path)
    assert one.tables[0].entries["ReinMax", "2"].verdict.text == "not run"
    assert not one.ledger
    # What a laptop is to do counts, whatever else asks for it.
    both = experiment(tmp_path, budgets=BUDGETS.replace("epochs = 10", "epochs = 1"))
    assert entry(both, tmp_path, "ReinMax", "2").ours.short == (1, 20)


def test_a_laptop_of_two_names_for_one_thing_says_what_is_other(tmp_path):
    head = HEAD.replace("polynomial", "gradient_accuracy").replace("length = 4, steps_per_", "")
    head = head.replace("{ epoch = 10 }", "{ tau = 1.0 }").replace("{ p = ", "{ tau = ")
    budgets = BUDGETS.replace("epochs = 10", "task_options = { tau = 0.5 }")
    found = experiment(tmp_path, head=head, budgets=budgets)
    put(tmp_path, config(found, "ReinMax", "2", budget="laptop"), falling(1.0))
    said = entry(found, tmp_path, "ReinMax", "2").verdict.text
    assert said == "other settings: tau 0.5, not 2.0"


def test_seeds_that_came_to_nothing_are_counted_with_those_that_did_not(tmp_path):
    found = experiment(tmp_path)
    put(tmp_path, config(found, "ReinMax", "2"), falling(10.0))
    broken = {"end": "diverged", "reason": "the loss is <inf>"}
    put(tmp_path, config(found, "ReinMax", "2", seed=1), [3.0, None], **broken)
    put(
        tmp_path, config(found, "ReinMax", "2", seed=2, epochs=10), [3.0, None], **broken
    )  # shorter
    put(tmp_path, config(found, "ST", "2", seed=1), [3.0, None], **broken)
    one = section(found, tmp_path)
    assert one.tables[0].entries["ReinMax", "2"].ours.lost == {"diverged": 1}
    assert one.tables[0].entries["ST", "2"].verdict.text == "1 diverged"
    for text in (markdown([one], tmp_path), html.unescape(page([one]))):
        assert "10.00 (n=1; 1 diverged)" in text
        assert "the loss is" in text


DERIVED = """
[[tables]]
title = "Cost"
rows = "metric"
columns = "p"
where = { method = "ReinMax" }
[tables.metrics]
a = "run/seconds_per_epoch"
b = "run/milliseconds_per_step"
c = "run/evaluations_per_step"
d = "run/steps_to(valid/loss<=1.0)"
e = "run/steps_to(train/loss > 100)"
"""


def test_what_follows_from_the_records_of_a_run(tmp_path):
    found = experiment(tmp_path, DERIVED)
    put(tmp_path, config(found, "ReinMax", "2"), falling(1.0), valid={5: 1.5, 10: 1.0, 15: 0.8})
    table = section(found, tmp_path).tables[0]
    values = [table.entries[name, "2"].ours.values for name in "abcde"]
    assert values == [(2.0,), (200.0,), (64.0,), (100.0,), ()]
    assert table.entries["e", "2"].verdict.text == "1 without a value"
    (run,) = table.runs
    waited = [run.value("run/steps_to(valid/loss<=1.0)", epoch) for epoch in (0, 7, 10, 20, 21)]
    assert waited == [None, None, 100, 100, None]
    assert "training time of an epoch (s)" in table.says
    assert "steps to valid loss <= 1.0" in table.says


def test_what_is_left_to_run_is_listed(tmp_path):
    found = experiment(tmp_path)
    for seed in (0, 1):
        put(tmp_path, config(found, "ReinMax", "2", seed=seed), falling(10.0))
    put(tmp_path, config(found, "ST", "2", seed=2), [1.0], end="failed", reason="out of memory")
    text = markdown([section(found, tmp_path)], tmp_path)
    assert "2 of 12 runs done" in text
    assert "not run, seed 2: ReinMax, p = 2" in text
    assert "not run, seeds 0..1: ST, p = 2" in text
    assert "not run, seeds 0..2: ReinMax, p = 3; ST, p = 3" in text
    assert re.search(r"ST, p = 2, seed 2 .*: failed: out of memory", text)
    assert "0 of 4 runs done" in text  # on a laptop
    assert "not run, seed 0: all 4 cells" in text
    for cell in cells(found, "laptop"):
        put(tmp_path, cell.config, falling(1.0, 10))
    assert "all 4 runs done" in markdown([section(found, tmp_path)], tmp_path)


def test_a_run_that_another_experiment_has_done_counts_for_all_that_ask_for_it(tmp_path):
    found = experiment(tmp_path)
    first, second, third, fourth = (config(found, "ReinMax", "2", seed=s) for s in range(4))
    put(tmp_path, first, falling(10.0), name="other")
    put(tmp_path, second, falling(12.0))
    put(tmp_path, second, falling(50.0), name="other")  # its own comes first
    put(tmp_path, third, falling(50.0), name="other", end=None)  # it may never end
    put(tmp_path, fourth, falling(50.0), name="other")  # of a seed that nobody asked for
    (tmp_path / "other" / "notes.jsonl").write_text("no record\n")
    assert entry(found, tmp_path, "ReinMax", "2").ours.values == (10.0, 12.0)
    text = markdown([section(found, tmp_path)], tmp_path)
    assert "2 of 12 runs done" in text
    assert "not run, seed 2: ReinMax, p = 2" in text
    store = Store.read(tmp_path / "tiny", {first.key, second.key})
    assert [run.folder for run in store.runs] == ["tiny", "other"]
    assert f"0 `{first.key}` (of other), 1 `{second.key}`\n" in text


def test_where_numbers_were_made_is_said(tmp_path):
    found = experiment(tmp_path)
    put(tmp_path, config(found, "ReinMax", "2"), falling(10.0))
    put(tmp_path, config(found, "ReinMax", "2", seed=2), falling(10.0), dirty=True)
    one = section(found, tmp_path)
    keys = [config(found, "ReinMax", "2", seed=s).key for s in (0, 2)]
    for text in (markdown([one], tmp_path), page([one])):
        assert "2 runs, 1 with uncommitted changes. Commits: c0ffee1. Machines: abacus." in text
        assert "torch 9.9. Seeds 0,2." in text
        assert all(key in text for key in keys)


def filled(tmp_path, *more):
    found = experiment(tmp_path, *(more or (TABLE, FIGURE)))
    for seed in range(3):
        for p in "23":
            one = config(found, "ReinMax", p, seed=seed)
            put(tmp_path, one, falling(10 + 0.1234 * seed + 0.01 * int(p)))
    put(tmp_path, config(found, "ST", "2", epochs=10), falling(11.0, 10))
    return found


def ours_in(text):
    """The numbers of ours: bold in Markdown, and in the page."""
    text = text.replace(get_plotlyjs(), "")
    return re.findall(r"\*\*(.*?)\*\*", text) + re.findall(r"<b>(.*?)</b>", text)


def test_no_number_of_ours_without_a_record(tmp_path):
    found = filled(tmp_path)
    one = section(found, tmp_path)
    last = [[10 + 0.1234 * s + 0.01 * p for s in range(3)] for p in (2, 3)]
    known = {f"{measured(statistics.mean(x), statistics.stdev(x))} (n=3)" for x in last}
    known |= {"11.00 (n=1)"}
    plain = markdown([one], tmp_path)
    assert set(ours_in(plain)) == set(ours_in(page([one]))) == known
    shutil.rmtree(tmp_path / "tiny")
    bare = section(found, tmp_path)
    empty = markdown([bare], tmp_path)
    assert ours_in(empty) == ours_in(page([bare])) == []
    assert empty.count("*not run*") == 4
    assert not any(line.marks for _, c in bare.charts for p in c.panels for line in p.lines)


def test_a_report_says_nothing_of_where_a_machine_keeps_its_records(tmp_path):
    found = experiment(tmp_path)
    put(tmp_path / "disk", config(found, "ReinMax", "2"), falling(1.0))
    put(tmp_path / "disk", config(found, "ST", "2"), [1.0], end="failed", reason="no memory")
    one = section(found, tmp_path / "disk")
    near = markdown([one], tmp_path / "mine" / "docs")
    assert "records in `../../disk/tiny`" in near
    assert "](../../disk/tiny/" in near
    for start in (tmp_path / "a" / "b" / "c", Path(tmp_path.anchor) / "elsewhere"):
        far = markdown([one], start)
        assert one.ledger
        assert "disk" not in far
        assert "failed: no memory" in far


def test_the_same_records_make_the_same_files(tmp_path):
    found, files = filled(tmp_path), []
    for name in ("a", "b"):
        paths = {"to_markdown": tmp_path / name / "r.md", "to_html": tmp_path / name / "r.html"}
        write([section(found, tmp_path)], **paths)
        folder = sorted((tmp_path / name).rglob("*.*"))
        files.append({p.relative_to(tmp_path / name): p.read_bytes() for p in folder})
    assert files[0] == files[1]
    assert {str(p) for p in files[0]} == {"r.md", "r.html", "figures/tiny-curves.png"}
    text = files[0][Path("r.md")].decode()
    assert "(figures/tiny-curves.png)" in text
    assert "`../tiny`" in text  # the folder of the records, from where the file lies


def test_curves_are_means_of_the_same_seeds(tmp_path):
    found = filled(tmp_path)
    put(tmp_path, config(found, "ReinMax", "2", epochs=10, seed=7), falling(99.0, 10))
    ((_, chart),) = section(found, tmp_path).charts
    assert [panel.title for panel in chart.panels] == ["p = 2", "p = 3"]
    first, second = chart.panels[0].lines
    mean = 10 + 0.1234 + 0.02
    assert [m.x for m in first.marks] == list(range(1, 21))
    assert [m.y for m in first.marks] == pytest.approx(
        [mean + 0.2 * (20 - e) for e in range(1, 21)]
    )
    assert first.marks[3].high - first.marks[3].y == pytest.approx(0.1234)
    assert [(m.x, m.y, m.high) for m in first.published] == [(1.0, 14.0, 14.0), (20.0, 10.0, 10.5)]
    assert len(second.marks) == 10
    assert second.marks[0].low == second.marks[0].y
    assert "Hollow markers" in chart.caption
    assert "Not run: ST, p = 3" in chart.caption


def test_the_window_leaves_out_what_is_far_above(tmp_path):
    found = experiment(tmp_path, FIGURE)
    put(tmp_path, config(found, "ReinMax", "2"), [1000.0, *falling(10.0)[1:]])
    put(tmp_path, config(found, "ST", "2"), falling(12.0))
    ((_, chart),) = section(found, tmp_path).charts
    low, high = chart.panels[0].window
    assert low < 10.0
    assert 14 < high < 1000
    assert "leave out the first epochs" in chart.caption
    put(tmp_path, config(found, "ST", "2"), [990.0], end=None)  # it has only begun
    ((_, chart),) = section(found, tmp_path).charts
    assert chart.panels[0].window[1] < 500


def test_of_a_line_that_ended_badly_nothing_is_drawn_while_another_goes_on(tmp_path):
    found = experiment(tmp_path, FIGURE)
    put(tmp_path, config(found, "ReinMax", "2", seed=1), falling(5.0)[:15], end="diverged")
    ((_, chart),) = section(found, tmp_path).charts
    assert len(chart.panels[0].lines[0].marks) == 15
    put(tmp_path, config(found, "ReinMax", "2"), falling(10.0)[:4], end=None)
    ((_, chart),) = section(found, tmp_path).charts
    assert [m.y for m in chart.panels[0].lines[0].marks] == falling(10.0)[:4]


def test_published_numbers_stand_as_they_were_published(tmp_path):
    found = experiment(tmp_path, TABLE.replace("20.5", "20"))
    table = section(found, tmp_path).tables[0]
    texts = {place: e.published.text for place, e in table.entries.items() if e.published}
    assert texts == {
        ("ReinMax", "2"): "10.0 ± 0.5",
        ("ReinMax", "3"): "20.0",
        ("ST", "2"): "10.0 ± 0.5 (n=7)",
    }


BARS = """
[[figures]]
title = "Bars"
kind = "bars"
metrics = { loss = "train/loss" }
x = "p"
lines = "method"
published.ReinMax = { "2" = [10.0, 0.5] }
[[figures]]
title = "Over p"
metrics = { loss = "train/loss" }
x = "p"
lines = "method"
statistic = "median"
log = "y"
epoch = 5
"""


def test_bars_and_curves_over_an_axis(tmp_path):
    bars, curves = (chart for _, chart in section(filled(tmp_path, BARS), tmp_path).charts)
    assert list(bars.groups.values()) == ["p = 2", "p = 3"]
    assert [m.x for m in bars.panels[0].lines[0].marks] == ["2", "3"]
    assert "smaller budget: 10 of 20 epochs" in bars.caption
    line = curves.panels[0].lines[0]
    assert [(m.x, m.y) for m in line.marks] == [
        (2.0, pytest.approx(13.1434)),
        (3.0, pytest.approx(13.1534)),
    ]
    assert line.marks[0].high - line.marks[0].y == pytest.approx(0.1234 / 2)
    for chart in (bars, curves):
        assert png(chart).startswith(b"\x89PNG")


def test_a_method_looks_the_same_in_every_experiment(tmp_path):
    one = experiment(tmp_path)
    head = HEAD.replace('"ReinMax" = {', '"Enumerate" = { estimator = "enumerate" }\n"rm" = {')
    other = experiment(tmp_path, FIGURE.replace("ReinMax", "rm"), head=head, name="other")
    probes = {"a": "probe/cosine st", "b": "probe/error/exact reinmax"}
    looks = [
        styles(one, FigureView("", {"loss": "train/loss"}, lines="method")),
        styles(other, FigureView("", {"loss": "train/loss"}, lines="method")),
        styles(one, FigureView("", probes, lines="metric")),
        styles(one, FigureView("", {"loss": "train/loss"}, lines="p")),
    ]
    assert looks[0]["ReinMax"] == looks[1]["rm"] == looks[2]["b"]
    assert looks[0]["ST"] == looks[1]["ST"] == looks[2]["a"]
    assert [len({*look.values()}) for look in looks] == [2, 3, 2, 2]
    twice = HEAD.replace('"ST" = {', '"hot" = { estimator = "reinmax" }\n"ST" = {')
    view = FigureView("", {"loss": "train/loss"}, lines="method")
    look = styles(experiment(tmp_path, TABLE, head=twice, name="twice"), view)
    assert look["hot"].colour == look["ReinMax"].colour
    assert look["hot"].dash != look["ReinMax"].dash


def test_methods_of_one_estimator_on_several_tasks_have_their_own_colours(tmp_path):
    more = "\n".join(
        f'"{name}" = {{ estimator = "st", task_options = {{ length = {i + 5} }} }}'
        for i, name in enumerate(("all", "one"))
    )
    head = HEAD.replace(
        '"ST" = {', f'"Enumerate" = {{ estimator = "enumerate" }}\n{more}\n"ST" = {{'
    )
    view = FigureView("", {"loss": "train/loss"}, lines="method")
    look = styles(experiment(tmp_path, TABLE, head=head, name="tasks"), view)
    assert len({style.colour for style in look.values()}) == len(look) == 5
    usual = styles(experiment(tmp_path), view)
    assert look["ReinMax"] == usual["ReinMax"]  # enumerate, whose colour it is as well, gives way
    last = HEAD.replace('"ST" = {', f'{more}\n"STGS" = {{ estimator = "stgs" }}\n"ST" = {{')
    look = styles(experiment(tmp_path, TABLE, head=last, name="stgs"), view)
    assert look["STGS"].colour == COLOURS[2]  # its own, though others look for one before it


def test_what_all_cells_have_in_common_is_said_once(tmp_path):
    found = experiment(tmp_path)
    for name, p in itertools.product(("ReinMax", "ST"), ("2", "3")):
        put(tmp_path, config(found, name, p, budget="laptop"), falling(3.0, 10))
    one = section(found, tmp_path)
    text = markdown([one], tmp_path)
    assert "*shorter: 10 of 20 epochs*" not in text
    assert text.count("All of them: shorter, 10 of 20 epochs.") == 1
    put(tmp_path, config(found, "ST", "3"), falling(3.0))
    text = markdown([section(found, tmp_path)], tmp_path)
    assert text.count("*shorter: 10 of 20 epochs*") == 3
    assert "All of them" not in text


SEARCH = """
[search]
metric = "train/loss"
trials = { paper = 3, laptop = 2, smoke = 1 }
where = { method = "ReinMax" }
space.lr = { low = 1e-4, high = 1e-2, log = true }
"""


def searched(found, budget, results, losses):
    studies = Studies(found, budget, results)
    for value in losses:
        job = studies.next()
        put(results, job.config, falling(value, job.config.epochs))
        studies.tell(job, Outcome({job.config.key: "done"}, {}))
    studies.close()


def test_of_a_search_the_best_trial_counts_and_says_of_how_many(tmp_path):
    found = experiment(tmp_path, TABLE, SEARCH)
    searched(found, "laptop", tmp_path, (9.0, 1.0, 3.0, 4.0))  # two cells take turns
    said = entry(found, tmp_path, "ReinMax", "2").verdict.text
    assert said == "shorter: 10 of 20 epochs; 2 of 3 trials"
    searched(found, "paper", tmp_path, (9.9, 1.0, 8.0, 4.0))
    one = section(found, tmp_path)
    ours = one.tables[0].entries["ReinMax", "2"]
    assert (ours.ours.values, ours.ours.trials) == ((8.0,), 2)
    assert ours.verdict.text == "2 of 3 trials"
    searched(found, "paper", tmp_path, (9.0, 9.0))
    one = section(found, tmp_path)
    assert one.tables[0].entries["ReinMax", "2"].verdict.text == "outside: -4.0 sd"
    text = markdown([one], tmp_path)
    assert "8.000 (n=1; best of 3 trials)" in text
    assert "6 of 12 runs done" in text  # 2 cells of 3 trials, 2 of 3 seeds


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ('"3" = 20.5', '"4" = 20.5', "'4', which is no level of p"),
        ("published.ST", "published.TS", "'TS', which is no level of method"),
        ("[10.0, 0.5, 7]", '[10.0, "x"]', "must be a number"),
        ("[10.0, 0.5, 7]", "[]", "must be a number"),
        ("[10.0, 0.5, 7]", "[10.0, -0.5]", "a spread is at least 0"),
        ("[10.0, 0.5, 7]", "[10.0, 0.5, 0]", "n a whole number from 1"),
        ("[10.0, 0.5, 7]", "[10.0, 0.5, 2.5]", "n a whole number from 1"),
        ('"train/loss"', '"loss"', "'split/metric'"),
        ('"train/loss"', '"run/minutes"', "no derived number"),
        ('"train/loss" }', '"train/loss", b = "test/loss" }', "Spread 'metric'"),
        ("metrics = { loss = ", "epochs = [1, 2]\nmetrics = { loss = ", "Spread 'epoch'"),
        ("{ 1 = 14.0,", "{ first = 14.0,", "an epoch or a step"),
        ('panels = "p"', 'panels = "p"\nkind = "bars"', "bars over 'epoch'"),
        ('lines = "method"\npanels = "p"', 'x = "method"\nlines = "p"', "levels that are numbers"),
    ],
)
def test_a_view_that_cannot_be_shown_is_refused_in_words(tmp_path, before, after, said):
    views = (TABLE + FIGURE).replace(before, after, 1)
    if "x =" in after:
        views = views.split("published.ReinMax.")[0]
    assert views != TABLE + FIGURE
    with pytest.raises(gt.ConfigError, match=re.escape(said)):
        section(experiment(tmp_path, views), tmp_path)


def test_records_that_their_name_does_not_fit_are_refused(tmp_path):
    found = experiment(tmp_path)
    one = config(found, "ReinMax", "2")
    put(tmp_path, one, falling(1.0))
    path = tmp_path / "tiny" / f"{one.key}.jsonl"
    path.write_text(path.read_text().replace('"lr": 0.0005', '"lr": 0.0006'))
    with pytest.raises(gt.DomainError, match="key"):
        section(found, tmp_path)


def test_what_users_wrote_is_no_markup_and_the_page_names_no_address(tmp_path):
    one = section(filled(tmp_path), tmp_path)
    text = page([one])
    assert text.count(get_plotlyjs()) == 1
    bare = text.replace(get_plotlyjs(), "")
    assert "://" not in bare
    assert "default-src 'none'; script-src 'unsafe-inline'" in bare
    assert not re.search(r"<(link|iframe|img|object)|\ssrc=|@import|url\(", bare)
    assert "<i>small" not in bare + markdown([one], tmp_path)
    assert "<b>paper" not in bare + markdown([one], tmp_path)
    assert f'id="{one.name}"' in bare
    assert f'href="#{one.name}"' in bare


def test_the_command_writes_the_report_and_says_how_much_is_run(tmp_path, capsys):
    folder = tmp_path / "experiments"
    folder.mkdir()
    found = experiment(folder, TABLE, FIGURE)
    put(folder / "results", config(found, "ReinMax", "2"), falling(10.0))
    files = ["--markdown", str(tmp_path / "r.md"), "--html", str(tmp_path / "r.html")]
    cli.main(["bench", "report", str(folder), *files])
    said = capsys.readouterr().out
    assert "tiny: paper: 1 of 12 runs done" in said
    assert "`experiments/results/tiny`" in (tmp_path / "r.md").read_text(encoding="utf-8")
    assert not list(tmp_path.rglob("*.tmp"))
    before = (tmp_path / "r.html").read_bytes()
    cli.main(["bench", "report", str(folder / "tiny.toml"), *files])
    assert (tmp_path / "r.html").read_bytes() == before
    cli.main(["bench", "report", str(folder / "results")])
    assert re.search(r"reinmax\(.*\) .*10\.00", capsys.readouterr().out.split("Written")[-1])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nothing.toml"], "is no experiment"),
        (["results", "a.toml"], "Name one folder of results alone"),
        (["a.toml", "b/a.toml"], "two files are the experiment a"),
        (["a.toml", "--csv", "x.csv"], "--csv is of a folder"),
        (["a.toml", "--html", "b"], "b is a folder"),
        (["results", "--html", "x.html"], "are of experiments"),
        (["bad.toml"], "is not TOML"),
    ],
)
def test_the_command_refuses_in_one_line(tmp_path, monkeypatch, capsys, words, said):
    monkeypatch.chdir(tmp_path)
    for folder in ("results", "b"):
        Path(folder).mkdir()
    for folder in (tmp_path, tmp_path / "b"):
        experiment(folder, name="a")
    Path("bad.toml").write_text("= 3")
    with pytest.raises(SystemExit) as stop:
        cli.main(["bench", "report", *words])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


EXPERIMENTS = ("polynomial", "mnist_vae")


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_committed_records_belong_to_a_cell_of_their_experiment(name):
    path = ROOT / "experiments" / f"{name}.toml"
    if not path.exists():
        pytest.skip("the experiments are not part of the package")
    found = load(path)
    known = {family(cell.config) for b in ("paper", "laptop") for cell in cells(found, b)}
    store = Store.read(path.parent / "results" / name)
    assert all(family(run.config) in known for run in store.runs)
    assert all(table_of(found, view, Numbers(found, store)) for view in found.tables)


LISTEN = """<script>
const seen = {errors: [], asked: []};
addEventListener('error', e => seen.errors.push(String(e.message)), true);
addEventListener('unhandledrejection', e => seen.errors.push(String(e.reason)));
addEventListener('securitypolicyviolation', e => seen.asked.push(e.blockedURI));
</script>"""
LOOK = """<script>
addEventListener('load', () => setTimeout(() => {
  const all = what => [...document.querySelectorAll(what)], box = e => e.getBoundingClientRect();
  const shown = () => all('.plotly-graph-div').map(
    gd => gd.data.filter(t => t.visible !== false).length);
  Object.assign(seen, {
    asked: seen.asked.concat(performance.getEntriesByType('resource').map(e => e.name)),
    inner: innerWidth, scroll: document.documentElement.scrollWidth,
    right: Math.max(...all('.main-svg, .box').map(e => box(e).right)),
    table: [all('.box')[0].clientWidth, all('.box')[0].scrollWidth],
    charts: all('.plotly-graph-div').length, before: shown() });
  all('.legend button')[0].click();
  seen.after = shown();
  parent.postMessage(JSON.stringify(seen), '*');
}, 500));
</script>"""
FRAME = """<!doctype html><body><script>
addEventListener('message', e => {
  const out = document.createElement('pre');
  out.id = 'seen'; out.textContent = e.data; document.body.append(out); });
</script><iframe src="inner.html" style="border: 0; width: 400px; height: 4000px"></iframe>"""


@pytest.mark.skipif(BROWSER is None, reason=f"none of {', '.join(BROWSERS)} is installed")
def test_a_browser_shows_the_page_on_a_narrow_screen_without_a_network(tmp_path):
    text = page([section(filled(tmp_path, TABLE, FIGURE, BARS), tmp_path)])
    inner = text.replace("<head>", f"<head>{LISTEN}", 1).replace("</body>", f"{LOOK}</body>")
    (tmp_path / "inner.html").write_text(inner, encoding="utf-8")
    (tmp_path / "outer.html").write_text(FRAME, encoding="utf-8")
    command = [
        *(BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
        *("--disable-background-networking", "--host-resolver-rules=MAP * ~NOTFOUND"),
        *(f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=10000", "--dump-dom"),
        (tmp_path / "outer.html").as_uri(),
    ]
    out = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    found = re.search(r'<pre id="seen">(.*?)</pre>', out, re.DOTALL)
    assert found, out[-2000:]
    seen = json.loads(html.unescape(found[1]))
    assert seen["errors"] == seen["asked"] == []
    assert seen["inner"] == 400
    assert seen["scroll"] <= 400
    assert seen["right"] <= 400
    assert seen["table"][0] < seen["table"][1]  # it scrolls by itself
    assert seen["charts"] == 4
    # The button of a line hides it, its band and what was published, in all panels of its figure.
    assert [a - b for a, b in zip(seen["before"], seen["after"], strict=True)] == [3, 2, 0, 0]
