"""The table of what audits foretell is made from the committed audits and losses."""

import csv
import importlib.util
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"


@pytest.fixture(scope="module")
def predictive():
    place = ROOT / "benchmarks" / "predictive.py"
    spec = importlib.util.spec_from_file_location("predictive", place)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def rows_of(name):
    with (RESULTS / name).open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_table_follows_from_audits_and_losses_and_stands_on_the_page(predictive):
    losses = [
        row | {"seed": int(row["seed"]), "loss": float(row["loss"])}
        for row in rows_of("predictive_losses.csv")
    ]
    audits = [json.loads(x) for x in (RESULTS / "predictive_audits.jsonl").read_text().splitlines()]
    assert len(losses) == len(predictive.TASKS) * len(predictive.ESTIMATORS) * len(predictive.SEEDS)
    assert not any(audit["environment"]["dirty"] for audit in audits)
    table = predictive.table(losses, audits)
    assert table == rows_of("predictive.csv")
    assert predictive.markdown(table) in (ROOT / "docs" / "audit.md").read_text()


def test_the_losses_are_those_of_the_records(predictive):
    for row in rows_of("predictive_losses.csv"):
        path = ROOT / predictive.FOLDER / f"{row['key']}.jsonl"
        lines = [json.loads(x) for x in path.read_text().splitlines()]
        assert lines[0]["config"]["estimator"] == row["estimator"]
        assert lines[-1]["status"] == row["status"] == "done"
        final = [x["value"] for x in lines if x["kind"] == "metric" and x["split"] == "train"][-1]
        assert final == float(row["loss"])
