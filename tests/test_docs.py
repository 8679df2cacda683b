"""The documentation: its examples run, its lists say what happens, its links lead somewhere."""

import importlib.util
import re
import sys
import tomllib
from functools import cache
from pathlib import Path

import pytest
import torch

import gradthrough as gt
from gradthrough import cli
from gradthrough.bench.cells import cells
from gradthrough.bench.experiment import BUDGETS, Experiment
from gradthrough.bench.experiment_file import load
from problems import DISCRETE, FAMILIES, normal, uniform

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
sys.path.insert(0, str(DOCS / "_ext"))
import gradthrough_docs  # noqa: E402
from gradthrough_docs import api, choosing, pictures  # noqa: E402

PAGES = sorted(p for p in DOCS.rglob("*.md") if "_build" not in p.parts)
RUN = ("index", "choosing", "continuous", "how-it-works", "extending", "bench", "swap")


def script(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def text_of(path):
    return path.read_text(encoding="utf-8")


@cache
def built(path):
    """A page as Sphinx reads it."""
    return gradthrough_docs.fill(text_of(path))


def fences(text, language):
    """The blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


# --- examples


@pytest.mark.parametrize("name", RUN)
def test_python_blocks_run_as_a_reader_would_type_them(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    page = DOCS / f"{name}.md"
    for toml in fences(text_of(page), "toml"):
        (tmp_path / "four_bits.toml").write_text(toml)
    blocks = list(script("check_wheel").python_blocks(text_of(page)))
    namespace = {"__name__": "__main__"}
    for line, code, run in blocks:
        program = compile("\n" * (line - 1) + code, str(page), "exec")
        if run:
            exec(program, namespace)
    assert blocks


def test_the_experiment_of_the_page_has_cells_under_every_budget(tmp_path):
    (toml,) = fences(text_of(DOCS / "extending.md"), "toml")
    (tmp_path / "four_bits.toml").write_text(toml)
    experiment = load(tmp_path / "four_bits.toml")
    counts = {b: sum(len(c.seeds) for c in cells(experiment, b)) for b in BUDGETS}
    assert counts == {"smoke": 6, "laptop": 14, "paper": 60}
    assert {c.config.lr for c in cells(experiment, "paper")} == {0.05, 0.02}


def test_the_page_names_every_part_of_an_experiment():
    text = text_of(DOCS / "extending.md")
    known = {f for f in Experiment.__dataclass_fields__ if f != "name"}
    assert {name for name in known if f"`{name}" not in text} == set()


COMMANDS = sorted(
    {
        " ".join(line.split())
        for page in PAGES
        if page.stem in RUN
        for block in fences(text_of(page), "")
        for line in block.replace("\\\n", " ").splitlines()
        if line.startswith("gradthrough ")
    }
)


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_have_the_flags_that_the_pages_use(command, capsys):
    words = command.split()[1:]
    head = 3 if words[:2] == ["bench", "run"] else 2
    with pytest.raises(SystemExit):
        cli.main([*words[:head], "--help"])
    known = set(re.findall(r"--[a-z-]+", capsys.readouterr().out))
    assert {w for w in words if w.startswith("--")} <= known


# --- what is generated


def test_marks_are_those_that_can_be_filled_and_all_are_used():
    used = [mark for page in PAGES for mark in gradthrough_docs.MARK.findall(text_of(page))]
    assert sorted(used) == sorted(gradthrough_docs.GENERATED)
    assert not any(gradthrough_docs.MARK.search(built(page)) for page in PAGES)


def test_every_public_name_is_documented_once():
    pages = "\n".join(map(built, (DOCS / "api").glob("*.md")))
    named = re.findall(r"^\.\. (?:auto|py:)\w+:: gradthrough\.(\w+)$", pages, re.MULTILINE)
    source = text_of(Path(gt.__file__))
    public = re.findall(r"^from .* import (\w+) as \1$", source, re.MULTILINE)
    assert sorted(named) == sorted(public)


def test_every_estimator_has_its_section_and_its_function():
    text = api.estimators()
    assert re.findall(r"^## (\w+)$", text, re.MULTILINE) == [
        kind.__name__ for kind in gt.ESTIMATORS.values()
    ]
    functions = [api.function_of(kind) for kind in gt.ESTIMATORS.values()]
    assert [f is not None for f in functions] == [
        key in DISCRETE and kind.traits.pathwise for key, kind in gt.ESTIMATORS.items()
    ]


@pytest.mark.parametrize(
    "names",
    [
        (
            "need values of f alone",
            "need the gradient of f at hard samples",
            "need f at soft points",
        ),
        (
            "are unbiased",
            "are exact for quadratic f",
            "are exact for affine f",
            "are biased for every kind of f",
        ),
    ],
    ids=["what f can do", "bias"],
)
def test_every_estimator_is_in_one_list_of_a_question(names):
    listed = [key for name in names for key in choosing.having(name)]
    assert sorted(listed) == sorted(gt.ESTIMATORS)


def refusal(f, key, *, twice=False):
    """Whether an estimator refuses an f of three bits, or its second derivative."""
    one = gt.estimator(key)
    logits = normal(3).requires_grad_()
    try:
        continuous = not one.traits.families & set(FAMILIES)
        of_three = torch.distributions.Independent(torch.distributions.Normal(logits, 1.0), 1)
        q = gt.as_distribution(of_three) if continuous else gt.Bernoulli(logits, event_dims=1)
        n = one.traits.min_samples
        noise = uniform(*one.noise_shape(q.expand(n)))
        value = gt.expect(f, q, one, samples=n, noise=noise)
        (g,) = torch.autograd.grad(value, logits, create_graph=twice)
        if twice:
            g.square().sum().backward()
    except gt.UnsupportedError:
        return True
    return False


@pytest.mark.parametrize("key", gt.ESTIMATORS)
def test_the_lists_say_what_happens(key):
    values_alone = not refusal(lambda z: (z > 0.5).double().sum(-1), key)
    assert values_alone == (key in choosing.having("need values of f alone"))
    again = not refusal(lambda z: z.sum(-1).exp(), key, twice=True)
    assert again == (key in choosing.having("can be differentiated twice"))
    try:
        gt.Rollout(gt.estimator(key), samples=2)
        serves = True
    except gt.UnsupportedError:
        serves = False
    assert serves == (key in choosing.having("serve a rollout"))


@pytest.mark.parametrize("key", DISCRETE)
def test_the_table_of_evaluations_counts_what_f_sees(key):
    for variables, classes in ((1, 2), (10, 2)):
        one, seen = gt.estimator(key), []
        family = sorted(one.traits.families & set(FAMILIES))[-1]
        shape = (1, variables, classes) if family == "categorical" else (1, variables)
        q = FAMILIES[family](torch.zeros(shape), event_dims=1)

        def f(z, seen=seen, q=q):
            seen.append(len(z))
            return z.flatten(2).square().sum(-1)

        gt.expect(f, q, one, samples=one.traits.min_samples)
        assert choosing._count(key, variables, classes) == f"{sum(seen):,}"
    big = choosing._count(key, 200, 2)
    assert (big == "-") == (key == "enumerate")


# --- links and pictures


def slug(heading):
    """The anchor of a heading, as MyST makes it."""
    plain_text = re.sub(r"\[([^]]*)\]\([^)]*\)|[`*]", r"\1", heading)
    return re.sub(r"[^\w\- ]", "", plain_text.strip().lower()).replace(" ", "-")


def anchors(path):
    text = re.sub(r"^```.*?^```$", "", built(path), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#{1,3} (.+)$", text, re.MULTILINE)
    return {*map(slug, headings), *re.findall(r'id="([^"]+)"', text)}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(DOCS)))
def test_links_lead_somewhere(page):
    text = re.sub(r"^```.*?^```$", "", built(page), flags=re.DOTALL | re.MULTILINE)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        found = (page.parent / path).resolve() if path else page
        assert found.exists(), target
        assert not anchor or anchor in anchors(found), target


def test_the_toctrees_name_every_page():
    trees = [(p, t) for p in PAGES for t in re.findall(r"```{toctree}\n(.*?)```", built(p), re.S)]
    named = {
        (page.parent / re.sub(r".*<(.*)>", r"\1", line)).with_suffix(".md")
        for page, tree in trees
        for line in tree.splitlines()
        if line and not line.startswith(":")
    }
    assert named == {*PAGES} - {DOCS / "index.md"}


def test_the_gallery_shows_every_picture_once_and_leaves_out_what_is_not_there(monkeypatch):
    shown = re.findall(r"!\[[^]]*\]\((\S+)\)", pictures.gallery())
    there = [p.relative_to(DOCS).as_posix() for p in DOCS.rglob("*.png") if "_build" not in p.parts]
    assert sorted(shown) == sorted(there)
    monkeypatch.setattr(pictures, "DOCS", DOCS / "nowhere")
    assert pictures.gallery() == ""


def test_figures_of_an_experiment_are_told_by_its_file(tmp_path, monkeypatch):
    (tmp_path / "experiments").mkdir()
    (toml,) = fences(text_of(DOCS / "extending.md"), "toml")
    figure = '[[figures]]\ntitle = "Learning curves"\nmetrics = { loss = "test/loss" }\n'
    (tmp_path / "experiments" / "four_bits.toml").write_text(toml + 2 * figure)
    monkeypatch.setattr(pictures, "ROOT", tmp_path)
    found = pictures.experiments()
    title = f"{tomllib.loads(toml)['title']}: Learning curves"
    assert [one.title for one in found] == [title] * 2
    assert len({one.path for one in found}) == 2
    assert all("four_bits.toml" in one.line for one in found)


# --- formulas as MathML


def formulas(page):
    text = re.sub(r"^```.*?^```$", "", text_of(page), flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"`[^`\n]*`", "", text)
    return re.findall(r"\$\$(.*?)\$\$|\$([^$\n]+)\$", text, re.DOTALL)


def test_formulas_become_sound_mathml():
    pytest.importorskip("latex2mathml")
    pytest.importorskip("sphinx")
    from gradthrough_docs.mathml import mathml
    from sphinx.errors import ExtensionError

    found = [block or inline for page in PAGES for block, inline in formulas(page)]
    assert len(found) > 50
    assert all(mathml(one).startswith("<math") for one in found)
    for wrong in (r"\begin{aligned} a &= b \end{aligned}", r"\nosuchthing{x}"):
        with pytest.raises(ExtensionError, match="no MathML"):
            mathml(wrong)
