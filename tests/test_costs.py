"""The page of costs is made from committed rows, one for every estimator."""

import importlib.util
import json
from pathlib import Path

import pytest

import gradthrough as gt
from problems import DISCRETE

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def costs():
    spec = importlib.util.spec_from_file_location("costs", ROOT / "benchmarks" / "costs.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_what_the_rows_say(costs):
    rows = costs.read(ROOT / "benchmarks" / "results" / "costs.csv")
    assert costs.page(rows) == (ROOT / "docs" / "costs.md").read_text()
    assert [row["key"] for row in rows] == list(DISCRETE)
    assert not any(json.loads(row["environment"])["dirty"] for row in rows)


def test_counts_follow_from_the_estimators(costs):
    q = gt.Bernoulli(costs.torch.zeros(costs.ROWS, costs.VARIABLES), event_dims=1)
    for row in costs.read(ROOT / "benchmarks" / "results" / "costs.csv"):
        estimator = gt.estimator(row["key"])
        traits = estimator.traits
        assert int(row["samples"]) == traits.min_samples
        assert int(row["evaluations"]) == estimator.evaluations(q, traits.min_samples)
        assert int(row["backward_passes"]) == 1 + traits.needs_point_gradients
        costs._Passes.count = 0
        costs.step_for(row["key"])()
        assert costs._Passes.count == int(row["backward_passes"])
