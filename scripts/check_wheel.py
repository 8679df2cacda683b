"""Check an installed gradthrough where nothing but torch is installed beside it.

Usage: python -I check_wheel.py README.md

Importing the library must bring in none of the heavy packages, and the README's Python blocks must
run as a reader would type them: from top to bottom, in one namespace. A block is left out if the
line above it is `<!-- not run -->`.
"""

import os
import re
import sys
import tempfile
from collections.abc import Iterator
from importlib.metadata import requires, version
from pathlib import Path

import torch  # noqa: F401  first, so that what torch itself brings in is not held against us

HEAVY = {"lightning_fabric", "matplotlib", "plotly", "polars", "sklearn", "triton", "tyro"}
FENCE = re.compile(r"( *)(```+|~~~+) *(\w*)")
NOT_RUN = "<!-- not run -->"


def check_import() -> None:
    """Import gradthrough from this environment: typed, light, and needing torch alone."""
    before = set(sys.modules)
    import gradthrough

    home = Path(gradthrough.__file__).parent
    heavy = HEAVY & {name.partition(".")[0] for name in set(sys.modules) - before}
    needs = [need for need in requires("gradthrough") or [] if "extra ==" not in need]
    if not home.is_relative_to(sys.prefix):
        sys.exit(f"gradthrough was imported from {home}, not from the installed wheel")
    if heavy:
        sys.exit(f"import gradthrough also imports {', '.join(sorted(heavy))}")
    if [re.match(r"[\w-]+", need).group() for need in needs] != ["torch"]:
        sys.exit(f"gradthrough should need torch alone, but needs {needs}")
    if not (home / "py.typed").is_file():
        sys.exit("the wheel has no py.typed")
    print(f"gradthrough {version('gradthrough')} imports with torch alone")


def python_blocks(text: str) -> Iterator[tuple[int, str, bool]]:
    """Yield each Python block: the number of its first line, its code, and whether it is to run."""
    lines = text.splitlines()
    at = 0
    while at < len(lines):
        opening = FENCE.match(lines[at])
        at += 1
        if opening is None:
            continue
        indent, fence, language = opening.groups()
        first = at
        while at < len(lines) and lines[at].strip() != fence:
            at += 1
        if at == len(lines):
            sys.exit(f"the block that opens on line {first} is never closed")
        if language == "python":
            code = "\n".join(line.removeprefix(indent) for line in lines[first:at])
            yield first + 1, code, first < 2 or lines[first - 2].strip() != NOT_RUN
        at += 1


def run_blocks(readme: Path) -> None:
    """Run the blocks in one namespace and in an empty folder."""
    blocks = list(python_blocks(readme.read_text(encoding="utf-8")))
    chosen = [(line, code) for line, code, run in blocks if run]
    if not chosen:
        sys.exit(f"{readme} has no Python block to run")
    namespace = {"__name__": "__main__"}
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for line, code in chosen:
            print(f"{readme.name}:{line}", flush=True)
            # The padding makes a traceback name the README's own line.
            exec(compile("\n" * (line - 1) + code, str(readme), "exec"), namespace)
        os.chdir(readme.parent)
    print(f"ran {len(chosen)} of {len(blocks)} Python blocks of {readme.name}")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -I check_wheel.py README.md")
    check_import()
    run_blocks(Path(sys.argv[1]).resolve())
