"""The picture and the page of an audit: all of it is there, readable, and asks no network."""

import html
import json
import math
import re
import shutil
import subprocess

import pytest
import torch
from plotly.offline import get_plotlyjs

from gradthrough.auditing.axes import axis_of, tick
from gradthrough.auditing.chart import charts
from gradthrough.auditing.labels import overlap, place
from gradthrough.auditing.report import AuditReport
from gradthrough.auditing.rows import AuditRow, Reference

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
BROWSER = next(filter(None, map(shutil.which, BROWSERS)), None)
NASTY = "<b>$x_$ & %{y}</b>"
WHY = "ARM serves <i>bernoulli</i> & nothing else."


def row(name, bias=0.0, variance=1.0, *, norm=2.0, ms=1.0, **given):
    """A row whose bias is told from zero if there is one."""
    mse = bias**2 + variance
    found = {
        "estimator": name, "evaluations": 4, "replicates": 100, "samples": 4,
        "bias": bias, "bias_low": 0.9 * bias, "bias_high": 1.1 * bias + 0.1,
        "variance": variance, "variance_low": 0.9 * variance, "variance_high": 1.1 * variance,
        "mse": mse, "mse_low": 0.9 * mse, "mse_high": 1.1 * mse,
        "p_value": 0.0 if bias else 1.0, "biased": bias > 0, "unbiased": not bias,
        "cosine": 0.9, "cosine_single": 0.5,
        "seconds_forward": ms / 2000, "seconds_backward": ms / 2000, "peak_bytes": 2**20,
    }  # fmt: skip
    return AuditRow(**found | given)


def report(*rows, norm=2.0):
    reference = Reference("exact", norm, 0.0, 8, "exact: the sum over all 8 points.")
    return AuditReport(
        rows, reference, "20 rows, each of <3> variables", 60, 20, 1, 4, 100, 123, "cpu",
        torch.__version__, 1.5,
    )  # fmt: skip


def usual():
    """Crowded and far apart, biased and not, one skipped, one that nothing is known of."""
    return report(
        row("st", 0.8, 1.5, ms=1.0),
        row("decoupled_st", 0.8, 1.51, ms=1.1),
        row("gumbel_rao", 0.6, 1.2, ms=30.0),
        row("reinmax", 0.1, 4.0, ms=1.3),
        row("rloo", 0.0, 20.0, ms=0.9),
        row("vargrad", 0.0, 20.1, ms=0.91),
        row("unordered_set", 0.0, 20.2, ms=0.92),
        row("reinforce", 0.0, 1e6, ms=0.8, bias_high=300.0),
        row(NASTY, 0.0, 19.0, ms=0.9, cosine=math.nan, cosine_single=math.nan),
        AuditRow("arm", skipped=WHY),
    )


UNUSUAL = {
    "one": report(row("rloo")),
    "one, of no noise": report(row("enumerate", variance=0.0, bias_high=1e-9)),
    "all skipped": report(AuditRow("arm", skipped=WHY), AuditRow("disarm", skipped="No.")),
    "no reference": report(row("st", 0.5), row("rloo"), norm=0.0),
    "no gradient": report(row("rloo", 0.0, 0.0, bias_high=0.0), norm=0.0),
    "not finite": report(row("st", 0.5), row("rloo", variance=math.inf), row("a", math.nan)),
    "not timed": report(row("st", 0.5, ms=math.nan), row("rloo", ms=math.nan)),
    "nothing known": report(row("st", math.nan, math.nan), norm=math.nan),
    "more bias than noise": report(row("st", 50.0, 0.1), row("stgs", 3.0, 0.1)),
    "usual": usual(),
}
CASES = pytest.mark.parametrize("found", UNUSUAL.values(), ids=UNUSUAL.keys())


@CASES
def test_every_audit_has_a_page_and_a_picture(found, tmp_path):
    text = found.to_html(tmp_path / "audit.html")
    assert (tmp_path / "audit.html").read_text(encoding="utf-8") == text
    for one in found.rows:
        assert f">{html.escape(one.estimator)}<" in text
        assert html.escape(one.skipped or "") in text
    found.plot().savefig(tmp_path / "audit.png")
    assert (tmp_path / "audit.png").stat().st_size > 1000


def test_the_page_says_all_that_the_report_says():
    found = usual()
    text = found.to_html()
    shown = [*found.notes(), str(found.recommend()), found.reference.words, WHY]
    shown += ["20 rows, each of <3> variables", "123", torch.__version__, "cpu"]
    shown += [cell for cells in found.cells() for cell in cells]
    for words in shown:
        assert html.escape(words) in text
    assert '<meta name="viewport"' in text


def test_the_same_report_makes_the_same_page():
    assert usual().to_html() == usual().to_html()


def test_an_audit_without_a_measurement_says_so():
    found = UNUSUAL["all skipped"]
    assert "No estimator was measured" in found.to_html()
    assert any("No estimator" in text.get_text() for text in found.plot().texts)


def test_what_users_wrote_is_no_markup():
    text = usual().to_html().replace(get_plotlyjs(), "")
    assert NASTY not in text
    assert "<i>bernoulli" not in text
    assert "<3>" not in text


def test_the_page_names_no_address():
    text = usual().to_html().replace(get_plotlyjs(), "")
    assert "://" not in text
    assert "default-src 'none'; script-src 'unsafe-inline'" in text
    assert not re.search(r"<(link|iframe|img|object)|\ssrc=|@import|url\(", text)


def test_a_bias_that_was_not_found_is_drawn_at_its_upper_end():
    plane, cost = charts(usual())
    drawn = {p.row.estimator: p for p in plane.points}
    assert drawn["rloo"].bound
    assert drawn["rloo"].y == pytest.approx((0.1 / 2.0) ** 2)
    assert not drawn["st"].bound
    assert drawn["st"].y == pytest.approx((0.8 / 2.0) ** 2)
    assert drawn["st"].x == pytest.approx(1.5 / 4)
    assert not any(p.bound for p in cost.points)
    dear = next(p for p in cost.points if p.row.estimator == "gumbel_rao")
    assert (dear.x, dear.y) == pytest.approx((30.0, (0.36 + 1.2) / 4))
    assert (dear.low, dear.high) == pytest.approx((0.9 * dear.y, 1.1 * dear.y))


@CASES
def test_points_curves_and_their_labels_lie_on_the_chart(found):
    for chart in charts(found):
        places = [(p.x, p.y) for p in chart.points]
        places += [pair for curve in chart.curves for pair in zip(curve.x, curve.y, strict=True)]
        assert all(0 <= chart.x.at(x) <= 1 and 0 <= chart.y.at(y) <= 1 for x, y in places)
        assert chart.x.ticks
        assert chart.y.ticks
        lost = {one.estimator for one in found.measured} - {p.row.estimator for p in chart.points}
        assert all(name in chart.caption for name in lost)


def test_bias_and_variance_add_up_to_the_error_of_a_curve():
    both = [charts(UNUSUAL[name])[0].curves for name in ("usual", "more bias than noise")]
    assert min(map(len, both)) > 2
    for curve in both[0] + both[1]:
        sums = {x + y for x, y in zip(curve.x, curve.y, strict=True)}
        assert max(sums) == pytest.approx(min(sums))
        assert curve.text == f"MSE {tick(float(f'{max(sums):.3g}'))}"


def test_what_is_nearly_zero_is_drawn_at_the_edge_and_marked():
    plane, _ = charts(report(row("enumerate", variance=1e-30, bias_high=1e-16), row("rloo")))
    exact, sampled = plane.points
    assert exact.text == "↙ enumerate"
    assert sampled.text == "rloo"
    assert plane.x.at(exact.x) < 0.05 < plane.x.at(sampled.x)
    assert "An arrow" in plane.caption


def test_an_axis_holds_its_values_and_has_round_ticks():
    for values in ([1.0], [0.3, 0.31], [2e-2, 4e5], [0.0, 5.0], [0.0], [1e300, 1e-300]):
        axis = axis_of("", values)
        assert all(axis.low < math.log10(v) < axis.high for v in values if v > 1e-9 * max(values))
        assert 1 <= len(axis.ticks) <= 6
    assert [tick(v) for v in (1e-4, 2e-5, 0.05, 1.0, 2000.0, 1e6, 5e12)] == [
        *("10⁻⁴", "2·10⁻⁵", "0.05", "1", "2,000", "10⁶", "5·10¹²")
    ]


def test_labels_cover_neither_points_nor_one_another():
    generator = torch.Generator().manual_seed(0)
    area, size = (900.0, 500.0), (80.0, 16.0)
    for _ in range(3):
        spread = torch.rand(24, 2, generator=generator) * torch.tensor(area)
        anchors = [*map(tuple, spread.tolist()), (300.0, 200.0), (301.0, 200.0), (300.0, 201.0)]
        places = place(anchors, [size] * len(anchors), area)
        boxes = [
            (x + dx - size[0] / 2, y + dy - size[1] / 2, x + dx + size[0] / 2, y + dy + size[1] / 2)
            for (x, y), (dx, dy) in zip(anchors, places, strict=True)
        ]
        assert all(b[0] >= 0 and b[1] >= 0 and b[2] <= 900 and b[3] <= 500 for b in boxes)
        assert not any(overlap(a, b) for i, a in enumerate(boxes) for b in boxes[:i])
        marks = [(x - 3, y - 3, x + 3, y + 3) for x, y in anchors]
        assert not any(overlap(a, b) for a in boxes for b in marks)


LISTEN = """<script>
const seen = {errors: [], asked: []};
addEventListener('error', e => seen.errors.push(String(e.message)), true);
addEventListener('unhandledrejection', e => seen.errors.push(String(e.reason)));
addEventListener('securitypolicyviolation', e => seen.asked.push(e.blockedURI));
</script>"""
LOOK = """<script>
addEventListener('load', () => setTimeout(() => {
  const all = what => [...document.querySelectorAll(what)], box = e => e.getBoundingClientRect();
  const sides = e => { const b = box(e); return [b.left, b.top, b.right, b.bottom]; };
  const size = e => parseFloat(getComputedStyle(e).fontSize), table = all('.box')[0];
  Object.assign(seen, {
    asked: seen.asked.concat(performance.getEntriesByType('resource').map(e => e.name)),
    inner: innerWidth, scroll: document.documentElement.scrollWidth,
    charts: all('.plotly-graph-div').map(gd => ({
      svgs: gd.querySelectorAll('.main-svg').length, right: box(gd).right,
      drawn: gd.querySelectorAll('.point').length,
      labels: [...gd.querySelectorAll('.annotation-text')].map(e => e.textContent),
      sides: [...gd.querySelectorAll('.annotation-text')].map(sides)})),
    table: [table.clientWidth, table.scrollWidth, box(table).right],
    small: Math.min(...all('p, li, td, th, dd, svg text').map(size))});
  parent.postMessage(JSON.stringify(seen), '*');
}, 500));
</script>"""
FRAME = """<!doctype html><body><script>
addEventListener('message', e => {
  const out = document.createElement('pre');
  out.id = 'seen'; out.textContent = e.data; document.body.append(out); });
</script><iframe src="inner.html" style="border: 0; width: 400px; height: 4000px"></iframe>"""


def opened(text, folder):
    """What a browser sees in a frame of 400 pixels: its own windows are no narrower than 500."""
    inner = text.replace("<head>", f"<head>{LISTEN}", 1).replace("</body>", f"{LOOK}</body>")
    (folder / "inner.html").write_text(inner, encoding="utf-8")
    (folder / "outer.html").write_text(FRAME, encoding="utf-8")
    command = [
        *(BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
        *("--disable-background-networking", "--host-resolver-rules=MAP * ~NOTFOUND"),
        *(f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=10000", "--dump-dom"),
        (folder / "outer.html").as_uri(),
    ]
    out = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    found = re.search(r'<pre id="seen">(.*?)</pre>', out, re.DOTALL)
    assert found, out[-2000:]
    return json.loads(html.unescape(found[1]))


@pytest.mark.skipif(BROWSER is None, reason=f"none of {', '.join(BROWSERS)} is installed")
def test_a_browser_shows_the_page_on_a_narrow_screen_without_a_network(tmp_path):
    found = usual()
    seen = opened(found.to_html(), tmp_path)
    assert seen["errors"] == []
    assert seen["asked"] == []
    assert seen["inner"] == 400
    assert seen["scroll"] <= 400
    assert seen["table"][0] < seen["table"][1]  # it scrolls by itself
    assert seen["table"][2] <= 400
    assert seen["small"] >= 12
    assert len(seen["charts"]) == 2
    for chart in seen["charts"]:
        assert chart["svgs"] > 0
        assert chart["right"] <= 400
        assert chart["drawn"] == len(found.measured)
        assert {one.estimator for one in found.measured} <= set(chart["labels"])
        boxes = [b for b in chart["sides"] if b[0] < b[2]]
        assert not any(overlap(a, b) for i, a in enumerate(boxes) for b in boxes[:i])
