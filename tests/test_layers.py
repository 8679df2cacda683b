"""Imports run strictly downward, and importing the library loads torch and nothing heavy."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import gradthrough

ROOT = Path(gradthrough.__file__).parent
HEAVY = (
    *("lightning_fabric", "lightning", "tyro", "polars", "matplotlib", "plotly", "sklearn"),
    *("scipy", "optuna", "pooch", "rich", "ray", "submitit", "pandas", "triton"),
    *("pyro", "transformers", "pytorch_lightning", "torchrl", "vector_quantize_pytorch"),
)
# The pictures of an audit, which the rest of the library imports when one is asked for.
DRAWN = ("auditing.picture", "auditing.page", "auditing.interactive")

# What a module may import of the library, besides the modules of its own row that come first.
FOUNDATION = ("_types", "_errors")
TOOLS = (*FOUNDATION, "_random", "_attach", "_slope", "kernels")
LAWS = (*TOOLS, "controls", "laws")
# The commands of `cli`, a module each.
CLIENTS = ("pyro", "lightning", "transformers")
COMMANDS = (
    *("cli_audit", "cli_figure", "cli_list", "cli_options", "cli_report", "cli_rerun"),
    "cli_sweep",
)
CALLBACKS = (*FOUNDATION, "_callbacks", "estimators", "monitoring", "nn", "swapping")
PROGRAMS = (*LAWS, "estimators", "embedding", "expect", "rollout", "bounds")
PARTS = ("sampling", "schedules", "structured", "routing", "nn")
ALLOWED = {
    "_types": (),
    "_errors": (),
    "_random": FOUNDATION,
    "_attach": FOUNDATION,
    "_slope": FOUNDATION,
    "controls": (*FOUNDATION, "laws"),
    "kernels": (*FOUNDATION, "_random", "kernels"),
    "laws": (
        *FOUNDATION,
        "_random",
        "_attach",
        "_slope",
        "kernels.checks",
        "kernels.dispatch",
        "laws",
    ),
    "estimators": (*LAWS, *(f"estimators.{n}" for n in ("base", "checks", "tempered", "pathwise"))),
    "expect": (*LAWS, "estimators"),
    "rollout": (*LAWS, "estimators", "expect"),
    "bounds": (*LAWS, "estimators", "expect"),
    "embedding": (*LAWS, "estimators"),
    "sampling": (*LAWS, "estimators"),
    "distributions": (*LAWS, "estimators", "sampling", "distributions"),
    "structured": (*LAWS, "estimators", "sampling", "structured"),
    "routing": (*LAWS, "estimators", "sampling"),
    "schedules": FOUNDATION,
    "nn": (*LAWS, "estimators", "embedding", "sampling", "structured", "routing", "nn"),
    "swapping": (*LAWS, "estimators", "sampling", "distributions", "swapping"),
    "auditing": (*PROGRAMS, "auditing"),
    "monitoring": (*PROGRAMS, "monitoring"),
    # What the library is to another one, a module for each.
    "_callbacks": CALLBACKS,
    "pyro": (*LAWS, "estimators", "sampling", "distributions"),
    "lightning": CALLBACKS,
    "transformers": CALLBACKS,
    "bench": (*PROGRAMS, *PARTS, "auditing", "bench"),
    **{name: (*PROGRAMS, "auditing", "bench") for name in COMMANDS},
    "cli": (*PROGRAMS, "auditing", "bench", *COMMANDS),
}


def modules():
    return sorted(ROOT.rglob("*.py"))


def name_of(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(p for p in parts if p != "__init__")


def imports(path):
    """(absolute name, whether importing the module runs it) of each import; ours without prefix."""
    tree = ast.parse(path.read_text())
    package = path.relative_to(ROOT).parent.parts
    lazy = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        or (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
        for inner in ast.walk(node)
    }
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [node.module]
        elif isinstance(node, ast.ImportFrom):
            base = ("gradthrough", *package[: len(package) - node.level + 1])
            stem = ".".join((*base, node.module) if node.module else base)
            names = [stem]
            if not node.module or (ROOT / Path(*stem.split(".")[1:])).is_dir():
                names = [
                    f"{stem}.{a.name}" if exists(f"{stem}.{a.name}") else stem for a in node.names
                ]
        else:
            continue
        found += [(name, id(node) not in lazy) for name in names]
    return found


def exists(dotted):
    path = ROOT.joinpath(*dotted.split(".")[1:])
    return path.with_suffix(".py").exists() or path.is_dir()


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_imports_run_downward(path):
    name = name_of(path)
    top = name.split(".")[0]
    if name == "":  # the face
        return
    assert top in ALLOWED, f"{name} has no place in the table"
    for target, _ in imports(path):
        if not target.startswith("gradthrough"):
            continue
        inner = target.removeprefix("gradthrough").removeprefix(".")
        package_face = path.name == "__init__.py" and inner.split(".")[0] == top
        fine = any(inner == a or inner.startswith(f"{a}.") for a in ALLOWED[top])
        assert fine or package_face, f"{name} imports {inner}"


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_heavy_packages_stay_in_bench_and_cli(path):
    name = name_of(path)
    allowed = name.split(".")[0] in ("bench", "cli", *COMMANDS, *CLIENTS) or name in DRAWN
    # What a report of an audit returns, made when it is asked for.
    lazily = ("polars", "matplotlib") if name == "auditing.report" else ()
    for target, eager in imports(path):
        package = target.split(".")[0]
        if package == "triton":
            assert name.startswith("kernels.triton")
            continue
        assert package not in HEAVY or allowed or (package in lazily and not eager)
        if target.removeprefix("gradthrough.") in DRAWN:
            assert allowed or not eager
        if name == "kernels.engines" and target.endswith("kernels.triton"):
            assert not eager


def test_only_random_draws():
    """torch.rand and its kin are called in one module."""
    words = {"rand", "randn", "randint", "multinomial", "bernoulli", "exponential_", "uniform_"}
    for path in modules():
        if name_of(path).split(".")[0] in ("_random", "bench", "cli", "auditing"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                assert node.func.attr not in words, f"{name_of(path)} line {node.lineno}"


def test_no_assert_and_no_print_in_the_core():
    for path in modules():
        if name_of(path).split(".")[0] in ("bench", "cli", *COMMANDS):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            assert not isinstance(node, ast.Assert), f"{name_of(path)} line {node.lineno}"
            named = isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
            assert not (named and node.func.id == "print"), f"{name_of(path)} line {node.lineno}"


def test_importing_the_library_loads_torch_and_nothing_heavy():
    code = (
        "import sys, torch; before = set(sys.modules); import gradthrough;"
        "print(*sorted({m.split('.')[0] for m in set(sys.modules) - before}))"
    )
    out = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True, text=True, check=True, env={"PYTHONPATH": str(ROOT.parent)},
    )  # fmt: skip
    loaded = set(out.stdout.split())
    assert "gradthrough" in loaded
    assert not loaded & set(HEAVY)
    assert not any(m.startswith("gradthrough.bench") for m in out.stdout.split())


def test_importing_the_library_leaves_torch_as_it_was():
    code = """
import sys, types, torch, torch.distributions, torch.distributions.kl, torch.utils.checkpoint

def mark(value):
    return id(value), id(value.__code__) if isinstance(value, types.FunctionType) else None

def snapshot(modules):
    seen = {}
    for name in modules:
        for key, value in list(vars(sys.modules[name]).items()):
            seen[name, key] = mark(value)
            if type(value) is type and value.__module__.startswith("torch"):
                for inner, entry in list(vars(value).items()):
                    seen[name, key, inner] = mark(entry)
    return seen

modules = [name for name, m in sys.modules.items() if name.split(".")[0] == "torch"]
assert len(modules) > 300
before, kl = snapshot(modules), dict(torch.distributions.kl._KL_REGISTRY)
import gradthrough
after = snapshot(modules)
new = {key for key in after if key not in before}
changed = {key for key in before if before[key] != after.get(key)}
# what an import of a submodule of torch leaves in its parent
new -= {key for key in new if len(key) == 2 and f"{key[0]}.{key[1]}" in sys.modules}
print(sorted(map(str, new | changed)), kl == torch.distributions.kl._KL_REGISTRY)
print(torch.overrides._len_torch_function_stack())
"""
    out = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True, text=True, check=True, env={"PYTHONPATH": str(ROOT.parent)},
    )  # fmt: skip
    assert out.stdout.split("\n")[:2] == ["[] True", "0"]
