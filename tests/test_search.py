"""A search asks the same whatever is killed, loses no trial, and counts none twice."""

import logging
from concurrent.futures import Future
from dataclasses import replace

import optuna
import pytest

from gradthrough._errors import ConfigError
from gradthrough.bench import records
from gradthrough.bench.cells import cells, config_of
from gradthrough.bench.experiment import Experiment, Part, Search
from gradthrough.bench.records import Record
from gradthrough.bench.sweep.executors.base import AbstractExecutor
from gradthrough.bench.sweep.job import Outcome
from gradthrough.bench.sweep.search import Studies
from gradthrough.bench.sweep.studies import trials_of
from gradthrough.bench.sweep.sweep import sweep

LR = {"lr": {"low": 1e-4, "high": 1e-1, "log": True}}
SPACE = {
    **LR,
    "estimator_options.tau": {"low": 1, "high": 2},
    "optimizer": {"choices": ["adam", "sgd"]},
}
TRIALS = 4


def experiment(space=SPACE, trials=TRIALS, estimators=("st", "reinmax"), part=None, **options):
    search = {"metric": "train/loss", "trials": {"smoke": trials}, **options}
    small = {"length": 2, "steps_per_epoch": 2}
    return Experiment(
        name="tuned",
        title="",
        paper="",
        run={"task": "polynomial", "task_options": small, "epochs": 1, "batch_size": 2},
        axes={"estimator": {key: {"estimator": key} for key in estimators}},
        budgets={"smoke": (part or Part(),)},
        search=Search(space=space, **search),
    )


def studies(tmp_path, *args, **options):
    return Studies(experiment(*args, **options), "smoke", tmp_path)


def write(job, value=None, status="done", reason=None):
    """Write the records of a job by hand, and say how it ended."""
    for config, path in zip(job.configs, job.paths, strict=True):
        number = value(config) if callable(value) else value
        lines = [
            Record("start", config.key, config=config.as_dict()),
            Record("metric", config.key, 1, "train", "loss", 7.0),
            Record("metric", config.key, 2, "train", "loss", number),
            Record("end", config.key, 2, status=status, reason=reason),
        ]
        records.write(path, lines)
    reasons = {c.key: reason for c in job.configs if reason}
    return Outcome({c.key: status for c in job.configs}, reasons)


def loss(config):
    return abs(config.lr - 0.01) + config.estimator_options["tau"]


def ask_all(search):
    """Ask for everything that there is to ask."""
    return list(iter(search.next, None))


def asked(job):
    return job.config.estimator, *settings(job)


def settings(job):
    return job.config.lr, job.config.estimator_options["tau"], job.config.optimizer


def finish(search, seen):
    """Take a search to its end, one job after the other."""
    while (job := search.next()) is not None:
        seen.append(asked(job))
        search.tell(job, write(job, loss))
    assert search.done()
    return search.best()


def one_go(tmp_path, **options):
    seen = []
    with_all = studies(tmp_path / "whole", **options)
    best = finish(with_all, seen)
    with_all.close()
    return seen, best


def test_a_trial_is_an_ordinary_run_of_its_cell(tmp_path):
    search = studies(tmp_path)
    jobs = ask_all(search)
    assert len(jobs) == 2 * TRIALS
    assert search.next() is None
    assert not search.done()
    for job in jobs:
        lr, tau, optimizer = settings(job)
        assert 1e-4 <= lr <= 1e-1
        assert 1 <= tau <= 2
        assert type(tau) is float
        by_hand = {
            "task": "polynomial",
            "task_options": {"length": 2, "steps_per_epoch": 2},
            "estimator": job.config.estimator,
            "estimator_options": {"tau": tau},
            "epochs": 1,
            "batch_size": 2,
            "lr": lr,
            "optimizer": optimizer,
        }
        assert job.config.key == config_of(by_hand).key
        assert job.paths == (tmp_path / "tuned" / f"{job.config.key}.jsonl",)
        assert job.seeds == (0,)
    assert len({job.config.key for job in jobs}) == len(jobs)
    assert {job.config.optimizer for job in jobs} == {"adam", "sgd"}


def test_each_cell_asks_its_own_settings_in_turn(tmp_path):
    jobs = ask_all(studies(tmp_path))
    assert [job.config.estimator for job in jobs] == ["st", "reinmax"] * TRIALS
    assert {settings(j) for j in jobs[::2]}.isdisjoint(settings(j) for j in jobs[1::2])


def test_whole_numbers_are_drawn_for_fields_that_take_them(tmp_path):
    space = {"epochs": {"low": 1, "high": 3}, "lr": {"low": 1, "high": 3}}
    for job in ask_all(studies(tmp_path, space=space, trials=8, estimators=("st",))):
        assert type(job.config.epochs) is int
        assert type(job.config.lr) is float
        assert job.config.lr % 1


@pytest.mark.parametrize("better", ["lower", "higher"])
def test_the_best_trial_is_read_from_the_storage(tmp_path, better):
    search = studies(tmp_path, better=better)
    assert [(row.value, row.ended) for row in search.best()] == [(None, 0)] * 2
    jobs = ask_all(search)
    for job in jobs:
        search.tell(job, write(job, loss))
    search.close()
    assert Studies(experiment(better=better), "smoke", tmp_path).done()
    for row in Studies(experiment(better=better), "smoke", tmp_path).best():
        mine = [job for job in jobs if job.config.estimator == row.levels["estimator"]]
        first = min if better == "lower" else max
        best = first(mine, key=lambda job: loss(job.config))
        lr, tau, optimizer = settings(best)
        assert row.settings == {"lr": lr, "estimator_options.tau": tau, "optimizer": optimizer}
        assert row.value == loss(best.config)
        assert row.key == best.config.key
        assert row.trial == mine.index(best)
        assert row.ended == TRIALS
        assert row.reasons == {}


def test_of_equal_values_the_first_is_best(tmp_path):
    search = studies(tmp_path, estimators=("st",))
    jobs = ask_all(search)
    for job in reversed(jobs):
        search.tell(job, write(job, 1.0))
    assert search.best()[0].trial == 0


@pytest.mark.parametrize("status", ["diverged", "failed", "skipped"])
def test_what_has_no_value_counts_and_keeps_its_reason(tmp_path, status):
    search = studies(tmp_path, estimators=("st",))
    first, *others = ask_all(search)
    search.tell(first, write(first, None, status, "it was too much"))
    for job in others:
        search.tell(job, write(job, loss))
    assert search.done()
    assert search.next() is None
    (row,) = search.best()
    assert row.reasons == {0: "it was too much"}
    (trials,) = trials_of(tmp_path / "tuned" / "search.journal").values()
    # Optuna's samplers learn from trials that were pruned, and not from those that failed.
    assert trials[0].state.name == ("PRUNED" if status == "diverged" else "FAIL")
    assert row.ended == TRIALS
    assert row.trial in range(1, TRIALS)


def test_a_value_that_is_not_finite_is_no_value(tmp_path):
    search = studies(tmp_path, estimators=("st",), trials=1)
    job = search.next()
    search.tell(job, write(job, float("nan")))
    (row,) = search.best()
    assert row.value is None
    assert row.settings == {}
    assert row.reasons == {0: f"train/loss has no finite last value in {job.config.key}.jsonl"}


def test_settings_that_do_not_go_together_are_a_failed_trial(tmp_path):
    space = {**LR, "momentum": {"choices": [0.0, 0.9]}}  # momentum is for sgd
    search = studies(tmp_path, space=space, trials=8, estimators=("st",))
    jobs = ask_all(search)
    assert 0 < len(jobs) < 8
    assert {job.config.momentum for job in jobs} == {0.0}
    for job in jobs:
        search.tell(job, write(job, 1.0))
    (row,) = search.best()
    assert search.done()
    assert row.ended == 8
    assert len(row.reasons) == 8 - len(jobs)
    assert all("momentum is 0.9" in reason for reason in row.reasons.values())


def test_equal_settings_are_one_run_and_several_trials(tmp_path):
    space = {"optimizer": {"choices": ["adam"]}}
    search = studies(tmp_path, space=space, estimators=("st",))
    (job,) = ask_all(search)
    search.tell(job, write(job, 1.0))
    assert search.done()
    assert search.best()[0].ended == TRIALS


def test_seeds_that_train_together_are_compared_by_their_mean(tmp_path):
    part = Part(seeds="3..5", together=True)
    search = studies(tmp_path, part=part, estimators=("st",), trials=1)
    job = search.next()
    assert job.seeds == (3, 4, 5)
    search.tell(job, write(job, lambda config: 10.0 + config.seed))
    assert search.best()[0].value == 14.0


def test_seeds_that_train_alone_are_compared_by_the_first(tmp_path):
    search = studies(tmp_path, part=Part(seeds="3..5"), trials=1)
    assert search.next().seeds == (3,)


@pytest.mark.parametrize("sampler", ["random", "tpe"])
@pytest.mark.parametrize("parallel", [1, 3])
def test_a_search_that_is_closed_at_every_step_asks_as_in_one_go(tmp_path, sampler, parallel):
    options = {"sampler": sampler, "trials": 13, "estimators": ("st",)}

    def batches(search):
        while jobs := [j for j in (search().next() for _ in range(parallel)) if j is not None]:
            yield jobs

    found = []
    for again in (False, True):
        where = tmp_path / str(again)
        held = [studies(where, **options)]
        seen = []
        for jobs in batches(lambda held=held: held[0]):
            seen += [asked(job) for job in jobs]
            for job in jobs:
                held[0].tell(job, write(job, loss))
            if again:
                held[0].close()
                held[0] = studies(where, **options)
        found.append((seen, held[0].best()))
        assert held[0].done()
        held[0].close()
    assert found[0] == found[1]
    assert len(found[0][0]) == 13


def test_a_kill_at_or_within_any_line_of_the_journal_loses_no_trial_and_counts_none_twice(tmp_path):
    seen, best = one_go(tmp_path, trials=2)
    whole = (tmp_path / "whole" / "tuned" / "search.journal").read_bytes()
    ends = [i + 1 for i, byte in enumerate(whole) if byte == ord("\n")]
    cuts = [0, *ends, *(end - 1 for end in ends), *(end - 9 for end in ends)]
    for cut in cuts:
        where = tmp_path / str(cut)
        (where / "tuned").mkdir(parents=True)
        (where / "tuned" / "search.journal").write_bytes(whole[:cut])
        further = []
        search = studies(where, trials=2)
        assert finish(search, further) == best
        search.close()
        assert set(further) <= set(seen)
        assert len(set(further)) == len(further)


def test_what_a_killed_process_asked_for_is_given_out_again_and_first(tmp_path):
    search = studies(tmp_path)
    first = [search.next() for _ in range(3)]
    search.tell(first[1], write(first[1], loss))
    search.close()  # as the system does for a process that is killed
    search = studies(tmp_path)
    again = [search.next() for _ in range(2)]
    assert sorted(j.config.key for j in again) == sorted(first[i].config.key for i in (0, 2))


def test_the_order_in_which_jobs_end_does_not_move_what_a_random_search_asks(tmp_path):
    seen, _ = one_go(tmp_path)
    search = studies(tmp_path / "other")
    jobs = [search.next() for _ in range(5)]
    for job in reversed(jobs):
        search.tell(job, write(job, loss))
    later = ask_all(search)
    assert {asked(job) for job in (*jobs, *later)} == set(seen)


def test_tpe_learns_from_what_it_was_told(tmp_path):
    def later(better):
        options = {"sampler": "tpe", "trials": 14, "estimators": ("st",), "better": better}
        return one_go(tmp_path / better, **options)[0][10:]

    assert set(later("lower")).isdisjoint(later("higher"))  # the first ten are random


def test_more_trials_go_on_and_fewer_stop(tmp_path):
    search = studies(tmp_path, trials=2)
    first = [asked(job) for job in ask_all(search)]
    search.close()
    search = studies(tmp_path, trials=3)
    more = [asked(job) for job in ask_all(search)]
    assert set(first) < set(more)
    assert len(more) == 6
    search.close()
    search = studies(tmp_path, trials=1)
    assert len(ask_all(search)) == 2


def test_a_search_that_was_changed_begins_anew_and_asks_the_same(tmp_path):
    search = studies(tmp_path)
    first = ask_all(search)
    search.tell(first[0], write(first[0], loss))
    search.close()
    changed = studies(tmp_path, metric="train/gap")
    assert not any(row.ended for row in changed.best())
    assert [job.config.key for job in ask_all(changed)] == [job.config.key for job in first]


def test_one_process_searches_and_others_read(tmp_path):
    search, other = studies(tmp_path), studies(tmp_path)
    job = search.next()
    search.tell(job, write(job, loss))
    assert other.best() == search.best()
    assert not other.done()
    with pytest.raises(ConfigError, match=r"search\.journal"):
        other.next()
    search.close()
    assert other.next() is not None


def test_reading_writes_nothing(tmp_path):
    search = studies(tmp_path)
    assert not search.done()
    assert len(search.best()) == 2
    assert not any(tmp_path.iterdir())


def test_a_job_is_told_once(tmp_path):
    search = studies(tmp_path)
    job = search.next()
    outcome = write(job, loss)
    search.tell(job, outcome)
    with pytest.raises(ConfigError, match="trial 0"):
        search.tell(job, outcome)


class Ears(logging.Handler):
    """Keeps what it hears."""

    def __init__(self):
        super().__init__()
        self.heard = []

    def emit(self, record):
        self.heard.append(record.getMessage())


def test_optuna_keeps_silent_and_its_verbosity(tmp_path):
    before, ears, logger = optuna.logging.get_verbosity(), Ears(), logging.getLogger("optuna")
    assert before == logging.INFO
    logger.addHandler(ears)
    try:
        one_go(tmp_path, sampler="tpe", trials=12, estimators=("st",))
    finally:
        logger.removeHandler(ears)
    assert optuna.logging.get_verbosity() == before
    assert ears.heard == []


BAD_SPACES = {
    "none": ({}, "no space"),
    "of no field": ({"rate": {"low": 1, "high": 2}}, "'rate'"),
    "of no group": ({"options.tau": {"low": 1, "high": 2}}, "'options.tau'"),
    "of another estimator": ({"estimator_options.k": {"low": 1, "high": 2}}, "polynomial with st"),
    "of a seed": ({"seed": {"low": 1, "high": 2}}, "'seed'"),
    "without an end": ({"lr": {"low": 1.0}}, "low, high, log"),
    "of a typo": ({"lr": {"low": 1.0, "high": 2.0, "loog": True}}, "low, high, log"),
    "the wrong way": ({"lr": {"low": 2.0, "high": 1.0}}, "space of lr"),
    "log from zero": ({"lr": {"low": 0.0, "high": 1.0, "log": True}}, "space of lr"),
    "of words": ({"lr": {"low": "a", "high": "b"}}, "space of lr"),
    "of no choice": ({"lr": {"choices": []}}, "choices"),
    "of one word": ({"optimizer": {"choices": "adam"}}, "choices"),
    "of lists": ({"lr": {"choices": [[0.1], [0.2]]}}, "choices"),
}


@pytest.mark.parametrize("case", BAD_SPACES)
def test_spaces_that_cannot_be_are_refused(tmp_path, case):
    space, message = BAD_SPACES[case]
    with pytest.raises(ConfigError, match=message):
        studies(tmp_path, space=space)


@pytest.mark.parametrize("metric", ["loss", "train/lost", "training/loss", ""])
def test_metrics_that_no_run_has_are_refused(tmp_path, metric):
    with pytest.raises(ConfigError, match="loss, gap"):
        studies(tmp_path, metric=metric)


def test_an_experiment_without_a_search_or_trials_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="no search"):
        Studies(replace(experiment(), search=None), "smoke", tmp_path)
    with pytest.raises(ConfigError, match=r"search\.trials\.smoke"):
        studies(tmp_path, trials=0)


def test_only_the_cells_that_are_meant_are_searched(tmp_path):
    search = studies(tmp_path, where={"estimator": ("reinmax",)})
    assert {job.config.estimator for job in ask_all(search)} == {"reinmax"}
    assert [row.levels for row in search.best()] == [{"estimator": "reinmax"}]


class Here(AbstractExecutor):
    """Does jobs in this process, at once."""

    workers = 2

    def submit(self, work, job):
        future = Future()
        future.set_result(work(job))
        return future

    def close(self):
        pass


def test_a_sweep_takes_a_search_to_its_end_and_does_no_run_twice(tmp_path):
    tuned = experiment(space=LR, trials=3, where={"estimator": ("reinmax",)})
    summary = sweep(tuned, "smoke", executor=Here(), out=tmp_path)
    assert summary.count("done") == 4  # three trials, and the cell without a search
    (row,) = Studies(tuned, "smoke", tmp_path).best()
    assert row.ended == 3
    path = tmp_path / "tuned" / f"{row.key}.jsonl"
    losses = [r.value for r in records.read(path) if (r.split, r.metric) == ("train", "loss")]
    assert row.value == losses[-1]
    plain = cells(tuned, "smoke")[0].config.key
    assert (tmp_path / "tuned" / f"{plain}.jsonl").exists()
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "tuned").glob("*.jsonl")}
    sweep(tuned, "smoke", executor=Here(), out=tmp_path)
    assert before == {p: p.stat().st_mtime_ns for p in (tmp_path / "tuned").glob("*.jsonl")}
