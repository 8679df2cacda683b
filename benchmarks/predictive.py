"""Does an audit foretell how training ends? Six tasks, eight estimators, three seeds.

Trains everything, audits each task as it is initialised and after a tenth of the training (by the
estimator that the first audit recommends), and holds the ranking of the audits against that of
the final losses. Takes an hour on one core; what is done already is not done again.

    python benchmarks/predictive.py --threads 1
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import statistics
from pathlib import Path
from typing import Any

import torch
from scipy.stats import spearmanr
from torch import Tensor, nn

import gradthrough as gt
from gradthrough.auditing.recommend import AVERAGING, choose, error
from gradthrough.auditing.rows import AuditRow, Reference
from gradthrough.bench import records
from gradthrough.bench.config import RunConfig
from gradthrough.bench.environment import environment
from gradthrough.bench.seeds import Seeds
from gradthrough.bench.task import AbstractTask
from gradthrough.bench.tasks.bernoulli_vae import BernoulliVAE
from gradthrough.bench.tasks.polynomial import Polynomial
from gradthrough.bench.tasks.vae import VAE
from gradthrough.bench.train import run

ESTIMATORS: dict[str, dict[str, Any]] = {
    "st": {},
    "stgs": {"tau": 0.5},
    "gumbel_rao": {"tau": 0.5, "k": 10},
    "gst": {"tau": 0.7},
    "reinmax": {"tau": 1.0},
    "reinforce": {},
    "rloo": {},
    "coupled": {},
}
POLYNOMIAL = {"lr": 1e-3, "batch_size": 64, "epochs": 40}
DIGITS = {"lr": 1e-3, "batch_size": 100, "epochs": 200}
TASKS: dict[str, tuple[AbstractTask, dict[str, Any]]] = {
    "polynomial p=1.5": (Polynomial(p=1.5), POLYNOMIAL),
    "polynomial p=2": (Polynomial(p=2.0), POLYNOMIAL),
    "polynomial p=3": (Polynomial(p=3.0), POLYNOMIAL),
    "VAE 8x4": (VAE("digits", latents=4, classes=8, bound_samples=0), DIGITS),
    "VAE 4x24": (VAE("digits", latents=24, classes=4, bound_samples=0), DIGITS),
    "50 Bernoulli": (
        BernoulliVAE("digits", latents=50, binarize="threshold", valid=0, bound_samples=0),
        DIGITS,
    ),
}
SEEDS = (0, 1, 2)
EVALUATIONS = 2  # of f for each row and step, for all
REPLICATES = 400
FOLDER = Path("experiments/results/predictive")
RESULTS = Path("benchmarks/results")


def config_of(name: str, key: str, **more: Any) -> RunConfig:  # noqa: ANN401 - fields of RunConfig
    """Return the run of one task with one estimator."""
    task, training = TASKS[name]
    samples = 1 if key == "coupled" else EVALUATIONS  # one coupled pair is two evaluations
    fields = {**training, "evaluate_every": training["epochs"], **more}
    return RunConfig(task.name, task.options(), key, ESTIMATORS[key], samples=samples, **fields)


def train(name: str) -> list[dict[str, Any]]:
    """Train all estimators and seeds of a task; return their final losses."""
    found: list[dict[str, Any]] = []
    task = TASKS[name][0]
    for key in ESTIMATORS:
        for seed in SEEDS:
            config = config_of(name, key, seed=seed)
            result = run(config, out=FOLDER.parent, experiment=FOLDER.name, task=task)
            loss = result.last("train", task.metrics[0].name)
            found.append(
                {"task": name, "estimator": key, "seed": seed, "loss": loss}
                | {"status": result.status, "key": config.key}
            )
    return found


def front(model: nn.Module) -> list[Tensor]:
    """Return the parameters in front of the random choice."""
    encoder = getattr(model, "encoder", model)
    return list(encoder.parameters())


def measure(name: str, model: nn.Module, seed: int, point: str) -> dict[str, Any]:
    """Audit a model on the first batch of its task."""
    task, training = TASKS[name]
    batch = next(task.batches("train", Seeds(seed), epoch=0, size=training["batch_size"]))
    report = gt.audit_model(
        lambda expect: task.losses(model, batch, expect),
        front(model),
        {key: gt.estimator(key, **options) for key, options in ESTIMATORS.items()},
        evaluations=EVALUATIONS,
        replicates=REPLICATES,
        generator=torch.Generator().manual_seed(seed),
    )
    print(f"{name}, seed {seed}, {point}\n{report}\n{report.recommend()}\n", flush=True)
    facts = environment(torch.device("cpu"))
    place = {"task": name, "seed": seed, "point": point, "environment": facts}
    return report.to_dict() | place  # the report has a seed of its own


def audits(name: str) -> list[dict[str, Any]]:
    """Audit a task at its start and after a tenth of the training, unless that is on file."""
    path = RESULTS / "predictive_audits.jsonl"
    known = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    task, training = TASKS[name]
    for seed in SEEDS:
        done = {a["point"] for a in known if a["task"] == name and a["seed"] == seed}
        if "start" not in done:
            known.append(measure(name, task.model(Seeds(seed)), seed, "start"))
            write(path, known)
        if "tenth" not in done:
            start = next(a for a in known if (a["task"], a["seed"]) == (name, seed))
            chosen = recommended(start)
            epochs = training["epochs"] // 10
            config = config_of(name, chosen, epochs=epochs, evaluate_every=epochs, seed=seed)
            result = run(config, out=FOLDER.parent, experiment=f"{FOLDER.name}_tenth", task=task)
            assert result.model is not None
            audit = measure(name, result.model, seed, "tenth") | {"trained_by": chosen}
            known.append(audit)
            write(path, known)
    return [a for a in known if a["task"] == name]


def write(path: Path, audits: list[dict[str, Any]]) -> None:
    """Write all audits, a line each."""
    records.replace(path, "".join(json.dumps(a) + "\n" for a in audits).encode())


def rows_of(audit: dict[str, Any]) -> list[AuditRow]:
    """Return the rows of an audit that was read from a file."""
    nan = float("nan")
    maybe = ("peak_bytes", "minibatch_variance", "sampling_variance", "skipped")
    return [
        AuditRow(**{k: nan if v is None and k not in maybe else v for k, v in row.items()})
        for row in audit["rows"]
    ]


def recommended(audit: dict[str, Any], averaging: float = AVERAGING) -> str:
    """Return what an audit on file recommends."""
    return choose(rows_of(audit), Reference(**audit["reference"]), averaging=averaging).choice


def table(
    losses: list[dict[str, Any]], found: list[dict[str, Any]], averaging: float = AVERAGING
) -> list[dict[str, str]]:
    """Return a row for each task and point: rank correlation, and what the choice costs."""
    out: list[dict[str, str]] = []
    for name in TASKS:
        mean = {
            key: statistics.fmean(
                x["loss"] for x in losses if (x["task"], x["estimator"]) == (name, key)
            )
            for key in ESTIMATORS
        }
        best = min(mean, key=mean.__getitem__)
        for point in ("start", "tenth"):
            ours = [a for a in found if (a["task"], a["point"]) == (name, point)]
            if not ours:
                continue
            ranks, excess, choices = [], [], []
            for audit in ours:
                errors = {row.estimator: error(row, averaging) for row in rows_of(audit)}
                final = {
                    x["estimator"]: x["loss"]
                    for x in losses
                    if (x["task"], x["seed"]) == (name, audit["seed"])
                }
                keys = list(ESTIMATORS)
                ranks.append(
                    spearmanr([errors[k] for k in keys], [final[k] for k in keys]).statistic
                )
                choices.append(recommended(audit, averaging))
                excess.append(mean[choices[-1]] / mean[best] - 1)
            out.append(
                {
                    "task": name,
                    "point": point,
                    "spearman": f"{statistics.fmean(ranks):.2f}",
                    "spearman_least": f"{min(ranks):.2f}",
                    "recommended": " ".join(sorted(set(choices))),
                    "best": best,
                    "best_loss": f"{mean[best]:.5g}",
                    "excess_percent": f"{100 * max(excess):.2f}",
                }
            )
    return out


def markdown(rows: list[dict[str, str]]) -> str:
    """Return the table of the docs."""
    head = (
        "task", "audit", "rank correlation", "the least of three", "recommended", "ends above the "
        "best by", "best",
    )  # fmt: skip
    lines = [f"| {' | '.join(head)} |", "| --- | --- | ---: | ---: | --- | ---: | --- |"]
    point = {"start": "at the start", "tenth": "after a tenth"}
    for row in rows:
        names = ", ".join(f"`{key}`" for key in row["recommended"].split())
        cells = (
            row["task"],
            point[row["point"]],
            row["spearman"],
            row["spearman_least"],
            names,
            f"{row['excess_percent']} %",
            f"`{row['best']}`, {row['best_loss']}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def insert(page: Path, name: str, text: str) -> None:
    """Put text between the marks of that name in a page."""
    start, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
    head, _, rest = page.read_text().partition(start)
    _, _, tail = rest.partition(end)
    records.replace(page, f"{head}{start}{text}\n{end}{tail}".encode())


def save(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write rows as CSV, whole or not at all."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    records.replace(path, text.getvalue().encode())


def main() -> None:
    """Train, audit, compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", choices=("train", "audit"), help="leave the rest for another run")
    parser.add_argument("--tasks", nargs="*", default=list(TASKS), choices=list(TASKS))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    losses: list[dict[str, Any]] = []
    found: list[dict[str, Any]] = []
    for name in options.tasks:
        TASKS[name][0].prepare(torch.device("cpu"))
        losses += train(name) if options.only != "audit" else []
        found += audits(name) if options.only != "train" else []
    if options.only is None and options.tasks == list(TASKS):
        save(RESULTS / "predictive_losses.csv", losses)
        save(RESULTS / "predictive.csv", table(losses, found))
        insert(Path("docs/audit.md"), "predictive", markdown(table(losses, found)))
        for row in table(losses, found):
            print("  ".join(row.values()))


if __name__ == "__main__":
    main()
