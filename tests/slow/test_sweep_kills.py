"""Sweeps that are killed at any moment lose nothing, repeat nothing, and end with equal numbers."""

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from gradthrough.bench import records
from gradthrough.bench.experiment_file import load
from gradthrough.bench.sweep.executors.base import AbstractExecutor
from gradthrough.bench.sweep.plan import plan
from gradthrough.bench.sweep.states import standing
from gradthrough.bench.sweep.sweep import sweep
from sweeping import Inline, measured, tiny

WORKERS = 2
ROUNDS = 10
GRID = tiny(epochs=20, seeds="0..1", levels=("st", "reinmax"), powers=(1.5, 2.0))
FILE = """
title = "Tiny"
paper = "none"
[run]
task = "polynomial"
task_options = { length = 4, steps_per_epoch = 10 }
epochs = 120
batch_size = 2
lr = 0.01
[axes.estimator]
st = { estimator = "st" }
reinmax = { estimator = "reinmax" }
[budgets.smoke]
run = { epochs = 40 }
[budgets.laptop]
[budgets.paper]
run = { epochs = 1000000 }
"""


def paths(out):
    return [run.path for row in plan(GRID, "laptop", out) for run in row.runs]


def epochs(found):
    return sum(standing(path).epochs for path in found)


class Threads(AbstractExecutor):
    """Workers that are threads, and die with the process at the same instant."""

    workers = WORKERS

    def __init__(self):
        self._pool = ThreadPoolExecutor(WORKERS)

    def submit(self, work, job):
        return self._pool.submit(work, job)

    def close(self):
        self._pool.shutdown()


def kill_often(out):
    """Fork sweeps from this process, which has imported everything, and kill them; in a script."""
    sweep(tiny(epochs=1), "laptop", executor=Inline(), out=out / "warm")
    rng, found = random.Random(0), paths(out)
    share = 20 * len(found) / ROUNDS
    for _ in range(ROUNDS):
        before = {path: path.read_bytes() for path in found if path.exists()}
        ended = {path for path in found if standing(path).ended}
        goal = epochs(found) + rng.uniform(0, 1.6 * share)
        child = os.fork()
        if child == 0:
            sweep(GRID, "laptop", executor=Threads(), out=out)
            os._exit(0)
        while epochs(found) < goal and os.waitpid(child, os.WNOHANG) == (0, 0):
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.03))
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        assert all(path.read_bytes() == before[path] for path in ended), "a run was done twice"
        changed = {p for p in found if p.exists() and p.read_bytes() != before.get(p)}
        flying = {path for path in changed if not standing(path).ended}
        assert len(flying) <= WORKERS
        print(epochs(found), len(ended), len(flying), flush=True)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_sweep_that_is_killed_ten_times_ends_with_the_same_numbers(tmp_path):
    command = [sys.executable, __file__, str(tmp_path / "a")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    told = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert told.returncode == 0, told.stderr
    rows = [tuple(map(int, line.split())) for line in told.stdout.splitlines()]
    assert len(rows) == ROUNDS
    assert sum(flying > 0 for _, _, flying in rows) >= ROUNDS // 2, "nothing was killed in flight"
    before = {path: path.read_bytes() for path in paths(tmp_path / "a") if standing(path).ended}
    summary = sweep(GRID, "laptop", executor=Inline(), out=tmp_path / "a")
    assert summary.count("done") == len(summary.runs) == 8
    assert all(path.read_bytes() == text for path, text in before.items())
    sweep(GRID, "laptop", executor=Inline(), out=tmp_path / "b")
    for killed, whole in zip(paths(tmp_path / "a"), paths(tmp_path / "b"), strict=True):
        assert measured(killed) == measured(whole)
        assert records.read(killed)[-1].evaluations == 20 * 10 * 2


@pytest.fixture
def command(tmp_path):
    """Return the words of a sweep."""
    file = tmp_path / "tiny.toml"
    file.write_text(FILE)
    words = [sys.executable, "-m", "gradthrough.cli", "bench", "sweep", str(file)]
    return [*words, "--workers", "2", "--out", str(tmp_path), "--budget"]


def in_flight(command, folder, **more):
    """Start a sweep, wait until a run has a checkpoint; return the process and that run."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, **more)
    while not (found := list(folder.glob("*.ckpt"))):
        assert process.poll() is None
        time.sleep(0.01)
    return process, found[0].with_suffix(".jsonl")


def killed_in_flight(command, folder):
    """Start a sweep, kill it once a run has a checkpoint; return that run."""
    process, path = in_flight(command, folder)
    process.kill()
    process.wait()
    return path


def let_go(path):
    """Wait until nobody writes a run."""
    for _ in range(500):
        with contextlib.suppress(records.LockedError):
            records.Lock(path).release()
            return
        time.sleep(0.02)
    pytest.fail("a worker goes on without its sweep")


@pytest.mark.slow
def test_the_command_that_was_killed_goes_on_at_once(command, tmp_path):
    """With workers that are processes, and may outlive the sweep by an instant."""
    path = killed_in_flight([*command, "laptop"], tmp_path / "tiny")
    assert not standing(path).ended
    told = subprocess.run([*command, "laptop"], capture_output=True, text=True)
    assert told.returncode == 0, told.stderr
    ends = [standing(path) for path in tmp_path.glob("tiny/*.jsonl")]
    assert [(one.state, one.steps) for one in ends] == [("done", 1200)] * 2
    assert records.read(path)[-1].evaluations == 1200 * 2


@pytest.mark.slow
def test_workers_end_with_a_sweep_that_is_killed(command, tmp_path):
    path = killed_in_flight([*command, "paper", "--only", "estimator=st"], tmp_path / "tiny")
    let_go(path)
    assert standing(path).state == "unfinished"


def interruptible():
    # A test that runs in the background may have been told to ignore it, and would hand that on.
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "killpg"), reason="signals a group of processes")
def test_ctrl_c_ends_a_sweep_within_seconds_and_it_goes_on_to_the_same_numbers(command, tmp_path):
    """A terminal sends it to the sweep and to its workers at once."""
    options = {"stderr": subprocess.PIPE, "text": True, "preexec_fn": interruptible}
    process, path = in_flight(
        [*command, "smoke"], tmp_path / "tiny", start_new_session=True, **options
    )
    os.killpg(process.pid, signal.SIGINT)
    _, told = process.communicate(timeout=30)
    assert told == "Stopped. The same command goes on from the last checkpoints.\n"
    assert process.returncode == 130
    let_go(path)
    assert standing(path).state == "unfinished"
    assert 0 < standing(path).epochs < 40
    assert subprocess.run([*command, "smoke"], stdout=subprocess.DEVNULL).returncode == 0
    sweep(load(tmp_path / "tiny.toml"), "smoke", executor=Inline(), out=tmp_path / "whole")
    whole = sorted(tmp_path.glob("whole/tiny/*.jsonl"))
    assert len(whole) == 2
    for one in whole:
        again = tmp_path / "tiny" / one.name
        assert standing(again).state == "done"
        assert measured(again) == measured(one)


if __name__ == "__main__":
    kill_often(Path(sys.argv[1]))
