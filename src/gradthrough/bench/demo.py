"""The demo: one small VAE, seven estimators side by side, a table, a page and a picture."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from .._errors import ConfigError
from ..auditing import cost
from . import probe, report
from .config import RunConfig
from .journal import Result
from .seeds import Seeds
from .tasks.vae import VAE
from .train import run

ESTIMATORS: dict[str, dict[str, float | int]] = {
    "enumerate": {},
    "st": {"tau": 1.3},
    "stgs": {"tau": 0.5},
    "gumbel_rao": {"tau": 0.5, "k": 100},
    "gst": {"tau": 0.7},
    "reinmax": {"tau": 1.3},
    "rloo": {},
}
"""Keys and options: the temperatures that the literature tuned for an MNIST VAE of 4 latents."""


@dataclass(frozen=True)
class DemoRow:
    """One estimator's line in the table."""

    label: str
    result: Result
    cosine_start: float
    cosine_end: float
    milliseconds: float

    @property
    def curve(self) -> tuple[list[int], list[float]]:
        """Steps and train -ELBO."""
        lines = [r for r in self.result.records if (r.split, r.metric) == ("train", "neg_elbo")]
        pairs = [(r.step, r.value) for r in lines if r.value is not None]
        return [step for step, _ in pairs], [value for _, value in pairs]


def task_of(dataset: str) -> tuple[VAE, int]:
    """Return the demo's task and epochs, small enough to enumerate in minutes."""
    if dataset == "digits":
        return VAE(dataset, latents=3, classes=4, hidden=(128, 64)), 150
    return VAE(dataset, latents=2, classes=6, hidden=(128, 64)), 3


def demo(
    dataset: str = "digits",
    *,
    out: Path = Path("demo"),
    epochs: int | None = None,
    seed: int = 0,
    draws: int = 1024,
    say: Callable[[str], None] = lambda text: None,
) -> list[DemoRow]:
    """Train with every estimator of the demo, measure them, and write report.html and .png.

    Args:
        dataset: digits, mnist, fashion-mnist or omniglot.
        out: folder of the report and the records; runs that are done are not done again.
        epochs: passes for each estimator.
        seed: the same for all.
        draws: for the mean gradient.
        say: told what happens.

    Returns:
        One row for each estimator.
    """
    task, usual = task_of(dataset)
    budget = epochs or usual
    results: list[Result] = []
    for key, options in ESTIMATORS.items():
        config = RunConfig("vae", task.options(), key, options, lr=1e-3, epochs=budget, seed=seed)
        say(f"{config.label}: {budget} epochs on {dataset}")
        results.append(run(config, out=out / "records", experiment=dataset, task=task))
    say(f"gradients: {draws} draws of each estimator against the exact gradient")
    rows = _measure(task, results, draws, seed)
    report.write(rows, task, out)
    return rows


def _measure(task: VAE, results: list[Result], draws: int, seed: int) -> list[DemoRow]:
    # The same models for all: fresh, and as the exact gradient trained it.
    reference = results[0].model
    if reference is None:
        path = results[0].path
        raise ConfigError(
            f"the exact run of the demo is {results[0].status}, but its checkpoint "
            f"{path.with_suffix('.ckpt')} is not there. Remove {path} to train it again."
        )
    batch = next(task.batches("train", Seeds(seed), epoch=0, size=100))
    built = {r.config.label: r.config.build_estimator() for r in results}
    start, end = (
        probe.cosines(task, model, batch, built, draws=draws, seed=seed)
        for model in (task.model(Seeds(seed)), reference)
    )
    steps = {
        label: probe.training_step(task, copy.deepcopy(reference), batch, one)
        for label, one in built.items()
    }
    milliseconds = cost.median_milliseconds(cost.step_times(steps))
    return [
        DemoRow(label, result, start[label], end[label], milliseconds[label])
        for label, result in zip(built, results, strict=True)
    ]
