"""A recorded run gives its numbers again, and the command says so when it does not."""

import json

import pytest

import gradthrough as gt
from gradthrough import cli
from gradthrough.bench import records
from gradthrough.bench.config import RunConfig
from gradthrough.bench.rerun import rerun
from gradthrough.bench.tasks.polynomial import Polynomial
from gradthrough.bench.together import run_together
from gradthrough.bench.train import run

TASK = Polynomial(length=4, steps_per_epoch=3)
CONFIG = RunConfig("polynomial", TASK.options(), "reinmax", {"tau": 1.0}, epochs=2, batch_size=5)


@pytest.fixture
def done(tmp_path):
    return run(CONFIG, out=tmp_path / "first", accelerator="cpu", progress=False).path


def changed(path, index, **fields):
    lines = path.read_text().splitlines()
    lines[index] = json.dumps(json.loads(lines[index]) | fields)
    path.write_text("\n".join(lines) + "\n")


def test_a_run_gives_its_numbers_again(done, tmp_path):
    again = rerun(done, out=tmp_path / "again", accelerator="cpu", progress=False)
    assert again.same
    assert again.compared == 6  # two epochs: the train loss, the loss and the gap


def test_another_number_is_found_and_ends_in_status_1(done, tmp_path, capsys):
    changed(done, 1, value=0.25)
    again = rerun(done, out=tmp_path / "again", accelerator="cpu", progress=False)
    assert [place for place in again.differing] == [("train", "loss", 3)]
    assert not again.same
    with pytest.raises(SystemExit, match="1"):
        cli.main(["bench", "rerun", str(done), "--out", str(tmp_path / "cli")])
    assert "train loss at step 3: 0.25 was recorded, now 0.2" in capsys.readouterr().out


def test_a_number_in_one_of_the_two_only_is_named(done, tmp_path):
    changed(done, 1, metric="other")
    again = rerun(done, out=tmp_path / "again", accelerator="cpu", progress=False)
    assert again.missing == (("train", "other", 3), ("train", "loss", 3))


def test_a_third_time_is_a_run_of_its_own(done, tmp_path):
    first = rerun(done, out=tmp_path / "again", accelerator="cpu", progress=False)
    changed(first.result.path, 1, value=0.25)  # as by other code
    again = rerun(done, out=tmp_path / "again", accelerator="cpu", progress=False)
    assert again.same
    lock = records.Lock(again.result.path)
    with pytest.raises(records.LockedError, match="another process"):
        rerun(done, out=tmp_path / "again", accelerator="cpu", progress=False)
    lock.release()
    assert again.result.path.exists()


def test_another_environment_is_named(done, tmp_path, capsys):
    start = json.loads(done.read_text().splitlines()[0])
    changed(done, 0, environment=start["environment"] | {"torch": "1.0"})
    cli.main(["bench", "rerun", str(done), "--out", str(tmp_path / "cli")])
    assert "torch: 1.0 was recorded, now 2." in capsys.readouterr().out


def test_seeds_that_trained_together_do_so_again(tmp_path):
    results = run_together(CONFIG, (3, 1), out=tmp_path / "a", accelerator="cpu", progress=False)
    again = rerun(results[0].path, out=tmp_path / "b", accelerator="cpu", progress=False)
    assert again.same
    assert again.result.records[0].together == 2
    results[1].path.unlink()
    with pytest.raises(gt.ConfigError, match="trained with 1 other seeds"):
        rerun(results[0].path, out=tmp_path / "c", accelerator="cpu", progress=False)


def test_records_are_not_overwritten(done):
    with pytest.raises(gt.ConfigError, match="Name another folder"):
        rerun(done, out=done.parents[1])
    with pytest.raises(gt.ConfigError, match="holds no records"):
        rerun(done.with_name("none.jsonl"), out=done.parents[2])
