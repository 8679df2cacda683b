"""A small experiment, and executors without processes: for the tests of sweeps."""

from concurrent.futures import Future

from gradthrough.bench import records
from gradthrough.bench.experiment import Experiment, Part
from gradthrough.bench.sweep.executors.base import AbstractExecutor, LostWorkerError


def tiny(epochs=3, seeds="0", levels=("st", "reinmax"), powers=(1.5, 2.0), **options):
    """Return a grid of polynomial programs: estimators by exponents."""
    return Experiment(
        name="tiny",
        title="Tiny",
        paper="none",
        run={
            "task": "polynomial",
            "task_options": {"length": 4, "steps_per_epoch": 10},
            "epochs": epochs,
            "batch_size": 2,
            "lr": 0.01,
        },
        axes={
            "estimator": {level: {"estimator": level} for level in levels},
            "p": {f"p{p}": {"task_options": {"p": p}} for p in powers},
        },
        budgets={"laptop": (Part(seeds=seeds, **options),)},
    )


def measured(path):
    """Return everything that a run measured; times differ from run to run."""
    return [
        (r.step, r.split, r.metric, r.value, r.evaluations)
        for r in records.read(path)
        if r.kind == "metric"
    ]


class Inline(AbstractExecutor):
    """Does each job when it comes, in this process.

    Args:
        losses: how many workers die first, with nothing done.
        raises: what work raises after that.
    """

    workers = 1

    def __init__(self, losses=0, raises=None):
        self.losses, self.raises, self.jobs = losses, raises, []

    def submit(self, work, job):
        self.jobs.append(job)
        future = Future()
        if self.losses:
            self.losses -= 1
            future.set_exception(LostWorkerError("gone"))
        elif self.raises is not None:
            future.set_exception(self.raises)
        else:
            future.set_result(work(job))
        return future

    def close(self):
        pass
