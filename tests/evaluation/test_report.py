"""The results page and the terminal table: what they say, what they must never do, and where things are drawn."""

import copy
import io
import math
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from itertools import count, pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from palate.errors import DataError
from palate.evaluation.report import _spread, _ticks, few_shot_table, headline, metric_name, write_report

SIZES = [0, 1, 3, 20]
METRICS = ["ndcg@10", "recall@10", "hit_rate@10", "precision@10", "mrr@10", "map@10"]
NASTY = "<script>alert('x')</script> & \"CO\""
VOID = {"meta", "link"}


def make_results() -> dict[str, Any]:
    """Every figure is different, so that one shown in another's place is missed where it belongs."""
    number = count(1)

    def model(name: str, kind: str) -> dict[str, Any]:
        metrics: dict[str, Any] = {}
        for metric in METRICS:
            means = [0.01 + next(number) * 0.0013 for _ in SIZES]
            metrics[metric] = [
                {"n": n, "mean": m, "low": m - 0.0041, "high": m + 0.0061} for n, m in zip(SIZES, means, strict=True)
            ]
        metrics["coverage@10"] = [
            {"n": n, "mean": 0.5 + next(number) * 0.0013, "low": None, "high": None} for n in SIZES
        ]
        return {"name": name, "kind": kind, "config": {}, "metrics": metrics}

    few_shot = {
        "metric": "ndcg@10",
        "support_sizes": SIZES,
        "num_users": 470,
        "models": [
            model("item-kNN", "baseline"),
            model("Popularity", "baseline"),
            model("Backbone alone", "ablation"),
            model("Palate", "palate"),
        ],
        "comparisons": [
            comparison(0, -0.0211, -0.0311, -0.0111, -0.2, True),
            comparison(1, 0.0022, -0.0122, 0.0322, 0.022, False),
            comparison(3, 0.0233, 0.0133, 0.0333, 0.123, True),
            comparison(20, 0.0244, 0.0144, 0.0344, None, True),
        ],
    }
    cold = {
        "metric": "recall@10",
        "support_sizes": [5],
        "num_users": 317,
        "models": [
            {
                "name": "Content only",
                "kind": "palate",
                "config": {"size": "tiny"},
                "metrics": {"recall@10": [{"n": 5, "mean": 0.9191, "low": 0.9091, "high": 0.9291}]},
            }
        ],
        "comparisons": [],
    }
    return {
        "dataset": {
            "name": "online-retail",
            "num_users": 4338,
            "num_items": 3665,
            "num_interactions": 266802,
            "first": "2010-12-01T08:26:00",
            "last": "2011-12-09T12:50:00",
        },
        "split": {
            "cut": "2011-09-01T00:00:00",
            "train_users": 3201,
            "train_items": 3402,
            "train_interactions": 170003,
            "cold_users": 1004,
            "cold_items": 205,
        },
        "cleaning": {
            "rows_in": 541909,
            "rows_out": 266802,
            "steps": [
                {
                    "name": "no customer",
                    "description": "Nobody to learn from.",
                    "rows_before": 541909,
                    "rows_dropped": 135080,
                    "examples": ["row 623", NASTY],
                }
            ],
        },
        "few_shot": few_shot,
        "cold_items": cold,
        "training": {
            "stages": [{"name": "clean", "seconds": 1.25, "detail": "kept 266,802"}],
            "curves": [
                {
                    "name": "backbone loss",
                    "x_label": "epoch",
                    "y_label": "nats",
                    "points": [[1, 7.0], [2, 6.8]],
                }
            ],
        },
        "customers": [
            {
                "user_id": "17850",
                "label": "a new customer after 1 item",
                "profile": {"country": "France"},
                "support": [{"item_id": "85123A", "title": NASTY}],
                "recommended": [
                    {
                        "item_id": "71053",
                        "title": "WHITE LANTERN",
                        "score": 1.234,
                        "rank": 1,
                        "reason": "like WHITE METAL LANTERN",
                        "bought_later": True,
                    },
                    {
                        "item_id": "84029",
                        "title": None,
                        "score": None,
                        "rank": 2,
                        "reason": None,
                        "bought_later": False,
                    },
                ],
            }
        ],
        "environment": {
            "version": "0.1.0",
            "seed": 0,
            "seconds": 201.5,
            "peak_memory_mb": 1503.0,
            "python": "3.11.9",
            "torch": "2.13.0",
        },
    }


def comparison(
    n: int, difference: float, low: float, high: float, relative: float | None, significant: bool
) -> dict[str, Any]:
    return {
        "n": n,
        "best_baseline": "item-kNN",
        "difference": difference,
        "low": low,
        "high": high,
        "relative": relative,
        "significant": significant,
    }


def page_of(results: dict[str, Any], tmp_path: Path) -> str:
    path = tmp_path / "report.html"
    write_report(results, path)
    return path.read_text(encoding="utf-8")


class Reader(HTMLParser):
    """Collects the texts, the attributes and the table rows of a page, and refuses tags that do not nest."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.texts: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.rows: list[list[str]] = []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.texts.append(data)
        if "td" in self.open or "th" in self.open:
            self.rows[-1][-1] = " ".join([*self.rows[-1][-1].split(), *data.split()])

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


def drawings(page: str) -> list[ET.Element]:
    return [ET.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL)]


def line_group(svg: ET.Element, name: str) -> ET.Element:
    return next(group for group in svg.iter("g") if group.findtext("text") == name)


# ---- what the page says -------------------------------------------------------------------------------------


def test_every_figure_of_every_model_stands_in_its_row(tmp_path: Path) -> None:
    results = make_results()
    rows = Reader(page_of(results, tmp_path)).rows
    for part in ("few_shot", "cold_items"):
        for model in results[part]["models"]:
            for metric, points in model["metrics"].items():
                expected = [f"{p['mean']:.4f}" for p in points]
                found = [
                    row[1:]
                    for row in rows
                    if row[0].startswith(model["name"])
                    and [re.sub("[▲▼] ", "", cell).split(" ")[0] for cell in row[1:]] == expected
                ]
                assert len(found) == 1, (model["name"], metric)
                for cell, point in zip(found[0], points, strict=True):
                    interval = f"{point['low'] or 0:.4f}–{point['high'] or 0:.4f}"
                    assert cell.endswith(interval) == (point["low"] is not None)


def test_comparisons_are_shown_with_sign_interval_and_verdict(tmp_path: Path) -> None:
    rows = Reader(page_of(make_results(), tmp_path)).rows
    assert ["0", "item-kNN", "−0.0211", "−0.0311 to −0.0111", "−20 %", "", "▼ worse"] in rows
    assert ["1", "item-kNN", "+0.0022", "−0.0122 to +0.0322", "2.2 %", "", "no clear difference"] in rows
    assert ["3", "item-kNN", "+0.0233", "+0.0133 to +0.0333", "12 %", "", "▲ better"] in rows
    assert ["20", "item-kNN", "+0.0244", "+0.0144 to +0.0344", "–", "", "▲ better"] in rows


@pytest.mark.parametrize(
    "shown",
    [
        "Palate on online-retail",
        "Interactions 266,802",
        "Customers 4,338",
        "Items 3,665",
        "First 2010-12-01 08:26",
        "Last 2011-12-09 12:50",
        "before 2011-09-01 00:00",
        "Training interactions 170,003",
        "Training customers 3,201",
        "Training items 3,402",
        "New customers 1,004",
        "New items 205",
        "541,909 rows were read and 266,802 kept (49 %)",
        "no customer 541,909 135,080 Nobody to learn from. Examples row 623",
        "mean over 470 customers",
        "mean over 317 customers",
        "Content only size tiny",
        "Palate, items known 3: 0.",
        "clean 1.2 kept 266,802",
        "nats by epoch; the last value is 6.8",
        "a new customer after 1 item",
        "Customer 17850 · country: France",
        "1 WHITE LANTERN 71053 · like WHITE METAL LANTERN · score 1.234 ✓ bought later",
        "2 84029 84029 · score –",
        "Palate 0.1.0",
        "Seed 0",
        "Whole run 201.5 s",
        "Peak memory 1,503 MB",
        "Python 3.11.9",
        "PyTorch 2.13.0",
    ],
)
def test_the_rest_is_shown(shown: str, tmp_path: Path) -> None:
    assert shown in Reader(page_of(make_results(), tmp_path)).text


def test_only_what_was_bought_later_is_ticked(tmp_path: Path) -> None:
    assert Reader(page_of(make_results(), tmp_path)).text.count("✓") == 1


def test_bars_are_proportional(tmp_path: Path) -> None:
    results = make_results()
    results["training"]["stages"].append({"name": "train", "seconds": 5.0, "detail": ""})
    widths = re.findall(r"width:([\d.]+)%", page_of(results, tmp_path).split("</style>")[1])
    assert widths == [f"{100 * 135080 / 541909:.2f}", "25.00", "100.00"]


# ---- the headline -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (
            comparison(3, 0.02, 0.01, 0.03, 0.123, True),
            "first 3 items, Palate ranks 12 % better than the best baseline (item-kNN).",
        ),
        (
            comparison(3, -0.02, -0.03, -0.01, -0.045, True),
            "first 3 items, Palate ranks 4.5 % worse than the best baseline (item-kNN).",
        ),
        (
            comparison(1, 0.02, -0.01, 0.03, 0.5, False),
            "first item, Palate and the best baseline (item-kNN) cannot be told apart: NDCG@10 differs by"
            " +0.0200 (95 % interval −0.0100 to +0.0300).",
        ),
        (
            comparison(0, 0.02, 0.01, 0.03, None, True),
            "Before a customer’s first item, Palate ranks better than the best baseline (item-kNN): NDCG@10"
            " differs by +0.0200 (95 % interval +0.0100 to +0.0300).",
        ),
    ],
)
def test_headline_is_honest(row: dict[str, Any], said: str) -> None:
    results = make_results()
    results["few_shot"]["comparisons"] = [row]
    assert said in headline(results).replace("\u00a0", " ")


def test_headline_takes_three_items_even_where_another_size_looks_better() -> None:
    results = make_results()
    results["few_shot"]["comparisons"] = [
        comparison(20, 0.5, 0.4, 0.6, 9.0, True),
        comparison(3, -0.02, -0.03, -0.01, -0.1, True),
    ]
    assert "first 3 items, Palate ranks 10\u00a0% worse" in headline(results)


def test_headline_without_comparison() -> None:
    results = make_results()
    results["few_shot"]["comparisons"] = None
    assert "no baseline" in headline(results)
    assert "no few-shot figures" in headline({})


def test_tally_counts_all_support_sizes(tmp_path: Path) -> None:
    tally = "better than the best baseline 2 times, clearly worse 1 times and not distinguishable 1 times."
    assert tally in Reader(page_of(make_results(), tmp_path)).text


# ---- safe and self-contained ---------------------------------------------------------------------------------


def test_titles_are_escaped(tmp_path: Path) -> None:
    results = make_results()
    results["dataset"]["name"] = NASTY
    results["few_shot"]["models"][0]["name"] = NASTY
    results["training"]["curves"][0]["name"] = NASTY
    page = page_of(results, tmp_path)
    reader = Reader(page)
    assert "<script" not in page
    assert "script" not in reader.tags
    assert f"Palate on {NASTY}" in reader.text
    assert any(f"{NASTY}, items known 3" in (title.text or "") for title in drawings(page)[0].iter("title"))


def test_nothing_is_fetched(tmp_path: Path) -> None:
    page = page_of(make_results(), tmp_path)
    reader = Reader(page)
    fetching = {"src", "href", "srcset", "xlink:href", "data", "action", "poster"}
    assert {value for name, value in reader.attributes if name in fetching} == {"data:,"}
    assert not re.search(r"https?:|url\(|@import|@font-face", page)
    assert not {"script", "img", "iframe", "object", "embed"} & set(reader.tags)
    assert "default-src 'none'" in page


def test_text_has_enough_contrast_in_light_and_dark(tmp_path: Path) -> None:
    def luminance(colour: str) -> float:
        channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    page = page_of(make_results(), tmp_path)
    themes = re.findall(r":root \{(.*?)\}", page, flags=re.DOTALL)
    assert len(themes) == 2
    for theme in themes:
        colours = dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", theme))
        assert len(colours) == 14
        for ground in ("paper", "raised"):
            for name in colours.keys() - {"paper", "raised", "rule"}:
                dark, light = sorted([luminance(colours[ground]), luminance(colours[name])])
                assert (light + 0.05) / (dark + 0.05) >= 4.5, (name, ground)


# ---- drawings -------------------------------------------------------------------------------------------------


def test_drawings_are_valid_named_and_inside_their_box(tmp_path: Path) -> None:
    page = page_of(make_results(), tmp_path)
    reader = Reader(page)
    ids = [value for name, value in reader.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    for name, value in reader.attributes:
        if name == "aria-labelledby":
            assert set(value.split()) <= set(ids)
    svgs = drawings(page)
    assert len(svgs) == 2 + 2 + 1 + 4  # each protocol wide and narrow, a curve, four comparisons
    for svg in svgs:
        width, height = map(float, svg.attrib["viewBox"].split()[2:])
        if svg.get("role") == "img":
            assert svg.findtext("title")
            assert svg.findtext("desc")
        for element in svg.iter():
            for x_name, y_name in (("x", "y"), ("cx", "cy")):
                if x_name in element.attrib:
                    assert 0 <= float(element.attrib[x_name]) <= width
                    assert 0 <= float(element.attrib[y_name]) <= height
            for x, y in re.findall(r"([-\d.]+),([-\d.]+)", element.get("d", "")):
                assert 0 <= float(x) <= width
                assert 0 <= float(y) <= height


def test_the_curve_is_drawn_to_scale(tmp_path: Path) -> None:
    results = make_results()
    points = [{"n": n, "mean": m, "low": None, "high": None} for n, m in ((0, 0.0), (1, 0.1), (3, 0.4))]
    results["few_shot"]["models"][3]["metrics"]["ndcg@10"] = points
    svg = drawings(page_of(results, tmp_path))[0]
    circles = line_group(svg, "Palate").findall("circle")
    xs, ys = ([float(c.attrib[key]) for c in circles] for key in ("cx", "cy"))
    assert (ys[0] - ys[2]) / (ys[0] - ys[1]) == pytest.approx(4, rel=0.01)
    # log(1 + n): from 0 to 1 is as far as from 1 to 3.
    assert xs[1] - xs[0] == pytest.approx(xs[2] - xs[1], abs=0.11)
    texts = {text.text: float(text.attrib["y"]) for text in svg.iter("text") if text.get("text-anchor") == "end"}
    assert texts["0.0"] == pytest.approx(ys[0])
    assert texts["0.4"] == pytest.approx(ys[2])


def test_palate_is_drawn_last_with_its_band_around_it(tmp_path: Path) -> None:
    svg = drawings(page_of(make_results(), tmp_path))[0]
    lines = [group for group in svg.iter("g") if "line" in group.attrib["class"]]
    assert [line.findtext("text") for line in lines] == ["item-kNN", "Popularity", "Backbone alone", "Palate"]
    band = next(path for path in lines[-1].iter("path") if path.get("class") == "band").attrib["d"]
    ys = [float(y) for _, y in re.findall(r"([-\d.]+),([-\d.]+)", band)]
    circles = [float(c.attrib["cy"]) for c in lines[-1].findall("circle")]
    for upper, middle, lower in zip(ys[:4], circles, reversed(ys[4:]), strict=True):
        assert upper < middle < lower


def test_labels_of_many_equal_lines_do_not_collide(tmp_path: Path) -> None:
    results = make_results()
    first = results["few_shot"]["models"][0]
    results["few_shot"]["models"] += [{**copy.deepcopy(first), "name": f"copy {i}"} for i in range(40)]
    for svg in drawings(page_of(results, tmp_path))[:2]:
        ys = sorted(float(g.find("text").attrib["y"]) for g in svg.iter("g") if g.find("circle") is not None)  # type: ignore[union-attr]
        assert len(ys) == 44
        assert min(b - a for a, b in pairwise(ys)) > 15.8


def test_baselines_differ_by_stroke(tmp_path: Path) -> None:
    results = make_results()
    first = results["few_shot"]["models"][0]
    results["few_shot"]["models"] += [{**copy.deepcopy(first), "name": f"copy {i}"} for i in range(18)]
    svg = drawings(page_of(results, tmp_path))[0]
    styles = [g.attrib["class"] for g in svg.iter("g") if "baseline" in g.attrib["class"]]
    assert len(styles) == len(set(styles)) == 20


def test_a_missing_mean_leaves_a_gap(tmp_path: Path) -> None:
    results = make_results()
    results["few_shot"]["models"][3]["metrics"]["ndcg@10"][1].update(mean=None, low=None, high=None)
    page = page_of(results, tmp_path)
    group = line_group(drawings(page)[0], "Palate")
    assert len(group.findall("circle")) == 3
    assert [p.attrib["d"].count("M") for p in group.findall("path")] == [2, 2, 1]  # band, line, leader
    assert any(row[0] == "Palate" and row[2] == "–" for row in Reader(page).rows)


def test_one_model_one_point(tmp_path: Path) -> None:
    results = make_results()
    model = results["few_shot"]["models"][3]
    model["metrics"] = {"ndcg@10": model["metrics"]["ndcg@10"][2:3]}
    results["few_shot"].update(models=[model], support_sizes=[3], comparisons=[])
    results["training"]["curves"][0]["points"] = [[1, 7.0]]
    page = page_of(results, tmp_path)
    svgs = drawings(page)
    assert len(line_group(svgs[0], "Palate").findall("circle")) == 1
    assert len(line_group(svgs[-1], "7").findall("circle")) == 1
    assert "<td><b>" not in page  # nothing to be best among


def test_nothing_measured_draws_nothing(tmp_path: Path) -> None:
    results = make_results()
    results["few_shot"].update(models=[], comparisons=[])
    results["training"]["curves"][0]["points"] = []
    assert len(drawings(page_of(results, tmp_path))) == 2  # those of the cold items


# ---- missing parts and refusals -------------------------------------------------------------------------------


@pytest.mark.parametrize("part", sorted(make_results()))
@pytest.mark.parametrize("how", ["null", "absent"])
def test_a_part_may_be_missing(part: str, how: str, tmp_path: Path) -> None:
    results = make_results()
    results[part] = None
    if how == "absent":
        del results[part]
    text = Reader(page_of(results, tmp_path)).text
    gone = {"cold_items": "Products nobody", "customers": "Example customers", "environment": "Seed"}
    assert gone.get(part, "None") not in text
    assert "None" not in text


def test_no_results_at_all_is_still_a_page(tmp_path: Path) -> None:
    assert "no few-shot figures" in Reader(page_of({}, tmp_path)).text


def test_null_leaves_are_dashes(tmp_path: Path) -> None:
    results = make_results()
    results["dataset"].update(first=None, last=None, num_items=None)
    results["customers"][0].update(profile=None, label=None, support=[])
    results["environment"].update(seed=None, seconds=None, peak_memory_mb=None, torch=None)
    results["training"]["stages"][0].update(seconds=None, detail=None)
    text = Reader(page_of(results, tmp_path)).text
    for shown in ("First –", "Items –", "Seed –", "Whole run –", "PyTorch –", "clean – –", "Nothing yet"):
        assert shown in text
    assert "None" not in text


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_figure_that_is_no_number_is_refused_and_the_old_page_stays(bad: float, tmp_path: Path) -> None:
    old = page_of(make_results(), tmp_path)
    results = make_results()
    results["few_shot"]["models"][1]["metrics"]["mrr@10"][2]["mean"] = bad
    with pytest.raises(DataError, match=r"results\.few_shot\.models\[1\]\.metrics\.mrr@10\[2\]\.mean"):
        write_report(results, tmp_path / "report.html")
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == old
    with pytest.raises(DataError, match="mrr@10"):
        few_shot_table(results)


@pytest.mark.parametrize(
    ("part", "key"),
    [("few_shot", "comparisons"), ("few_shot", "models"), ("environment", "torch"), ("split", "cut")],
)
def test_a_missing_entry_is_refused_by_name(part: str, key: str, tmp_path: Path) -> None:
    results = make_results()
    del results[part][key]
    with pytest.raises(DataError, match=key) as caught:
        write_report(results, tmp_path / "report.html")
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_writing_leaves_one_file_and_makes_its_folder(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "report.html"
    write_report(make_results(), path)
    assert [entry.name for entry in path.parent.iterdir()] == ["report.html"]


def test_a_path_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "file" / "report.html", tmp_path / "folder"):
        with pytest.raises(DataError, match="cannot be written") as caught:
            write_report(make_results(), path)
        assert "\n" not in str(caught.value)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["file", "folder"]


def test_same_results_same_bytes(tmp_path: Path) -> None:
    assert page_of(make_results(), tmp_path) == page_of(make_results(), tmp_path)


# ---- the terminal ---------------------------------------------------------------------------------------------


def rendered(results: dict[str, Any], part: str = "few_shot", **console: Any) -> str:
    out = io.StringIO()
    Console(file=out, width=80, **console).print(few_shot_table(results, part))
    return out.getvalue()


def small_results() -> dict[str, Any]:
    def model(name: str, kind: str, a: float, b: float | None) -> dict[str, Any]:
        points = [
            {"n": 0, "mean": a, "low": a - 0.01, "high": a + 0.03},
            {"n": 3, "mean": b, "low": None, "high": None},
        ]
        return {"name": name, "kind": kind, "config": None, "metrics": {"ndcg@10": points}}

    return {
        "few_shot": {
            "metric": "ndcg@10",
            "support_sizes": [0, 3],
            "num_users": 1234,
            "models": [
                model("Palate", "palate", 0.05, 0.25),
                model("[red]kNN", "baseline", 0.1, 0.2),
                model("ALS", "baseline", 0.1, None),
            ],
            "comparisons": [
                comparison(0, -0.05, -0.06, -0.04, -0.5, True),
                comparison(3, 0.05, 0.04, 0.06, 0.25, True),
            ],
        }
    }


def test_terminal_table_by_hand() -> None:
    expected = """
        NDCG@10 by items known, 1,234 customers
        model            0        3
        Palate    ▼0.0500  ▲0.2500
                  ±0.0200
        [red]kNN   0.1000   0.2000
                  ±0.0200
        ALS        0.1000        –
                  ±0.0200
        bold: best; ▲ ▼: Palate clearly above, below the best baseline
    """
    # The lines of a narrow table's title break as they fit; the words and figures must stand in this order.
    assert rendered(small_results()).replace("─", "").split() == expected.split()


def test_terminal_table_has_the_best_in_bold_and_only_it() -> None:
    styled = rendered(small_results(), force_terminal=True, color_system="standard")
    bold = re.findall(r"\x1b\[1m([^\x1b]*\d\.\d+)", styled)
    assert [text.strip() for text in bold] == ["▲0.2500", "0.1000", "0.1000"]


def test_terminal_table_fits_eighty_columns() -> None:
    results = make_results()
    results["few_shot"]["support_sizes"] = [0, 1, 2, 3, 5, 10, 20]
    text = rendered(results)
    assert "…" not in text
    assert "Backbone alone" in text


def test_terminal_table_of_the_cold_items_and_of_nothing() -> None:
    assert "0.9191" in rendered(make_results(), "cold_items")
    with pytest.raises(DataError, match="cold_items is missing"):
        few_shot_table(small_results(), "cold_items")
    broken = small_results()
    del broken["few_shot"]["num_users"]
    with pytest.raises(DataError, match="num_users"):
        few_shot_table(broken)


def test_metric_names() -> None:
    names = [metric_name(metric) for metric in ("ndcg@10", "hit_rate@5", "map@1", "coverage@10", "rmse")]
    assert names == ["NDCG@10", "Hit rate@5", "MAP@1", "Coverage@10", "Rmse"]


# ---- geometry -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("targets", "placed"),
    [
        ([], []),
        ([50.0], [50.0]),
        ([10.0, 30.0], [10.0, 30.0]),  # apart already: untouched
        ([50.0, 50.0], [48.0, 52.0]),  # a pair parts evenly
        ([51.0, 50.0, 90.0], [52.5, 48.5, 90.0]),  # the order of the lines stays
        ([0.0, 0.0], [0.0, 4.0]),  # held by the top edge
        ([100.0, 99.0, 100.0], [96.0, 92.0, 100.0]),  # and by the bottom one
    ],
)
def test_spread_by_hand(targets: list[float], placed: list[float]) -> None:
    assert _spread(targets, 4.0, 0.0, 100.0) == pytest.approx(placed)


@given(st.lists(st.floats(0, 100), min_size=1, max_size=12), st.randoms(use_true_random=False))
def test_spread_is_apart_in_bounds_and_moves_least(targets: list[float], random: Any) -> None:
    gap = 8.0
    placed = _spread(targets, gap, 0.0, 100.0)
    order = sorted(range(len(targets)), key=lambda index: targets[index])
    assert all(placed[b] - placed[a] >= gap - 1e-9 for a, b in pairwise(order))
    assert all(-1e-9 <= y <= 100 + 1e-9 for y in placed)
    # No other admissible placement (same order) is nearer to the targets: the optimum of a convex problem.
    cost = sum((y - t) ** 2 for y, t in zip(placed, targets, strict=True))
    free = 100 - gap * (len(targets) - 1)
    for _ in range(20):
        offsets = sorted(random.uniform(0, free) for _ in targets)
        other = {index: offsets[rank] + rank * gap for rank, index in enumerate(order)}
        share = random.choice([1.0, 0.1, 0.001])
        mixed = [placed[i] + share * (other[i] - placed[i]) for i in range(len(targets))]
        assert sum((y - t) ** 2 for y, t in zip(mixed, targets, strict=True)) >= cost - 1e-6


def test_ticks_by_hand() -> None:
    assert _ticks(0.0, 0.13) == pytest.approx([0, 0.05, 0.1, 0.15])
    assert _ticks(1, 2, 5, True) == [1, 2]
    assert _ticks(1, 12, 5, True) == [0, 5, 10, 15]
    assert _ticks(7.0, 7.0)[0] < 7 < _ticks(7.0, 7.0)[-1]
    assert _ticks(0.0, 0.0)[0] == 0


@given(st.floats(-1e4, 1e4), st.floats(1e-3, 1e4))
def test_ticks_are_few_even_and_cover(low: float, width: float) -> None:
    ticks = _ticks(low, low + width)
    steps = [b - a for a, b in pairwise(ticks)]
    assert 2 <= len(ticks) <= 8
    assert max(steps) == pytest.approx(min(steps), rel=1e-6)
    assert ticks[0] <= low + 1e-6 * width
    assert ticks[-1] >= low + width * (1 - 1e-6)
