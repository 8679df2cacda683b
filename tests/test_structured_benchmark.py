"""The table of what structured choices cost is made from committed rows; the peers are right."""

import importlib
import json
import sys
from dataclasses import replace
from pathlib import Path

import mpmath
import pytest
import torch

import gradthrough as gt

ROOT = Path(__file__).parents[1]
F64 = torch.float64
NUMBERS = ("ours_us", "peer_us", "ratio", "ratio_low", "ratio_high", "bytes_ratio")


@pytest.fixture(scope="module")
def structured():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks")
        yield importlib.import_module("structured")
    for name in ("structured", "_implicit", "_plain", "_timing", "_contestants"):
        sys.modules.pop(name, None)


def check_whole(structured, rows):
    optional = {"ours_error", "peer_error"}
    for row in rows:
        assert tuple(row) == structured.HEAD
        assert {name for name in row if not row[name]} <= optional
        assert all(float(row[name]) > 0 for name in NUMBERS)
        assert float(row["ratio_low"]) <= float(row["ratio"]) <= float(row["ratio_high"])
        facts = json.loads(row["environment"])
        named = ("device", "torch", "threads", "commit")
        assert [str(facts[name]) for name in named] == [row[name] for name in named]


def labels(case):
    parts = ("forward", "backward", "both") if case.differentiable else ("forward",)
    return [(case.function, case.size, case.peer, part) for part in parts]


def test_the_table_of_the_page_is_what_the_rows_say(structured):
    rows = structured.read(structured.COMMITTED)
    marked = f"<!-- structured costs -->\n{structured.table(rows)}\n<!-- /structured costs -->"
    assert marked in (ROOT / "docs" / "structured.md").read_text()


def test_the_committed_rows_are_whole_and_of_one_clean_commit(structured):
    rows = structured.read(structured.COMMITTED)
    check_whole(structured, rows)
    found = [tuple(row[name] for name in ("function", "size", "peer", "part")) for row in rows]
    assert found == [label for case in structured.CASES for label in labels(case)]
    assert all(int(row["repeats"]) >= 15 for row in rows)
    assert len({row["environment"] for row in rows}) == 1
    assert json.loads(rows[0]["environment"])["dirty"] is False
    assert rows[0]["threads"] == "1"


def test_every_number_of_the_table_stands_in_a_row(structured):
    rows = structured.read(structured.COMMITTED)
    held = {value for row in rows for value in row.values()}
    for line in structured.table(rows).splitlines()[2 : 2 + len(structured.CASES)]:
        for cell in line.strip("| ").split(" | ")[3:]:
            for number in cell.replace("(", "").replace(")", "").replace(",", "").split():
                assert number == "to" or number in held


def test_a_measurement_gives_whole_rows_that_can_be_written_and_shown(
    structured, monkeypatch, tmp_path
):
    monkeypatch.setattr(structured, "LEAST", 3)
    monkeypatch.setattr(structured, "SECONDS", 0.0)
    facts, rows = structured.facts_of(), []
    for case in structured.CASES:
        n = int(case.options.get("k", 1)) + 2
        tiny = replace(case, shape=(2, n) if len(case.shape) == 2 else (2, n, n))
        found = structured.measure(tiny, facts, points=3)
        assert [tuple(row[x] for x in structured.HEAD[:4]) for row in found] == labels(tiny)
        assert all(row["repeats"] == "3" for row in found)
        assert all(bool(row["ours_error"]) == (case.entries > 0) for row in found)
        rows += found
    check_whole(structured, rows)
    structured.write(tmp_path / "rows.csv", rows)
    assert structured.read(tmp_path / "rows.csv") == rows
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- structured costs -->\nold\n<!-- /structured costs -->\nb\n")
    structured.insert(page, structured.table(rows))
    text = page.read_text()
    assert text.startswith("a\n<!--")
    assert text.endswith("-->\nb\n")
    assert "old" not in text
    assert structured.table(rows) in text


def test_a_page_without_marks_is_left_alone(structured, tmp_path):
    page = tmp_path / "page.md"
    page.write_text("text")
    with pytest.raises(SystemExit, match="lacks"):
        structured.insert(page, "table")
    assert page.read_text() == "text"


# --- the peers compute what the library computes


def same_gradient(ours, peer, leaf, upstream):
    (wanted,) = torch.autograd.grad(ours, leaf, upstream)
    (found,) = torch.autograd.grad(peer, leaf, upstream)
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("k", [1, 3, 7])
def test_the_recursion_draws_k_classes_with_the_gradient_of_simple(structured, k):
    theta = torch.randn(4, 7, dtype=F64, requires_grad=True)
    z = structured.recursion(theta, k=k)
    assert torch.allclose(z.detach(), z.detach().round())
    torch.testing.assert_close(z.sum(-1), torch.full((4,), float(k), dtype=F64))
    same_gradient(gt.structured.simple(theta, k), z, theta, torch.randn(4, 7, dtype=F64))


def test_the_recursion_draws_by_the_law_of_subsets(structured):
    theta, rows = torch.tensor([2.0, -1.0, 0.5, 0.0], dtype=F64), 20_000
    z = structured.recursion(theta.repeat(rows, 1).requires_grad_(), k=2).detach().round()
    points, counts = z.unique(dim=0, return_counts=True)
    assert len(points) == 6
    p = gt.structured.subset_log_prob(theta, 2, points).exp()
    error = (counts / rows - p).abs() / (p * (1 - p) / rows).sqrt()
    assert error.max() < 5  # by chance with probability 4e-6


def test_the_loop_of_softmaxes_is_the_relaxed_k_hot_point(structured):
    logits = torch.randn(4, 9, dtype=F64, requires_grad=True)
    u = torch.rand(4, 9, dtype=F64)
    ours = gt.structured.relaxed_k_hot(logits, 3, 0.5, noise=u)
    peer = structured.softmax_loop(logits, k=3, tau=0.5, noise=u)
    torch.testing.assert_close(peer, ours)
    same_gradient(ours, peer, logits, torch.randn(4, 9, dtype=F64))


def test_the_plain_top_k_draws_the_same_classes(structured):
    logits, u = torch.randn(4, 9, dtype=F64), torch.rand(4, 9, dtype=F64)
    ours = gt.structured.gumbel_top_k(logits, 3, noise=u).index
    assert torch.equal(structured.top_k(logits, k=3, noise=u), ours)


def test_the_unrolled_loop_is_sinkhorn(structured):
    scores = torch.randn(2, 5, 5, dtype=F64, requires_grad=True)
    ours = gt.structured.sinkhorn(scores, iterations=6)
    peer = structured.unrolled(scores, iterations=6)
    torch.testing.assert_close(peer, ours)
    same_gradient(ours, peer, scores, torch.randn(2, 5, 5, dtype=F64))


def test_the_plain_gates_are_hard_concrete(structured):
    log_alpha = torch.randn(50, dtype=F64, requires_grad=True)
    u = torch.rand(50, dtype=F64)
    ours = gt.structured.hard_concrete(log_alpha, noise=u)
    peer = structured.gates(log_alpha, noise=u)
    torch.testing.assert_close(peer, ours)
    same_gradient(ours, peer, log_alpha, torch.randn(50, dtype=F64))


def test_the_plain_multiplier_is_one_with_the_derivative_of_a_probability(structured):
    logits = torch.tensor([[50.0, 0.0, 0.0], [0.0, 50.0, 0.0]], dtype=F64, requires_grad=True)
    out = structured.straight_through(logits)
    torch.testing.assert_close(out, torch.ones_like(out))
    p = logits.softmax(-1).gather(-1, torch.tensor([[0], [1]]))  # whatever is drawn, but for 1e-21
    same_gradient(p, out, logits, torch.ones_like(out))


# --- the digits of derivatives


@pytest.mark.parametrize("entries", [1, 2, 4])
def test_our_derivatives_have_the_digits_that_torch_s_lack(structured, entries):
    ours, torchs = structured.errors(entries, 30)
    assert ours < 1e-11
    assert 1e-7 < torchs < 1e-2


def test_the_reference_of_a_beta_is_that_of_a_power(structured):
    with mpmath.workdps(50):
        for a, z in ((0.4, 0.3), (2.5, 0.9)):
            x = mpmath.mpf(z)
            want = -x * mpmath.log(x) / mpmath.mpf(a)  # of the cdf z^a
            assert abs(sys.modules["_implicit"].beta_slope(a, 1.0, z) / want - 1) < 1e-25


def test_the_reference_of_a_gamma_close_to_0_is_that_of_a_power(structured):
    with mpmath.workdps(50):
        a, z = mpmath.mpf("0.7"), mpmath.mpf("1e-30")
        # There the cdf is z^a / Gamma(a + 1).
        want = -(mpmath.log(z) - mpmath.digamma(a + 1)) / a
        assert (
            abs(sys.modules["_implicit"].gamma_slope(0.7, float(mpmath.log(z))) / want - 1) < 1e-14
        )
