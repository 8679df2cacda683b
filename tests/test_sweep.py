"""Sweeps do every run once, whatever is killed, held by others or wrong, and say what happened."""

import contextlib
import importlib.util
import io
import multiprocessing
import os
import re
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console

import gradthrough as gt
from gradthrough import cli
from gradthrough.bench import records
from gradthrough.bench.cells import cells
from gradthrough.bench.experiment import Part
from gradthrough.bench.records import Record
from gradthrough.bench.seeds import parse_seeds
from gradthrough.bench.sweep import engine, states, view
from gradthrough.bench.sweep import work as working
from gradthrough.bench.sweep.engine import Watcher
from gradthrough.bench.sweep.executors import EXECUTORS, Resources, executor
from gradthrough.bench.sweep.executors.local import LocalExecutor
from gradthrough.bench.sweep.job import Job, Outcome
from gradthrough.bench.sweep.pace import Pace, Tail
from gradthrough.bench.sweep.plan import Run, jobs, narrowed, plan, seeds_text
from gradthrough.bench.sweep.states import Standing
from gradthrough.bench.sweep.sweep import sweep
from gradthrough.bench.tasks.polynomial import Polynomial
from gradthrough.cli_sweep import _parameters
from sweeping import Inline, measured, tiny

FILE = """
title = "Tiny"
paper = "none"
[run]
task = "polynomial"
task_options = { length = 4, steps_per_epoch = 10 }
batch_size = 2
[axes.estimator]
st = { estimator = "st" }
reinmax = { estimator = "reinmax" }
disarm = { estimator = "disarm" }
[axes.rate]
low = { lr = 1e-3 }
high = { lr = 1e-2 }
[budgets.smoke]
run = { epochs = 1 }
[budgets.laptop]
seeds = "0..1"
run = { epochs = 2 }
[budgets.paper]
"""


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Poll often, and keep the threads of this process."""
    monkeypatch.setattr(engine, "POLL", 0.02)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def local():
    """Two workers, which start once."""
    with contextlib.closing(LocalExecutor(2)) as found:
        yield found


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "tiny.toml"
    path.write_text(FILE)
    return path


def paths(experiment, out):
    return [run.path for row in plan(experiment, "laptop", out) for run in row.runs]


def numbers(experiment, out):
    return {path.name: measured(path) for path in paths(experiment, out)}


def states_of(experiment, out):
    return [states.standing(path).state for path in paths(experiment, out)]


def reference(experiment, out):
    """Return the numbers of a sweep that nothing happens to."""
    sweep(experiment, "laptop", executor=Inline(), out=out)
    assert set(states_of(experiment, out)) == {"done"}
    return numbers(experiment, out)


# Workers on this machine.


def test_a_sweep_does_its_grid_once(local, tmp_path):
    one = tiny(seeds="0..1")
    summary = sweep(one, "laptop", executor=local, out=tmp_path / "a")
    assert summary.count("done") == len(summary.runs) == 8
    assert numbers(one, tmp_path / "a") == reference(one, tmp_path / "b")
    before = [path.read_bytes() for path in paths(one, tmp_path / "a")]
    idle = Inline()
    assert sweep(one, "laptop", executor=idle, out=tmp_path / "a") == summary
    assert not idle.jobs
    assert [path.read_bytes() for path in paths(one, tmp_path / "a")] == before


class Killer(Watcher):
    """Kills one worker once all runs have a checkpoint."""

    def __init__(self, found):
        self.checkpoints, self.losses = [path.with_suffix(".ckpt") for path in found], []

    def lost(self, job):
        self.losses += job.paths

    def tick(self):
        if not self.losses and all(path.exists() for path in self.checkpoints):
            os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)


def test_a_killed_worker_costs_its_last_epoch_and_no_digit(local, tmp_path):
    one = tiny(epochs=80, levels=("st",))
    found = paths(one, tmp_path / "a")
    killer = Killer(found)
    summary = sweep(one, "laptop", executor=local, out=tmp_path / "a", watcher=killer)
    assert summary.count("done") == 2
    assert len(killer.losses) == 1, "the run ended before its worker could be killed"
    for path in found:
        first, *more = (r.step for r in records.read(path) if r.kind == "start")
        assert first == 0
        assert len(more) == (path in killer.losses), "the other worker went on"
        assert all(step > 0 and step % 10 == 0 for step in more)
    assert numbers(one, tmp_path / "a") == reference(one, tmp_path / "b")


# What goes wrong.


def failing_after(steps, monkeypatch):
    """Let the loss of p = 1.5 raise after some steps."""
    count, losses = iter(range(10**6)), Polynomial.losses

    def broken(self, *args):
        if self.p == 1.5 and next(count) >= steps:
            raise RuntimeError("out of\n luck")
        return losses(self, *args)

    monkeypatch.setattr(Polynomial, "losses", broken)


def test_a_run_that_raises_is_a_row_and_the_others_go_on(tmp_path, monkeypatch):
    one = tiny(levels=("st",))
    with monkeypatch.context() as patch:
        failing_after(15, patch)
        summary = sweep(one, "laptop", executor=Inline(), out=tmp_path / "a")
    assert [run.state for run in summary.runs] == ["failed", "done"]
    path = summary.runs[0].path
    start, *found, end = records.read(path)
    assert (start.kind, end.kind, end.status, end.step) == ("start", "end", "failed", 10)
    assert end.evaluations == 10 * 2
    assert end.reason == summary.runs[0].reason
    assert re.fullmatch(r"RuntimeError: out of luck \(.*test_sweep\.py:\d+\)", end.reason)
    assert {r.step for r in found} == {10}, "what it measured is kept"

    idle = Inline()
    again = sweep(one, "laptop", executor=idle, out=tmp_path / "a")
    assert not idle.jobs
    assert again.count("failed") == 1

    healed = sweep(one, "laptop", executor=idle, out=tmp_path / "a", rerun_failed=True)
    assert healed.count("done") == 2
    assert [r.step for r in records.read(path) if r.kind == "start"] == [0, 10]
    assert numbers(one, tmp_path / "a") == reference(one, tmp_path / "b")


def test_what_fails_before_it_starts_says_what_it_was(tmp_path):
    one = tiny(levels=("reinmax",), powers=(2.0,), run={"tuning_lr": 0.1})
    summary = sweep(one, "laptop", executor=Inline(), out=tmp_path)
    assert "ReinMax has nothing to learn" in summary.runs[0].reason
    start, end = records.read(summary.runs[0].path)
    assert start.config["tuning_lr"] == 0.1
    assert end.status == "failed"


def test_skipped_and_diverged_runs_are_ends_too(tmp_path):
    one = tiny(levels=("disarm",), powers=(2.0,))
    summary = sweep(one, "laptop", executor=Inline(), out=tmp_path)
    assert [run.state for run in summary.runs] == ["skipped"]
    assert "serves bernoulli" in summary.runs[0].reason
    wild = tiny(
        levels=("st",), powers=(2.0,), run={"optimizer": "sgd", "lr": 1e20, "weight_decay": 1e20}
    )
    summary = sweep(wild, "laptop", executor=Inline(), out=tmp_path)
    assert [run.state for run in summary.runs] == ["diverged"]
    idle = Inline()
    sweep(wild, "laptop", executor=idle, out=tmp_path, rerun_failed=True)
    assert not idle.jobs


@pytest.mark.parametrize(("losses", "state"), [(2, "done"), (3, "failed")])
def test_lost_workers_are_replaced_so_many_times(losses, state, tmp_path):
    one, flaky = tiny(levels=("st",), powers=(2.0,)), Inline(losses)
    summary = sweep(one, "laptop", executor=flaky, out=tmp_path, retries=2)
    assert [run.state for run in summary.runs] == states_of(one, tmp_path) == [state]
    assert len(flaky.jobs) == 3
    assert ("died 3 times" in summary.runs[0].reason) == (state == "failed")


def test_a_worker_that_cannot_work_is_a_row(tmp_path):
    one = tiny(levels=("st",), powers=(2.0,))
    summary = sweep(one, "laptop", executor=Inline(raises=OSError("no disk")), out=tmp_path)
    assert summary.runs[0].reason == "OSError: no disk"
    assert states_of(one, tmp_path) == ["failed"]


def test_a_row_that_cannot_be_written_is_told(tmp_path, monkeypatch):
    def full(*args):
        raise OSError("no room")

    monkeypatch.setattr(records, "write", full)
    one = tiny(levels=("st",), powers=(2.0,))
    summary = sweep(one, "laptop", executor=Inline(raises=ValueError("bad")), out=tmp_path)
    assert summary.count("failed") == 1
    assert re.match("ValueError: bad; .*could not be written.*no room", summary.runs[0].reason)


def test_ctrl_c_leaves_what_is_not_done_for_the_next_time(tmp_path):
    class Stop(Watcher):
        def tick(self):
            raise KeyboardInterrupt

    one = tiny()
    summary = sweep(one, "laptop", executor=Inline(), out=tmp_path / "a", watcher=Stop())
    assert summary.interrupted
    assert summary.count("done", "not started") == 4
    assert summary.count("done") == 1
    later = Inline()
    assert not sweep(one, "laptop", executor=later, out=tmp_path / "a").interrupted
    assert len(later.jobs) == 3
    assert numbers(one, tmp_path / "a") == reference(one, tmp_path / "b")


def test_records_that_are_none_are_named(tmp_path):
    one = tiny(levels=("st",), powers=(2.0,))
    (path,) = paths(one, tmp_path)
    path.parent.mkdir()
    path.write_text("what?\n")
    with pytest.raises(gt.DomainError, match=f"{path.name}: not a record"):
        sweep(one, "laptop", executor=Inline(), out=tmp_path)


# Several sweeps at once.


class Other(Watcher):
    """Another sweep that holds a run for a while, and may do it."""

    def __init__(self, path, then=lambda: None):
        self.lock, self.then, self.left = records.Lock(path), then, 5

    def tick(self):
        self.left -= 1
        if self.left == 0:
            self.lock.release()
            self.then()


def test_a_run_that_another_sweep_has_is_left_to_it(tmp_path):
    one, own = tiny(levels=("st",), powers=(1.5, 2.0)), Inline()
    held, free = paths(one, tmp_path)

    def do():
        (job,) = jobs(plan(narrowed(one, ["p=p1.5"], None), "laptop", tmp_path))
        working.work(job)

    summary = sweep(one, "laptop", executor=own, out=tmp_path, watcher=Other(held, do))
    assert [job.paths for job in own.jobs] == [(free,)]
    assert summary.count("done") == 2


def test_a_run_that_another_sweep_leaves_is_taken_up(tmp_path):
    one, own = tiny(levels=("st",), powers=(1.5, 2.0)), Inline()
    held, free = paths(one, tmp_path)
    summary = sweep(one, "laptop", executor=own, out=tmp_path, watcher=Other(held))
    assert [job.paths for job in own.jobs] == [(free,), (held,)]
    assert summary.count("done") == 2


def test_work_waits_for_a_run_that_another_process_writes(tmp_path, monkeypatch):
    (job,) = jobs(plan(tiny(levels=("st",), powers=(2.0,)), "laptop", tmp_path))
    lock, waited = records.Lock(job.paths[0]), []

    def sleep(seconds):
        waited.append(seconds)
        if len(waited) == 3:
            lock.release()

    monkeypatch.setattr(working.time, "sleep", sleep)
    assert working.work(job) == Outcome({job.config.key: "done"}, {})
    assert waited == [working.PATIENCE] * 3


class Impatient(Watcher):
    left = 20

    def tick(self):
        self.left -= 1
        assert self.left, "it waits for ever"


def test_a_disk_without_locks_is_a_failure_and_not_a_run_of_another(tmp_path, monkeypatch):
    def refuse(path):
        raise gt.ConfigError("no locks here")

    monkeypatch.setattr(records, "Lock", refuse)
    one, broken = tiny(levels=("st",), powers=(2.0,)), Inline(raises=OSError("a bad disk"))
    (end,) = sweep(one, "laptop", executor=broken, out=tmp_path, watcher=Impatient()).runs
    assert end.state == "failed"
    assert "a bad disk" in end.reason
    assert "no locks here" in end.reason


def test_a_failure_is_not_written_into_what_another_process_writes(tmp_path):
    (job,) = jobs(plan(tiny(levels=("st",), powers=(2.0,)), "laptop", tmp_path))
    lock = records.Lock(job.paths[0])
    assert states.fail(job, "lost") == Outcome({}, {})
    assert not job.paths[0].exists()
    lock.release()
    assert states.fail(job, "lost") == Outcome({job.config.key: "failed"}, {job.config.key: "lost"})
    assert states.fail(job, "again").reasons == {job.config.key: "lost"}


# Plans.


def write_end(config, path, status):
    start = Record("start", config.key, config=config.as_dict())
    records.write(path, [start, *([Record("end", config.key, status=status)] if status else [])])


def test_what_is_left_of_a_plan(tmp_path):
    one = tiny(seeds="0..4", powers=(2.0,))
    first, _ = plan(one, "laptop", tmp_path)
    ends = ("done", "failed", "diverged", None)
    for run, status in zip(first.runs, ends, strict=False):
        write_end(run.config, run.path, status)
    rows = plan(one, "laptop", tmp_path)
    assert rows[0].status == "1 done, 1 failed, 1 diverged, 1 unfinished, 1 not started"
    every = tuple(range(5))
    left = [(job.config.estimator, job.seeds) for job in jobs(rows)]
    assert left == [("st", (3,)), ("st", (4,)), *(("reinmax", (s,)) for s in every)]
    again = [(job.config.estimator, job.seeds) for job in jobs(rows, rerun_failed=True)]
    assert again == [("st", (1,)), *left]
    together = replace(one, budgets={"laptop": (Part(seeds="0..4", together=True),)})
    rows = plan(together, "laptop", tmp_path)
    left = [(job.config.estimator, job.config.seed, job.seeds) for job in jobs(rows)]
    assert left == [("st", 3, (3, 4)), ("reinmax", 0, every)]


def test_seeds_that_train_together_are_one_job(tmp_path):
    one = tiny(seeds="0..3", levels=("st",), powers=(2.0,), together=True)
    first = plan(one, "laptop", tmp_path)[0].runs[1]
    write_end(first.config, first.path, "failed")
    inline = Inline()
    summary = sweep(one, "laptop", executor=inline, out=tmp_path)
    assert [job.seeds for job in inline.jobs] == [(0, 2, 3)]
    assert [run.state for run in summary.runs] == ["done", "failed", "done", "done"]
    assert records.read(paths(one, tmp_path)[0])[-1].together == 3


def test_a_run_that_two_cells_want_is_one_job(tmp_path):
    one = tiny(levels=("st",), powers=(2.0,), seeds="0..1")
    twice = replace(one, axes={**one.axes, "name": {"a": {}, "b": {}}})
    assert len(plan(twice, "laptop", tmp_path)) == 2
    assert [job.seeds for job in jobs(plan(twice, "laptop", tmp_path))] == [(0,), (1,)]
    summary = sweep(twice, "laptop", executor=Inline(), out=tmp_path)
    assert summary.count("done") == len(summary.runs) == 2


def test_jobs_come_in_the_order_of_the_file(tmp_path):
    found = list(jobs(plan(tiny(seeds="0..1"), "laptop", tmp_path), threads=3, accelerator="cpu"))
    assert [job.title for job in found[::2]] == [
        *("st, p1.5", "st, p2.0"),
        *("reinmax, p1.5", "reinmax, p2.0"),
    ]
    assert {(job.threads, job.accelerator) for job in found} == {(3, "cpu")}
    assert [Job.from_dict(job.as_dict()).paths for job in found] == [job.paths for job in found]


def test_only_and_seeds_narrow_an_experiment(tmp_path):
    some = narrowed(tiny(), ["p=p2.0", "estimator=st", "estimator=reinmax"], "3,5")
    rows = plan(some, "laptop", tmp_path)
    assert [(row.cell.title, row.cell.seeds) for row in rows] == [
        ("st, p2.0", (3, 5)),
        ("reinmax, p2.0", (3, 5)),
    ]
    whole = {run.path for row in plan(tiny(seeds="3,5"), "laptop", tmp_path) for run in row.runs}
    assert {run.path for row in rows for run in row.runs} < whole, "the keys are those of the whole"


def test_a_level_may_have_commas_in_its_name():
    sgd, plain = {"optimizer": "sgd"}, dict[str, str]()
    one = replace(tiny(), axes={"how": {"sgd, slow": sgd, "sgd": sgd, "adam": plain}})
    assert [*narrowed(one, ["how=sgd, slow"], None).axes["how"]] == ["sgd, slow"]
    some = narrowed(one, ["how=sgd, slow", "how=sgd,adam"], None)
    assert [*some.axes["how"]] == ["sgd, slow", "sgd", "adam"]


@pytest.mark.parametrize(
    ("only", "seeds", "words"),
    [
        (["p=p3"], None, "p has no level 'p3'. Known: p1.5, p2.0"),
        (["p=p2.0,"], None, "p has no level ''"),
        (["q=p3"], None, "tiny has no axis 'q'. Known: estimator, p"),
        (["p"], None, "must be AXIS=LEVEL"),
        ([], "a", "seeds are 'a'"),
    ],
)
def test_what_is_not_there_is_refused_in_words(only, seeds, words):
    with pytest.raises(gt.ConfigError, match=re.escape(words)):
        narrowed(tiny(), only, seeds)


def test_an_experiment_without_a_cell_is_refused(tmp_path):
    none = replace(tiny(), skip=({},))
    with pytest.raises(gt.ConfigError, match="no cell of tiny"):
        plan(none, "laptop", tmp_path)


@pytest.mark.parametrize("text", ["0", "0..2", "0,2,4", "0..1,3,5..9"])
def test_seeds_are_shown_as_they_are_typed(text):
    assert seeds_text(parse_seeds(text)) == text


def test_a_worker_keeps_few_data_sets(tmp_path, monkeypatch):
    monkeypatch.setattr(working, "_tasks", {})
    configs = [row.cell.config for row in plan(tiny(powers=range(1, 8)), "laptop", tmp_path)]
    tasks = [working._task(config) for config in configs]
    assert working._task(configs[-1]) is tasks[-1]
    assert len(working._tasks) == 4


# What one sees.


def shown(terminal):
    return Console(file=io.StringIO(), force_terminal=terminal, width=100, height=20)


def test_without_a_terminal_each_end_is_a_line(tmp_path):
    console = shown(False)
    one = tiny(levels=("st", "disarm"), powers=(2.0,))
    summary = sweep(one, "laptop", executor=Inline(1), out=tmp_path, watcher=view.View(console))
    console.print(view.summary_table(summary))
    lines = console.file.getvalue().splitlines()
    assert lines[0].startswith("st, p2.0, seed 0: its worker died")
    assert re.fullmatch(r"\[1/2\] st, p2.0, seed 0: done in 0:\d\d", lines[1])
    assert re.match(r"\[2/2\] disarm, p2.0, seed 0: skipped in 0:00\. disarm\(\): DisARM", lines[2])
    assert re.search(r"\n done +1 +\n skipped +1 +disarm, p2.0 +0 +disarm\(\)", "\n".join(lines))


def test_on_a_terminal_there_are_bars(tmp_path):
    seen = []

    class Look(view.View):
        def ended(self, job, outcome):
            console.print(self.picture())
            seen.append(console.file.getvalue())
            super().ended(job, outcome)

    console = shown(True)
    one = tiny(epochs=4, levels=("st",))
    summary = sweep(one, "laptop", executor=Inline(), out=tmp_path, watcher=Look(console))
    assert summary.count("done") == 2
    assert "st, p1.5, seed 0" in seen[0]
    assert "4/4" in seen[0]
    assert "steps/s" in seen[0]
    assert "0/2 runs" in seen[0]
    assert "1/2 runs" in seen[1]


def test_many_jobs_fit_the_screen(tmp_path):
    console = Console(file=io.StringIO(), force_terminal=True, width=80, height=7)
    one = view.View(console)
    rows = plan(tiny(seeds="0..9"), "laptop", tmp_path)
    one.begin(rows, 0)
    for job in jobs(rows):
        one.started(job)
    one.finish()
    console.file.seek(0)
    console.file.truncate()
    console.print(one.picture())
    text = console.file.getvalue()
    assert "and 37 more" in text
    assert "0/40 runs, - left" in text


def test_the_tail_of_a_run_is_its_standing(tmp_path):
    one = tiny(levels=("st",), powers=(2.0,))
    (path,) = paths(one, tmp_path)
    tail = Tail(path)
    assert tail.look() == Standing()
    sweep(one, "laptop", executor=Inline(), out=tmp_path)
    whole = tail.look()
    assert (whole.state, whole.epochs, whole.steps) == ("done", 3, 30)
    lines = records.read(path)
    records.write(path, lines[:4])
    assert (tail.look().state, tail.look().epochs) == ("unfinished", 1)
    path.write_bytes(path.read_bytes() + b'{"half')
    assert tail.look().epochs == 1


def test_the_time_left_counts_work_by_its_seconds():
    """An epoch of st costs 1 s, one of reinmax 3 s; of 8 each, 4 and 0 were done before."""
    fast, slow = (cell.config for cell in cells(tiny(8, powers=(2.0,)), "laptop"))
    first, second = Path("fast"), Path("slow")
    pace = Pace(
        [
            Run("fast", fast, first, Standing("unfinished", "", 4, 40, 4.0)),
            Run("slow", slow, second, Standing()),
        ]
    )
    assert pace.left(30.0) is None, "nothing was done"
    pace.note(second, slow, Standing("unfinished", "", 1, 10, 3.0))
    assert pace.left(50.0) is None, "until here workers started"
    pace.note(second, slow, Standing("unfinished", "", 3, 30, 9.0))
    # Six seconds of training took ten.
    assert pace.left(60.0) == pytest.approx(10 * (5 * 3 + 4 * 1) / 6)
    pace.note(first, fast, Standing("diverged", "", 4, 40, 4.0))
    assert pace.left(60.0) == pytest.approx(10 * (5 * 3) / 6)
    pace.note(second, slow, Standing("done", "", 8, 80, 24.0))
    assert pace.left(90.0) == 0


def test_what_a_search_will_ask_for_counts_as_the_mean():
    (cell,) = cells(tiny(8, levels=("st",), powers=(2.0,)), "laptop")
    pace = Pace([Run("st", cell.config, Path("st"), Standing())], further=3)
    for epochs in (1, 4):
        pace.note(Path("st"), cell.config, Standing("unfinished", "", epochs, 0, epochs / 2))
        assert epochs == 4 or pace.left(2.0) is None
    left = pytest.approx((8.0 - 2.0) * (4 + 3 * 8) / 3)
    assert pace.left(8.0) == left
    pace.asked()
    pace.note(Path("new"), replace(cell.config, lr=0.1), Standing())
    assert pace.left(8.0) == left


# The command line, and the table of executors.


def test_the_command_line_sweeps(file, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(EXECUTORS, "local", lambda resources: Inline())
    words = ["bench", "sweep", str(file), "--budget", "smoke", "--out", str(tmp_path)]
    cli.main([*words, "--only", "estimator=st,disarm", "--only", "rate=low"])
    told = capsys.readouterr().out
    assert re.search(r"done +1 *\n skipped +1 ", told)
    assert len(list(tmp_path.glob("tiny/*.jsonl"))) == 2
    cli.main([*words, "--dry-run"])
    table = capsys.readouterr().out
    assert re.search(r" st, low +[0-9a-f]{12} +0 +1 done", table)
    assert re.search(r" reinmax, high +[0-9a-f]{12} +0 +1 not started", table)
    assert len(list(tmp_path.glob("tiny/*.jsonl"))) == 2, "a dry run runs nothing"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--only", "rate=none"], "rate has no level 'none'"),
        (["--retries", "-1"], "--retries must be at least 0"),
        (["--workers", "0"], "workers must be at least 1"),
        (["--threads", "0"], "threads must be at least 1"),
        (["--seeds", "3..1"], "write 1..3"),
        (["--slurm", "mem_gb"], "--slurm is 'mem_gb', but must be NAME=VALUE"),
    ],
)
def test_the_command_line_refuses_in_words(words, message, file, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(["bench", "sweep", str(file), *words])
    assert end.value.code == 2
    assert message in capsys.readouterr().err


def test_parameters_of_slurm_are_read_as_they_are_meant():
    found = _parameters(["mem_gb=8", "partition=gpu", "comment=a=b"])
    assert found == {"mem_gb": 8, "partition": "gpu", "comment": "a=b"}


def test_no_experiment_is_refused(capsys):
    with pytest.raises(SystemExit):
        cli.main(["bench", "sweep"])
    assert "no experiment came" in capsys.readouterr().err


def test_an_experiment_is_refused_before_another_one_runs(file, tmp_path, monkeypatch, capsys):
    executor = Inline()
    monkeypatch.setitem(EXECUTORS, "local", lambda resources: executor)
    other = file.with_name("other.toml")
    other.write_text(file.read_text().replace('"st"', '"ts"'))
    with pytest.raises(SystemExit) as end:
        cli.main(["bench", "sweep", str(file), str(other), "--out", str(tmp_path)])
    assert end.value.code == 2
    assert "unknown estimator 'ts'" in capsys.readouterr().err
    assert not executor.jobs


def test_a_failure_is_the_exit_status(file, tmp_path, monkeypatch):
    monkeypatch.setitem(EXECUTORS, "local", lambda resources: Inline(raises=OSError("no disk")))
    with pytest.raises(SystemExit) as end:
        cli.main(["bench", "sweep", str(file), "--budget", "smoke", "--out", str(tmp_path)])
    assert end.value.code == 1


def test_ctrl_c_is_the_exit_status(file, tmp_path, monkeypatch, capsys):
    class Stopped(Inline):
        def submit(self, work, job):
            raise KeyboardInterrupt

    monkeypatch.setitem(EXECUTORS, "local", lambda resources: Stopped())
    with pytest.raises(SystemExit) as end:
        cli.main(["bench", "sweep", str(file), "--out", str(tmp_path)])
    assert end.value.code == 130
    found = capsys.readouterr()
    assert "The same command goes on" in found.err
    assert "not started" in found.out


def test_executors_come_by_name(monkeypatch):
    with pytest.raises(gt.ConfigError, match=r"unknown executor 'cloud'\. Known: local, "):
        executor("cloud", Resources())
    with contextlib.closing(executor("local", Resources(workers=3))) as found:
        assert found.workers == 3
    with contextlib.closing(executor("local", Resources(threads=10**6))) as found:
        assert found.workers == 1


@pytest.mark.parametrize(("key", "package"), [("ray", "ray"), ("slurm", "submitit")])
def test_a_package_that_is_missing_is_named(key, package, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(gt.ConfigError, match=rf"needs {package}: .*gradthrough\[cluster\]"):
        executor(key, Resources())
