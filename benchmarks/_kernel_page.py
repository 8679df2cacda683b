"""The rows of the kernels' times as a CSV file, a page of the docs, and pictures."""

import csv
import hashlib
import io
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import matplotlib as mpl
from _contestants import DIRECT, OURS, PYPI, SOFTMAX, STREAMED, TORCH
from _timing import PARTS
from matplotlib.figure import Figure

from gradthrough.bench import records

Row = dict[str, str]
RATIOS = (PYPI, TORCH, SOFTMAX, "floor", DIRECT)
HEAD = (
    "device", "torch", "threads", "commit", "contestant", "backend", "shape", "dtype", "part",
    "repeats", "median_us", "low_us", "high_us", *(f"ratio_to_{name}" for name in RATIOS),
    "copy_gb_s", "peak_bytes", "saved_bytes", "logits_bytes", "launches", "environment",
)  # fmt: skip
# What may be empty: a peer has no backend, a processor launches nothing, and only one estimator
# is paired with the direct Gumbel-Rao.
OPTIONAL = ("backend", "launches", f"ratio_to_{DIRECT}")

_INTRODUCTION = """\
# What the kernels cost

One draw from random logits, and the gradient that it sends back to them for a random upstream
gradient: the time of forward, backward and both, beside code that does the same or less.

*Contestants*: `st` (tau 1.4), `stgs`, `gumbel_softmax` (soft), `gst` and `gumbel_rao` (tau 0.5) and
`reinmax` (tau 1, and 1.3), called as users call them, checks of the logits included; under the
default backend, or under the one named. *Peers*: plain `softmax`, which draws nothing;
`torch_gumbel_softmax`, the `F.gumbel_softmax(hard=True)` of torch, tau 0.5; `pypi_reinmax`, the
package `reinmax` 0.1.0 of PyPI, tau 1.3; and `gumbel_rao_direct`, Gumbel-Rao with K = 100 copies
stored and autograd through them.

*Time*: median in microseconds; for both ways also the 20 % and 80 % quantiles. *Ratios*: each
contestant takes turns with `softmax`, torch's, PyPI's and a copy, in one process and in an order
that rotates; the median of the ratios of both ways, over at least 30 repeats. Above 1 it took
longer. *Floor*: the time of the bytes that must move, at the speed of `dst.copy_(src)` at the same
size: forward, logits in and sample out; backward, upstream gradient and logits in, gradient out. At
small shapes the copy is mostly the cost of a call. *Peak*: the most bytes held at a time in both
ways, beyond the logits and the upstream gradient. *Saved*: bytes that the graph keeps for the
backward, logits or sample included where it keeps them. Both in units of the bytes of the logits.

Made by `make bench`, which takes ten minutes and leaves out what does not fit into them;
`make bench BENCH_OPTIONS=--full` leaves nothing out. Rows, with their commit, versions and the
ratios of each way: [`benchmarks/results/kernels.csv`](../benchmarks/results/kernels.csv)."""


def read(path: Path) -> list[Row]:
    """Return the rows of a file, none if there is no file."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def group_of(row: Row) -> tuple[str, str, str]:
    """Return what a measurement replaces as a whole: the device, torch's version, the threads."""
    return row["device"], row["torch"], row["threads"]


def merged(old: Iterable[Row], new: list[Row]) -> list[Row]:
    """Return the rows with every group that was measured anew replaced."""
    fresh = {group_of(row) for row in new}
    return sorted([row for row in old if group_of(row) not in fresh] + new, key=group_of)


def write(path: Path, rows: list[Row]) -> None:
    """Write all rows, or leave the file as it was."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, HEAD, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    records.replace(path, text.getvalue().encode())


def _groups(rows: list[Row]) -> list[list[Row]]:
    keys = dict.fromkeys(group_of(row) for row in rows)
    return [[row for row in rows if group_of(row) == key] for key in keys]


def _values(rows: list[Row], column: str) -> list[str]:
    return list(dict.fromkeys(row[column] for row in rows))


def label(row: Row) -> str:
    """Return the name of a contestant, with its backend unless that is the default."""
    plain = row["backend"] in ("", "auto")
    return row["contestant"] if plain else f"{row['contestant']}, {row['backend']}"


def picture_name(device: str) -> str:
    """Return the file name of a device's picture."""
    return f"kernels-{re.sub('[^a-z0-9]+', '-', device.lower()).strip('-')}.png"


def page(rows: list[Row]) -> str:
    """Return the page of the docs."""
    parts = [_INTRODUCTION]
    if not rows:
        parts.append("No rows are committed yet.")
    seen: set[str] = set()
    for group in _groups(rows):
        device, torch_version, threads = group_of(group[0])
        parts.append(f"## {device}, {_threads(threads)}, torch {torch_version}")
        if device not in seen:
            alt = f"time of both ways against softmax on {device}"
            parts.append(f"![{alt}]({picture_name(device)})")
        seen.add(device)
        parts += _sections(group)
        commits = ", ".join(commit[:7] or "unknown" for commit in _values(group, "commit"))
        parts.append(f"Commit {commits}.")
    return "\n\n".join(parts) + "\n"


def _sections(group: list[Row]) -> Iterable[str]:
    everyone = _labels([row for row in group if row["contestant"] != DIRECT])
    for dtype in _values(group, "dtype"):
        for shape in _values(group, "shape"):
            here = [r for r in group if r["dtype"] == dtype and r["shape"] == shape]
            if not here:
                continue
            speed = float(here[0]["copy_gb_s"])
            yield f"### {shape}, {dtype}"
            yield _table(here)
            missing = [name for name in everyone if name not in _labels(here)]
            if missing:
                names = ", ".join(f"`{name}`" for name in missing)
                yield f"Not timed in the time given: {names}."
            yield f"A copy of this size moves {speed:.1f} GB/s." + _against_direct(here)


def _table(rows: list[Row]) -> str:
    gpu = any(row["launches"] for row in rows)
    head = [
        "contestant", "forward", "backward", "both", "20 % to 80 %", "/ softmax", "/ torch",
        "/ PyPI", "/ floor", "peak", "saved",
    ]  # fmt: skip
    if gpu:
        head += ["launches", "% of copy speed"]
    lines = [f"| {' | '.join(head)} |", f"| --- |{' ---: |' * (len(head) - 1)}"]
    for name in _labels(rows):
        three = {row["part"]: row for row in rows if label(row) == name}
        lines.append(f"| {' | '.join(_cells(name, three, gpu))} |")
    return "\n".join(lines)


def _labels(rows: list[Row]) -> list[str]:
    return list(dict.fromkeys(label(row) for row in rows))


def _cells(name: str, three: dict[str, Row], gpu: bool) -> list[str]:
    both = three["both"]
    size = int(both["logits_bytes"])
    cells = [f"`{name}`", *(_short(three[part]["median_us"]) for part in PARTS)]
    cells.append(f"{_short(both['low_us'])} to {_short(both['high_us'])}")
    cells += [_short(both[f"ratio_to_{peer}"]) for peer in (SOFTMAX, TORCH, PYPI, "floor")]
    cells += [_short(int(both[column]) / size) for column in ("peak_bytes", "saved_bytes")]
    if gpu:
        ways = [three[part] for part in ("forward", "backward")]
        cells.append(" + ".join(row["launches"] for row in ways))
        cells.append(" and ".join(f"{100 / float(row['ratio_to_floor']):.0f}" for row in ways))
    return cells


def _against_direct(rows: list[Row]) -> str:
    """Return what the streamed Gumbel-Rao takes of the direct one's time and memory."""
    direct = [row for row in rows if row["contestant"] == DIRECT and row["part"] == "both"]
    text = ""
    for row in rows:
        ratio = row[f"ratio_to_{DIRECT}"]
        if direct and ratio and row["contestant"] == STREAMED and row["part"] == "both":
            peak = int(row["peak_bytes"]) / int(direct[0]["peak_bytes"])
            text += f" Of `{DIRECT}`, `{label(row)}` takes {_short(ratio)} of the time"
            text += f" and {_short(peak)} of the peak."
    return text


def _short(number: str | float) -> str:
    value = float(number)
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2 if abs(value) >= 0.1 else 4
    return f"{value:.{digits}f}"


_COLOURS = dict(
    zip(
        OURS,
        ("#0072b2", "#56b4e9", "#009e73", "#e69f00", "#d55e00", "#aa4499", "#cc79a7", "#882255"),
        strict=True,
    )
)  # fmt: skip
_PEER_STYLE: dict[str, dict[str, Any]] = {
    TORCH: {"color": "#444444", "marker": "s"},
    PYPI: {"color": "#888888", "marker": "D"},
    DIRECT: {"color": "#222222", "marker": "x", "linestyle": "none"},
}
_LINES = {"": "--", "auto": "-", "compile": ":"}  # any other backend: "-."


def pictured(rows: list[Row], device: str) -> list[Row]:
    """Return the rows that a device's picture shows: those of its last version of torch."""
    mine = [row for row in rows if row["device"] == device and row["part"] == "both"]
    return [row for row in mine if row["torch"] == mine[-1]["torch"]]


def digest(rows: list[Row]) -> str:
    """Return a hash of rows, which a picture carries so that a stale one is found out."""
    return hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()


def picture(rows: list[Row], device: str) -> bytes:
    """Return a PNG of the ratios to softmax by shape: threads side by side, dtypes below."""
    shown = pictured(rows, device)
    threads, dtypes = _values(shown, "threads"), _values(shown, "dtype")
    style = {"font.size": 10, "axes.spines.top": False, "axes.spines.right": False}
    with mpl.rc_context(style):
        size = (4.6 * len(threads) + 2.4, 4.6 * len(dtypes) + 0.6)
        figure = Figure(figsize=size, layout="constrained")
        plots = figure.subplots(len(dtypes), len(threads), sharey=True, squeeze=False)
        named: dict[str, Any] = {}
        for dtype, line in zip(dtypes, plots, strict=True):
            line[0].set_ylabel("time of forward and backward / softmax's")
            for count, axes in zip(threads, line, strict=True):
                _panel(axes, [r for r in shown if (r["threads"], r["dtype"]) == (count, dtype)])
                axes.set_title(f"{_threads(count)}, {dtype}", fontsize=10, loc="left")
                handles, labels = axes.get_legend_handles_labels()
                named |= dict(zip(labels, handles, strict=True))
        figure.legend(
            named.values(), named.keys(), loc="outside right center", frameon=False, fontsize=9
        )
        title = f"A sample and its gradient against plain softmax: {device}"
        figure.suptitle(title, x=0.01, ha="left", fontsize=11)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=130, metadata={"Source": digest(shown)})
    return buffer.getvalue()


def _threads(count: str) -> str:
    return f"{count} thread" if count == "1" else f"{count} threads"


def _elements(shape: str) -> int:
    count = 1
    for size in shape.split("x"):
        count *= int(size)
    return count


def _panel(axes: Any, rows: list[Row]) -> None:  # noqa: ANN401 - matplotlib's Axes, half typed
    # Even steps, by size: on a true axis the labels of shapes that are alike would overlap.
    shapes = sorted(_values(rows, "shape"), key=_elements)
    axes.axhline(1.0, color="#bbbbbb", linewidth=1, zorder=0)
    axes.text(0, 1.0, " softmax", va="bottom", ha="left", fontsize=8, color="#888888")
    for name in _labels(rows):
        mine = {row["shape"]: row for row in rows if label(row) == name}
        row = next(iter(mine.values()))
        if row["contestant"] == SOFTMAX:
            continue
        look = _PEER_STYLE.get(row["contestant"]) or {"color": _COLOURS[row["contestant"]],
                                                      "marker": "o"}  # fmt: skip
        look = {"linestyle": _LINES.get(row["backend"], "-."), "linewidth": 1.5, **look}
        places = [place for place, shape in enumerate(shapes) if shape in mine]
        ratios = [float(mine[shapes[place]][f"ratio_to_{SOFTMAX}"]) for place in places]
        axes.plot(places, ratios, label=name, markersize=4.5, **look)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_xticks(range(len(shapes)), shapes, rotation=40, ha="right", fontsize=8.5)
    axes.set_xlabel("shape, by number of elements")
    axes.grid(axis="y", color="#eeeeee", linewidth=0.8)
    axes.set_axisbelow(True)
