"""The command line and the demo, as a user types them."""

import json
import re
from dataclasses import fields
from pathlib import Path
from typing import Literal, get_args, get_origin, get_type_hints

import pytest

import gradthrough as gt
from gradthrough import cli, cli_list, cli_options
from gradthrough.bench import records, summary
from gradthrough.bench.config import RunConfig
from gradthrough.bench.demo import demo
from gradthrough.bench.tasks import TASKS
from gradthrough.bench.tasks.bernoulli_vae import BernoulliVAE
from gradthrough.bench.tasks.vae import VAE
from gradthrough.bench.typed import as_declared

RUN = "bench run vae --dataset digits --latents 2 --classes 3 --hidden 16 8 --epochs 1".split()
README = Path(__file__).parents[1] / "README.md"


def test_list_names_every_estimator(capsys):
    cli.main(["list"])
    text = capsys.readouterr().out
    assert all(key[:10] in text for key in gt.ESTIMATORS)


def test_the_readme_holds_the_table_of_the_traits(capsys):
    cli.main(["list", "--markdown"])
    table = capsys.readouterr().out.strip()
    assert table == cli_list.markdown_table()
    assert table in README.read_text(encoding="utf-8"), "run: gradthrough list --markdown"


def test_run_and_report(tmp_path, capsys):
    for seed in "01":
        cli.main([*RUN, "--estimator", "reinmax", "--seed", seed, "--out", str(tmp_path)])
    assert "done" in capsys.readouterr().out
    cli.main(["bench", "report", "--out", str(tmp_path), "--csv", str(tmp_path / "t.csv")])
    assert re.search(r"reinmax\(\) +2 .*±", capsys.readouterr().out)
    assert (tmp_path / "t.csv").read_text().count("\n") == 2


def test_seeds_train_at_once_and_a_single_one_on_its_own(tmp_path, capsys):
    flags = [*RUN, "--out", str(tmp_path), "--accelerator", "cpu", "--seeds"]
    cli.main([*flags, "0..1,7"])
    cli.main([*flags, "3"])
    told = re.findall(r"reinmax\(\) seed (\d): done", capsys.readouterr().out)
    assert told == ["0", "1", "7", "3"]
    together = {}
    for path in tmp_path.glob("vae/*.jsonl"):
        start, *_, end = map(json.loads, path.read_text().splitlines())
        together[start["config"]["seed"]] = end.get("together")
        assert RunConfig(**start["config"]).key == path.stem
    assert together == {0: 3, 1: 3, 7: 3, 3: None}
    cli.main(["bench", "report", "--out", str(tmp_path)])
    assert re.search(r"reinmax\(\) +4 .*±", capsys.readouterr().out)


def test_a_compiled_step_is_another_setting_of_the_report(tmp_path):
    task = VAE("digits", latents=2, classes=3, hidden=(16, 8))
    for mode in ("none", "default"):
        one = RunConfig("vae", task.options(), "reinmax", epochs=1, compile=mode)
        start = records.Record("start", one.key, config=one.as_dict())
        records.write(tmp_path / f"{one.key}.jsonl", [start])
    rows = summary.settings(summary.collect(tmp_path))
    assert set(rows["compile"].to_list()) == {None, "default"}


def test_an_empty_file_is_of_a_run_that_has_not_begun(tmp_path, capsys):
    (tmp_path / "b.jsonl").touch()
    with pytest.raises(gt.ConfigError, match="no records"):
        summary.collect(tmp_path)
    one = RunConfig("polynomial", {}, "st")
    start = records.Record("start", one.key, config=one.as_dict())
    records.write(tmp_path / f"{one.key}.jsonl", [start])
    (tmp_path / "cut.jsonl").write_text(start.line()[:40])  # killed as it wrote its first line
    assert summary.collect(tmp_path)["key"].to_list() == [one.key]


def test_a_file_that_is_not_records_is_named(tmp_path):
    (tmp_path / "b.jsonl").write_text("3\n")
    with pytest.raises(gt.DomainError, match=r"b\.jsonl: not a record"):
        summary.collect(tmp_path)


def test_flags_make_the_config_they_say(tmp_path):
    flags = "--estimator gst --gap p --tau 0.7 --lr 3e-4 --optimizer radam --batch-size 50"
    cli.main([*RUN, *flags.split(), "--out", str(tmp_path), "--experiment", "x"])
    want = RunConfig(
        "vae",
        VAE("digits", latents=2, classes=3, hidden=(16, 8)).options(),
        "gst",
        {"tau": 0.7, "gap": "p"},
        optimizer="radam",
        lr=3e-4,
        batch_size=50,
        epochs=1,
    )
    assert (tmp_path / "x" / f"{want.key}.jsonl").exists()


def test_what_is_learned_and_seldom_evaluated_is_said_by_flags(tmp_path):
    flags = "--estimator reinforce --baseline 40 --tuning-lr 1e-2 --evaluate-every 3"
    cli.main([*RUN, *flags.split(), "--out", str(tmp_path)])
    want = RunConfig(
        "vae",
        VAE("digits", latents=2, classes=3, hidden=(16, 8)).options(),
        "reinforce",
        {"baseline": 40.0},
        epochs=1,
        tuning_lr=1e-2,
        evaluate_every=3,
    )
    assert (tmp_path / "vae" / f"{want.key}.jsonl").exists()


def test_binary_latents_train_from_the_command_line(tmp_path, capsys):
    words = (
        "bench run bernoulli_vae --dataset digits --latents 4 --hidden 16 8 --valid 0 --epochs 1"
    )
    flags = "--prior learned --kl sampled --estimator rloo --samples 3 --bound-samples 2 --out"
    cli.main([*words.split(), *flags.split(), str(tmp_path)])
    assert "done" in capsys.readouterr().out
    task = BernoulliVAE(
        "digits", latents=4, hidden=(16, 8), valid=0, prior="learned", kl="sampled", bound_samples=2
    )
    want = RunConfig("bernoulli_vae", task.options(), "rloo", samples=3, epochs=1)
    assert (tmp_path / "bernoulli_vae" / f"{want.key}.jsonl").exists()


def test_options_that_can_be_typed_are_offered_and_no_others():
    offered = {f.name: f for f in fields(cli_options.estimator_options())}
    for kind in gt.ESTIMATORS.values():
        for name in cli_list.option_names(kind):
            hint = get_type_hints(kind)[name]
            members = get_args(hint) or (hint,)
            typed = any(m in (int, float, bool, str) or get_origin(m) is Literal for m in members)
            assert (name in offered) >= typed
    assert "proposal" not in offered  # a distribution
    assert as_declared(gt.GumbelRao, {"tau": 1, "k": 10}) == {"tau": 1.0, "k": 10}
    assert type(as_declared(gt.GumbelRao, {"tau": 1})["tau"]) is float
    assert type(as_declared(gt.GumbelRao, {"k": 10})["k"]) is int


@pytest.mark.parametrize("command", ["bench run", "audit"])
@pytest.mark.parametrize("name", TASKS)
def test_every_task_shows_each_of_its_options(command, name, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as stop:
        cli.main([*command.split(), name, "--help"])
    assert stop.value.code in (0, None)
    text = capsys.readouterr().out
    for option in fields(TASKS[name]):
        flag = option.name.replace("_", "-")
        assert re.search(rf"--(task\.|no-)?{flag}[ ,]", text), flag


def test_an_option_of_the_task_and_one_of_the_estimator_may_have_one_name(tmp_path):
    words = "bench run gradient_accuracy --dataset digits --latents 2 --classes 2 --hidden 8"
    flags = "--epochs 1 --probe-epochs 2 --estimator stgs --tau 0.5 --task.tau 2 --out"
    cli.main([*words.split(), *flags.split(), str(tmp_path)])
    task = TASKS["gradient_accuracy"](
        "digits", latents=2, classes=2, hidden=(8,), probe_epochs=(2,), tau=2.0
    )
    want = RunConfig("gradient_accuracy", task.options(), "stgs", {"tau": 0.5}, epochs=1)
    assert (tmp_path / "gradient_accuracy" / f"{want.key}.jsonl").exists()


@pytest.mark.parametrize("kind", TASKS.values(), ids=TASKS)
def test_flags_of_a_task_give_way_where_they_are_taken_and_the_task_stays_what_it_is(kind):
    assert cli_options.named_apart(kind, RunConfig) is kind
    apart = cli_options.named_apart(kind, kind)
    hints = get_type_hints(apart, include_extras=True)
    names = [option.name for option in fields(kind)]
    assert names == [option.name for option in fields(apart)]
    assert [hints[name].__metadata__[0].name for name in names] == [f"task.{n}" for n in names]
    assert cli_options.plain_task(apart()) == kind()
    assert apart().options() == kind().options()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([*RUN, "--estimator", "reinmx"], "reinmax"),
        ([*RUN, "--estimator", "st", "--k", "3"], "no option 'k'"),
        ([*RUN, "--tau", "0"], "above 0"),
        ([*RUN, "--seeds", "0-9"], "0..9"),
        ([*RUN, "--seeds", "0..2", "--seed", "0"], "--seed and --seeds"),
        ([*RUN, "--seeds", "0..2", "--devices", "2"], "devices is 2"),
        ([*RUN, "--seeds", "0..2", "--compile", "default"], "under vmap"),
        ([*RUN, "--compile", "reduce-overhead", "--accelerator", "cpu"], "CUDA graphs"),
        ([*RUN, "--estimator", "rloo", "--tuning-lr", "1e-3"], "nothing to learn"),
        (["bench", "run", "vae", "--dataset", "mnits"], "'mnist'"),
        (["bench", "report", "--out", "no/such/folder"], "no records"),
    ],
)
def test_an_error_is_one_line_and_exit_status_2(words, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        cli.main(words)
    assert stop.value.code == 2
    message = capsys.readouterr().err
    assert said in message
    assert message.count("\n") == 1


@pytest.mark.parametrize(
    "words", [["dmeo"], ["bench", "rnu"], ["bench", "run", "nae"], ["list", "x"]]
)
def test_unknown_words_are_refused(words, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(words)
    assert stop.value.code == 2
    assert words[-1] in capsys.readouterr().err


def test_the_demo_writes_a_page_a_picture_and_its_numbers(tmp_path):
    rows = demo(out=tmp_path, epochs=2, draws=32)
    assert [row.result.status for row in rows] == ["done"] * 7
    assert rows[0].cosine_end == pytest.approx(1.0)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "plotly" in page
    assert not re.search(r"<(script|link)[^>]+(src|href)=[\"']https?:", page), (
        "it must work offline"
    )
    assert page.count('<img alt="') == 14
    assert (tmp_path / "report.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "report.csv").read_text().count("\n") == 8


def test_committed_records_are_of_configs_that_this_version_builds():
    folder = README.parent / "experiments" / "results"
    for path in folder.rglob("*.jsonl"):
        first, *_ = path.read_text().splitlines()
        start = json.loads(first)
        assert RunConfig(**start["config"]).key == start["key"] == path.stem
        assert start["environment"]["dirty"] is False
