"""Records and configs: plain data that survives a kill and says what it is."""

import errno
import fcntl
import json

import pytest

import gradthrough as gt
from gradthrough.bench import records
from gradthrough.bench.config import RunConfig
from gradthrough.bench.records import Record
from gradthrough.bench.seeds import Seeds, parse_seeds


def test_a_record_comes_back_as_it_was(tmp_path):
    path = tmp_path / "a" / "b.jsonl"
    lines = [
        Record("start", "k", config={"lr": 0.1}, environment={"torch": "x"}),
        Record("metric", "k", 3, "train", "neg_elbo", 1.25, 12, 0.5),
        Record("end", "k", 3, status="done"),
    ]
    records.write(path, lines)
    assert records.read(path) == lines
    records.append(path, lines[1:])
    assert records.read(path) == lines + lines[1:]


def test_a_line_that_a_kill_cut_short_is_left_out(tmp_path):
    path = tmp_path / "a.jsonl"
    records.write(path, [Record("start", "k"), Record("end", "k", status="done")])
    whole = path.read_bytes()
    for cut in range(len(whole.splitlines(keepends=True)[0]), len(whole)):
        path.write_bytes(whole[:cut])
        assert [r.kind for r in records.read(path)] == ["start"]


def test_a_value_that_is_not_finite_is_null():
    data = json.loads(Record("metric", "k", value=float("nan")).line())
    assert data["value"] is None


@pytest.mark.parametrize("line", ["", "3", "{}", '{"schema": 2}', "half a li"])
def test_a_file_of_something_else_is_refused(tmp_path, line):
    path = tmp_path / "a.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(gt.DomainError, match="record"):
        records.read(path)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.jsonl"
    records.write(path, [Record("start", "k")])
    with pytest.raises(TypeError):
        records.write(path, [Record("start", "k", config={"x": object()})])
    assert [r.kind for r in records.read(path)] == ["start"]
    assert list(tmp_path.iterdir()) == [path]


def test_one_writer_for_each_run(tmp_path):
    lock = records.Lock(tmp_path / "a.jsonl")
    with pytest.raises(records.LockedError, match=r"another process writes .*a\.jsonl.*--out"):
        records.Lock(tmp_path / "a.jsonl")
    lock.release()
    records.Lock(tmp_path / "a.jsonl").release()


def test_a_disk_without_locks_is_not_another_process(tmp_path, monkeypatch):
    def flock(file, how):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(gt.ConfigError, match=r"be locked.*No locks available.*disk") as found:
        records.Lock(tmp_path / "a.jsonl")
    assert not isinstance(found.value, records.LockedError)


def config(**changes):
    return RunConfig(**({"task": "vae", "task_options": {}, "estimator": "reinmax"} | changes))


def test_the_key_is_made_from_the_content_and_nothing_else():
    assert config().key == config(samples=1).key == RunConfig(**config().as_dict()).key
    changes = ({"seed": 1}, {"lr": 1e-3}, {"estimator_options": {"tau": 2.0}}, {"epochs": 3})
    assert len({config(**c).key for c in changes} | {config().key}) == 5
    shuffled = json.loads(json.dumps(config().as_dict(), sort_keys=True))
    assert RunConfig(**shuffled).key == config().key


@pytest.mark.parametrize(
    ("change", "kind", "word"),
    [
        ({"estimator": "reinmx"}, gt.ConfigError, "reinmax"),
        ({"estimator_options": {"k": 3}}, gt.ConfigError, "tau"),
        ({"estimator_options": {"tau": 0.0}}, gt.DomainError, "tau"),
        ({"optimizer": "lion"}, gt.ConfigError, "adam"),
        ({"precision": "8"}, gt.ConfigError, "32-true"),
        ({"lr": 0.0}, gt.DomainError, "lr"),
        ({"lr": float("nan")}, gt.DomainError, "lr"),
        ({"tuning_lr": 0.0}, gt.DomainError, "tuning_lr"),
        ({"tuning_lr": float("inf")}, gt.DomainError, "tuning_lr"),
        ({"evaluate_every": 0}, gt.DomainError, "evaluate_every"),
        ({"epochs": 0}, gt.DomainError, "epochs"),
        ({"batch_size": 0}, gt.DomainError, "batch_size"),
        ({"samples": 0}, gt.DomainError, "samples"),
    ],
)
def test_a_wrong_config_is_refused(change, kind, word):
    with pytest.raises(kind, match=word):
        config(**change)


def test_samples_default_to_what_the_estimator_takes():
    assert config(estimator="rloo").samples == 2
    assert config(estimator="reinforce").samples == 1


def test_streams_of_seeds_are_independent_of_one_another():
    streams = [Seeds(s).of(p, i) for s in range(3) for p in ("noise", "order") for i in range(3)]
    assert len(set(streams)) == len(streams)
    assert all(0 <= s < 2**63 for s in streams)


def test_options_added_later_are_left_out_at_their_default():
    old = config()
    assert "tuning_lr" not in old.as_dict()
    assert "evaluate_every" not in old.as_dict()
    assert config(tuning_lr=None, evaluate_every=1).key == old.key
    new = config(tuning_lr=1e-3, evaluate_every=5)
    assert new.as_dict() == old.as_dict() | {"tuning_lr": 1e-3, "evaluate_every": 5}
    assert RunConfig(**new.as_dict()) == new
    assert len({old.key, new.key, config(tuning_lr=1e-3).key, config(evaluate_every=5).key}) == 4


def test_the_key_of_a_config_never_changes():
    # Every field as the first version had it: its records are found by this key.
    assert config(task_options={"latents": 4}, estimator_options={"tau": 1.3}).key == "4d7edd8c203d"


def test_the_label_says_what_is_learned():
    one = config(estimator_options={"tau": 1.3}, tuning_lr=1e-3)
    assert one.label == "reinmax(tau=1.3, tuning_lr=0.001)"


@pytest.mark.parametrize(
    ("text", "seeds"),
    [
        ("3", (3,)),
        ("0,3,7", (0, 3, 7)),
        ("0..9", tuple(range(10))),
        ("4..4", (4,)),
        ("8, 0..2", (8, 0, 1, 2)),
    ],
)
def test_seeds_are_read_as_one_types_them(text, seeds):
    assert parse_seeds(text) == seeds


@pytest.mark.parametrize(
    ("text", "why"),
    [
        *((text, "whole numbers") for text in ("", "a", "-1", "0-9", "0...9", "1,,2", "1.5", "²")),
        ("9..0", r"0\.\.9"),
        ("1,0..2", "twice"),
    ],
)
def test_other_seeds_are_refused(text, why):
    with pytest.raises(gt.ConfigError, match=why):
        parse_seeds(text)
