"""The page of the kernels' times is made from committed rows, which are whole and of one commit."""

import importlib
import io
import json
import sys
import types
from pathlib import Path

import pytest
import torch
from PIL import Image

import gradthrough as gt

ROOT = Path(__file__).parents[1]
CSV = ROOT / "benchmarks" / "results" / "kernels.csv"
MODULES = ("kernels", "_contestants", "_timing", "_kernel_page")


@pytest.fixture(scope="module")
def kernels():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks")
        yield importlib.import_module("kernels")
    for name in MODULES:
        sys.modules.pop(name, None)


@pytest.fixture
def no_peer(monkeypatch, kernels):
    """Stand in for the package of PyPI, which only the extra `peers` installs."""
    monkeypatch.setattr(kernels.who, "pypi_reinmax", lambda: gt.reinmax)
    monkeypatch.setattr(kernels, "version", lambda name: "0.1.0")


@pytest.fixture
def rows(kernels):
    return kernels.pages.read(CSV)


def check_whole(kernels, rows):
    pages = kernels.pages
    facts = ("device", "torch", "threads", "commit", "contestant", "backend", "shape", "dtype")
    parts = {}
    for row in rows:
        assert tuple(row) == pages.HEAD
        assert {name for name in pages.HEAD if not row[name]} <= set(pages.OPTIONAL)
        assert int(row["repeats"]) >= kernels.LEAST
        low, median, high = (float(row[name]) for name in ("low_us", "median_us", "high_us"))
        assert 0 < low <= median <= high
        environment = json.loads(row["environment"])
        assert [str(environment[name]) for name in facts[:4]] == [row[n] for n in facts[:4]]
        parts.setdefault(tuple(row[name] for name in facts), []).append(row["part"])
    assert all(found == list(kernels.timing.PARTS) for found in parts.values())


def test_the_page_is_what_the_rows_say(kernels, rows):
    assert kernels.pages.page(rows) == (ROOT / "docs" / "kernels.md").read_text()


def test_the_pictures_are_of_these_rows(kernels, rows):
    for device in {row["device"] for row in rows}:
        shown = kernels.pages.pictured(rows, device)
        with Image.open(ROOT / "docs" / kernels.pages.picture_name(device)) as picture:
            assert picture.info["Source"] == kernels.pages.digest(shown)


def test_every_row_is_whole(kernels, rows):
    check_whole(kernels, rows)


def test_the_rows_of_a_measurement_are_of_one_clean_commit(kernels, rows):
    commits = {}
    for row in rows:
        assert json.loads(row["environment"])["dirty"] is False
        commits.setdefault(kernels.pages.group_of(row), set()).add(row["commit"])
    assert all(len(found) == 1 for found in commits.values())


@pytest.mark.usefixtures("no_peer")
def test_a_measurement_gives_whole_rows_and_a_page_and_a_picture(kernels, monkeypatch, capsys):
    monkeypatch.setattr(kernels, "MOST", kernels.LEAST)
    monkeypatch.setattr(kernels.who, "DIRECT_SHAPES", ((2, 3),))
    monkeypatch.setitem(kernels.who.OURS, "gumbel_rao k=100", fewer_draws)
    todo = kernels.jobs([(2, 3)], ["float32"], ["auto"])
    facts = kernels.facts_of(torch.device("cpu"), "a commit")
    rows = kernels.measure(todo, torch.device("cpu"), None, facts)
    assert len(rows) == 3 * len(todo) == 3 * (3 + len(kernels.who.OURS) + 1)
    check_whole(kernels, rows)
    paired = {row["contestant"] for row in rows if row["ratio_to_gumbel_rao_direct"]}
    assert paired == {kernels.who.STREAMED, kernels.who.DIRECT}
    assert all(row["ratio_to_softmax"] == "1.0000" for row in rows[:3])
    device = rows[0]["device"]
    text = kernels.pages.page(rows)
    assert text.count("| `") == len(todo)
    assert kernels.pages.picture_name(device) in text
    with Image.open(io.BytesIO(kernels.pages.picture(rows, device))) as picture:
        assert picture.info["Source"] == kernels.pages.digest(kernels.pages.pictured(rows, device))
    assert "left out" not in capsys.readouterr().out


def fewer_draws(logits, backend):
    return gt.gumbel_rao(logits, tau=0.5, k=2, backend=backend)


@pytest.mark.usefixtures("no_peer")
def test_what_does_not_fit_into_the_time_is_left_out_and_said(kernels, capsys):
    todo = kernels.jobs([(2, 3)], ["float32"], ["auto"])
    assert kernels.measure(todo, torch.device("cpu"), 0.0, {}) == []
    assert capsys.readouterr().out.count("left out") == len(todo)
    light, heavy = todo[0], next(j for j in todo if j.contestant.name == kernels.who.STREAMED)
    assert kernels.repeats_for(light, 1.0, 1.0, 20.0) == 0
    assert kernels.repeats_for(light, 1.0, 1.0, None) == kernels.LEAST
    assert kernels.repeats_for(light, 1e-6, 1.0, 20.0) == kernels.MOST
    assert kernels.repeats_for(heavy, 1e-6, 1.0, 20.0) == kernels.MOST_HEAVY


@pytest.mark.usefixtures("no_peer")
def test_a_given_commit_counts_only_where_git_knows_none(kernels, monkeypatch):
    def facts(commit, dirty):
        monkeypatch.setattr(kernels, "environment", lambda _: {"commit": commit, "dirty": dirty})
        found = kernels.facts_of(torch.device("cpu"), "given")
        return found["commit"], found["dirty"]

    assert facts(None, None) == ("given", False)
    assert facts("known", True) == ("known", True)


def test_rows_of_the_same_device_threads_and_torch_are_replaced(kernels, tmp_path):
    pages = kernels.pages
    blank = dict.fromkeys(pages.HEAD, "")

    def row(device, threads, commit):
        return blank | {"device": device, "threads": threads, "torch": "2", "commit": commit}

    old = [row("a", "1", "x"), row("a", "2", "x"), row("b", "1", "x")]
    pages.write(tmp_path / "rows.csv", pages.merged(old, [row("a", "2", "y")]))
    kept = [(r["device"], r["threads"], r["commit"]) for r in pages.read(tmp_path / "rows.csv")]
    assert kept == [("a", "1", "x"), ("a", "2", "y"), ("b", "1", "x")]
    assert pages.read(tmp_path / "absent.csv") == []


def test_an_absent_peer_is_named_with_how_to_install_it(kernels, monkeypatch):
    def absent(name):
        raise kernels.who.PackageNotFoundError(name)

    monkeypatch.setattr(kernels.who, "version", absent)
    with pytest.raises(SystemExit, match=r"pip install -c constraints.txt -e '.\[bench,peers\]'"):
        kernels.who.pypi_reinmax()


def test_the_installed_peer_is_called(kernels, monkeypatch):
    monkeypatch.setattr(kernels.who, "version", lambda name: "0.1.0")
    fake = types.ModuleType("reinmax")
    fake.reinmax = lambda logits, tau: (logits * tau, None)
    monkeypatch.setitem(sys.modules, "reinmax", fake)
    assert kernels.who.pypi_reinmax()(torch.ones(2)).tolist() == pytest.approx([1.3, 1.3])


def test_a_backend_that_is_not_there_is_left_out(kernels, capsys):
    assert kernels.who.available(["auto", "no_such"], torch.device("cpu")) == ["auto"]
    assert "no_such left out" in capsys.readouterr().out


def test_the_direct_gumbel_rao_is_the_library_s(kernels):
    k, tau = 5, 0.5
    logits = torch.randn(4, 3, 6, requires_grad=True)
    upstream = torch.randn(4, 3, 6)
    inner = torch.empty(k, 4, 3, 6).exponential_()
    noise = torch.rand(4, 3, 2, dtype=torch.float64)
    z = gt.gumbel_rao(logits, tau, k, noise=noise, inner=inner.movedim(0, -2), backend="eager")
    direct = kernels.who.gumbel_rao_direct(logits, tau, k, index=z.argmax(-1), inner=inner)
    torch.testing.assert_close(direct, z)
    (wanted,) = torch.autograd.grad(z, logits, upstream)
    (found,) = torch.autograd.grad(direct, logits, upstream)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)


def test_bytes_are_those_of_the_tensors(kernels):
    timing = kernels.timing
    problem = timing.Problem.make((32, 64), torch.float32, torch.device("cpu"))
    one = problem.size
    assert one == 4 * 32 * 64
    peaks = timing.peak_bytes(problem, lambda x: x.exp())
    assert peaks == (one, one, 2 * one)
    assert timing.saved_bytes(problem, lambda x: x.exp()) == one
    assert timing.saved_bytes(problem, lambda x: x * x) == one  # two tensors, one storage
    assert timing.launches(problem, lambda x: x.exp()) is None


def test_the_order_rotates_and_every_repeat_times_all(kernels):
    timing = kernels.timing
    called = []
    timers = {
        name: lambda name=name: called.append(name) or timing.Numbers(1, 2, 3) for name in "abc"
    }
    times = timing.paired(timers, dict.fromkeys("abc", 1.0), 3)
    assert "".join(called) == "abcbcacab"
    assert times == dict.fromkeys("abc", [timing.Numbers(1, 2, 3)] * 3)
