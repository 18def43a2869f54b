"""The results of a run as one self-contained HTML page, and as a table for the terminal.

The page needs nothing but itself: styles and drawings are inline and nothing is fetched. This file works out
what is said and where things are drawn; `templates/report.html.j2` holds the wording and the look.
"""

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, Undefined, UndefinedError
from rich import box
from rich.table import Table
from rich.text import Text

from palate.errors import DataError

HEADLINE_SIZE = 3
"""The support size of the headline, fixed beforehand so that the best-looking one cannot be picked."""
LABEL_GAP = 16.0
"""Least distance between the labels of two lines, in pixels."""
LETTER = 7.2
"""Width of a letter of a label, in pixels: generous, as the reader's font is not known."""
MISSING = "–"
MARKS = {"above": "▲", "below": "▼", "": ""}

Results = Mapping[str, Any]
Number = float | int
"""A whole number read from JSON is an int."""


def write_report(results: Results, path: str | Path) -> None:
    """Write the page at `path`, whole or not at all: an earlier page stays until the new one is complete.

    Raises:
        DataError: a figure is NaN or infinite, an entry is missing, or the file cannot be written.
    """
    path = Path(path)
    _check_finite(results, "results")
    parts = ("dataset", "split", "cleaning", "training", "customers", "environment", "protocol")
    try:
        template = _environment().get_template("report.html.j2")
        page = template.render(
            {part: results.get(part) for part in parts},
            headline=results.get("headline") or headline(results),
            few_shot=_part_view(results.get("few_shot"), "few-shot"),
            cold_items=_part_view(results.get("cold_items"), "cold-items"),
            warm=_part_view(results.get("warm"), "warm"),
            quality=(results.get("training") or {}).get("quality"),
            curves=_curve_views((results.get("training") or {}).get("curves") or []),
        )
    except (KeyError, UndefinedError) as error:
        raise _incomplete(error) from error
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(page, encoding="utf-8")
        os.replace(partial, path)
    except OSError as error:
        raise DataError(
            f"{path}: the report cannot be written ({error.strerror}); choose a folder you can write to"
        ) from error
    finally:
        if partial.is_file():
            partial.unlink()


def few_shot_table(results: Results, part: str = "few_shot") -> Table:
    """Lay out the main metric for the terminal: models down, support sizes across, mean over ± half-width.

    The best mean of a column is bold; ▲ or ▼ marks where Palate is significantly above or below the best
    baseline. `part` is "few_shot", "cold_items" or "warm".

    Raises:
        DataError: the part is missing or incomplete, or a figure is NaN or infinite.
    """
    figures = results.get(part)
    if figures is None:
        raise DataError(f"results: {part} is missing; expected its figures; run the evaluation first")
    _check_finite(figures, f"results.{part}")
    try:
        rows = _metric_rows(figures, figures["metric"])
        known = f"items known{figures.get('since', '')}"
        title = f"{metric_name(figures['metric'])} by {known}, {_count(figures['num_users'])} customers"
        table = Table(title=title, caption="bold: best; ▲ ▼: Palate clearly above, below the best baseline")
        table.box, table.padding, table.pad_edge = box.SIMPLE_HEAD, (0, 0, 0, 0), False
        table.title_justify = table.caption_justify = "left"
        table.add_column("model", min_width=12)
        for size in figures["support_sizes"]:
            table.add_column(str(size), justify="right", no_wrap=True)
        for row in rows:
            table.add_row(Text(row["name"]), *map(_cell, row["cells"]))
    except KeyError as error:
        raise _incomplete(error) from error
    return table


def headline(results: Results) -> str:
    """Say in one sentence how Palate compares with the best baseline of the few-shot test, good or bad."""
    figures = results.get("few_shot")
    return "This run measured no few-shot figures." if figures is None else _verdict(figures)


def metric_name(metric: str) -> str:
    """Spell a metric for people: "ndcg@10" is "NDCG@10", "hit_rate@10" is "Hit rate@10"."""
    stem, at, cutoff = metric.partition("@")
    name = stem.upper() if stem in ("ndcg", "mrr", "map") else stem.replace("_", " ").capitalize()
    return name + at + cutoff


# ---- what is said ------------------------------------------------------------------------------------------


def _verdict(figures: Results) -> str:
    metric = metric_name(figures["metric"])
    compared = figures["comparisons"] or []
    if not compared:
        return f"There is no baseline to compare Palate’s {metric} with."
    chosen = min(compared, key=lambda row: abs(row["n"] - HEADLINE_SIZE))
    baseline = f"the best baseline ({chosen['best_baseline'] or 'unnamed'})"
    interval = f"95\u00a0% interval {_signed(chosen['low'])} to {_signed(chosen['high'])}"
    by = f"{metric} differs by {_signed(chosen['difference'])}"
    known = _known(chosen["n"], figures.get("person", "customer"), figures.get("since", ""))
    if not chosen["significant"]:
        return f"{known}, Palate and {baseline} cannot be told apart: {by} ({interval})."
    better = "better" if chosen["difference"] > 0 else "worse"
    if chosen["relative"] is None:
        return f"{known}, Palate ranks {better} than {baseline}: {by} ({interval})."
    return f"{known}, Palate ranks {_percent(abs(chosen['relative']))} {better} than {baseline}."


def _known(size: int, person: str, since: str) -> str:
    if size == 0:
        return f"Before a {person}’s first item{since}"
    return f"After a {person}’s first {'item' if size == 1 else f'{size} items'}{since}"


def _tally(figures: Results) -> str:
    """Sum up all support sizes, so that the one in the headline does not stand alone."""
    compared = figures["comparisons"] or []
    better = sum(bool(row["significant"]) and row["difference"] > 0 for row in compared)
    worse = sum(bool(row["significant"]) and row["difference"] < 0 for row in compared)
    unclear = len(compared) - better - worse
    return (
        f"Across the {len(compared)} points of the curve, Palate is clearly better than the best baseline {better}"
        f" times, clearly worse {worse} times and not distinguishable {unclear} times."
    )


def _part_view(figures: Results | None, name: str) -> dict[str, Any] | None:
    """Prepare one protocol (few-shot, or cold items) for the template."""
    if figures is None:
        return None
    main = figures["metric"]
    metrics = dict.fromkeys([main, *(metric for model in figures["models"] for metric in model["metrics"])])
    return {
        "name": name,
        "metric": main,
        "sizes": figures["support_sizes"],
        "num_users": figures["num_users"],
        "person": figures.get("person", "customer"),
        "people": figures.get("people", "customers"),
        "better": "lower" if figures.get("lower_is_better") else "higher",
        "intro": figures.get("intro"),
        "verdict": _verdict(figures),
        "tally": _tally(figures) if figures["comparisons"] else "",
        "tables": [{"metric": metric, "rows": _metric_rows(figures, metric)} for metric in metrics],
        "charts": _few_shot_charts(figures),
        "comparisons": _forest(figures["comparisons"] or []),
    }


def _metric_rows(figures: Results, metric: str) -> list[dict[str, Any]]:
    """One row a model, one cell a support size, in the order of `models`; a figure not measured is None."""
    by_size = [{p["n"]: p for p in model["metrics"].get(metric) or []} for model in figures["models"]]
    missing = {"mean": None, "low": None, "high": None}
    marks = {}
    if metric == figures["metric"]:
        marks = {
            row["n"]: "above" if row["difference"] > 0 else "below"
            for row in figures["comparisons"] or []
            if row["significant"]
        }
    rows: list[dict[str, Any]] = [
        {"name": model["name"], "kind": model["kind"], "config": model["config"] or {}, "cells": []}
        for model in figures["models"]
    ]
    for size in figures["support_sizes"]:
        points = [points.get(size, missing) for points in by_size]
        means = [point["mean"] for point in points if point["mean"] is not None]
        best = max(means) if len(means) > 1 else None  # alone, the only model is not "the best"
        for row, point in zip(rows, points, strict=True):
            mark = marks.get(size, "") if row["kind"] == "palate" and point["mean"] is not None else ""
            is_best = best is not None and point["mean"] == best
            row["cells"].append({**point, "best": is_best, "mark": mark})
    return rows


def _cell(cell: Mapping[str, Any]) -> Text:
    """Two lines of a terminal cell: the mean after its mark, then the half-width of its interval."""
    text = Text(MARKS[cell["mark"]] + _figure(cell["mean"]), "bold" if cell["best"] else "")
    if cell["low"] is not None and cell["high"] is not None:
        text.append(f"\n±{(cell['high'] - cell['low']) / 2:.4f}", "not bold dim")
    return text


# ---- where it is drawn -------------------------------------------------------------------------------------


class Point(NamedTuple):
    """A measured value in the units of the data; `tip` is its text on hover."""

    x: float
    mean: Number | None
    low: Number | None
    high: Number | None
    tip: str


class Series(NamedTuple):
    """One line of a chart: its end label, its CSS classes and its points, left to right."""

    label: str
    style: str
    points: list[Point]


def _draw(
    series: Sequence[Series], x_ticks: Sequence[tuple[float, str]], size: tuple[int, int], label_room: float
) -> dict[str, Any] | None:
    """Lay out a line chart in pixels; None if nothing was measured.

    Labels stand right of the plot in the order of the lines' ends, moved apart where they would collide.
    """
    series = [line for line in series if any(point.mean is not None for point in line.points)]
    if not series:
        return None
    width, height = size
    room = min(label_room, LETTER * max(len(line.label) for line in series) + 26)
    left, right, top, bottom = 44.0, width - room, 14.0, max(height - 46.0, 14 + LABEL_GAP * len(series))
    values = [v for line in series for p in line.points for v in (p.mean, p.low, p.high) if v is not None]
    # A share of a whole is read against zero; a loss, far from it, against its own range.
    floor = 0.0 if 0 <= min(values) < 0.5 * max(values) else min(values)
    y_ticks = _ticks(floor, max(values))
    decimals = max(0, -math.floor(math.log10(y_ticks[1] - y_ticks[0]) + 1e-9))
    positions = [x for x, _ in x_ticks] + [p.x for line in series for p in line.points]
    to_x = _scale(min(positions), max(positions), left + 8, right - 8)
    to_y = _scale(y_ticks[0], y_ticks[-1], bottom, top)

    ends = [[p for p in line.points if p.mean is not None][-1] for line in series]
    label_ys = _spread([to_y(end.mean or 0.0) for end in ends], LABEL_GAP, top, bottom)
    letters = int((room - 24) / LETTER)
    lines = []
    for line, end, label_y in zip(series, ends, label_ys, strict=True):
        end_y = to_y(end.mean or 0.0)
        bands = []
        for run in _runs(line.points, "low", "high"):
            upper = [(to_x(p.x), to_y(p.high or 0.0)) for p in run]
            bands.append(_path(upper + [(to_x(p.x), to_y(p.low or 0.0)) for p in reversed(run)]) + "Z")
        runs = [[(to_x(p.x), to_y(p.mean or 0.0), p.tip) for p in run] for run in _runs(line.points, "mean")]
        lines.append(
            {
                "label": line.label if len(line.label) <= letters else line.label[: letters - 1] + "…",
                "style": line.style,
                "path": "".join(_path([(x, y) for x, y, _ in run]) for run in runs),
                "band": "".join(bands),
                "marks": [(_px(x), _px(y), tip) for run in runs for x, y, tip in run],
                "leader": _path([(to_x(end.x) + 5, end_y), (right + 2, end_y), (right + 16, label_y)]),
                "label_y": _px(label_y),
            }
        )
    return {
        "width": width,
        "height": _px(bottom + 46),
        "left": _px(left),
        "label_x": _px(right + 20),
        "right": _px(right),
        "bottom": _px(bottom),
        "middle": _px((left + right) / 2),
        "x_ticks": _without_collisions([(to_x(x), text) for x, text in x_ticks]),
        "y_ticks": [(_px(to_y(y)), f"{y:.{decimals}f}") for y in y_ticks],
        "lines": lines,
    }


def _few_shot_charts(figures: Results) -> dict[str, Any]:
    """Draw the main metric twice: for a desktop's width and for a phone's, at the same size of letters."""
    metric, sizes = figures["metric"], figures["support_sizes"]
    series = []
    num_baselines = 0
    for model in figures["models"]:
        points = []
        for p in sorted(model["metrics"].get(metric) or [], key=lambda p: p["n"]):
            interval = "" if p["low"] is None else f" ({_figure(p['low'])} to {_figure(p['high'])})"
            tip = f"{model['name']}, items known {p['n']}: {_figure(p['mean'])}{interval}"
            # log(1 + N): the first items, where the curve bends, get most of the width.
            points.append(Point(math.log1p(p["n"]), p["mean"], p["low"], p["high"], tip))
        style = model["kind"]
        if style == "baseline":
            style = f"baseline hue{num_baselines % 5} dash{num_baselines % 4}"  # 20 before a pair repeats
            num_baselines += 1
        series.append(Series(model["name"], style, points))
    series.sort(key=lambda line: ("palate" in line.style, "ablation" in line.style))  # Palate is drawn last, on top
    ticks = [(math.log1p(size), str(size)) for size in sizes]
    return {"wide": _draw(series, ticks, (960, 460), 230.0), "narrow": _draw(series, ticks, (340, 420), 130.0)}


def _curve_views(curves: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    views = []
    for curve in curves:
        points = [
            Point(float(x), None if y is None else float(y), None, None, f"{x:g}: {_short(y)}")
            for x, y in curve["points"]
        ]
        last = next((_short(p.mean) for p in reversed(points) if p.mean is not None), "")
        xs = [p.x for p in points]
        ticks = _ticks(min(xs), max(xs), 5, all(x.is_integer() for x in xs)) if xs else []
        x_ticks = [(x, f"{x:.6g}") for x in ticks if min(xs) <= x <= max(xs)]
        views.append(
            {**curve, "last": last, "chart": _draw([Series(last, "palate", points)], x_ticks, (340, 210), 90.0)}
        )
    return views


def _forest(compared: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Add to each comparison the place of its interval on a common axis, 0 to 100, with the place of zero."""
    ends = [v for row in compared for v in (row["low"], row["difference"], row["high"]) if v is not None] + [0.0]
    to_x = _scale(min(ends), max(ends), 4.0, 96.0)
    return [
        {
            **row,
            "zero": _px(to_x(0.0)),
            "at": None if row["difference"] is None else _px(to_x(row["difference"])),
            "span": None
            if row["low"] is None or row["high"] is None
            else (_px(to_x(row["low"])), _px(to_x(row["high"]))),
        }
        for row in compared
    ]


def _spread(targets: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Move labels as little as possible (least squares) until neighbours are `gap` apart inside low..high.

    With rank · gap taken off, "apart" is "in order": isotonic regression, by pooling adjacent violators.
    """
    order = sorted(range(len(targets)), key=lambda index: targets[index])
    pools: list[tuple[float, int]] = []  # the sum and the number of the targets that move as one
    for rank, index in enumerate(order):
        total, count = targets[index] - rank * gap, 1
        while pools and pools[-1][0] / pools[-1][1] >= total / count:
            pooled, number = pools.pop()
            total, count = total + pooled, count + number
        pools.append((total, count))
    highest = max(low, high - gap * (len(targets) - 1))
    starts = [min(max(total / count, low), highest) for total, count in pools for _ in range(count)]
    placed = {index: starts[rank] + rank * gap for rank, index in enumerate(order)}
    return [placed[index] for index in range(len(targets))]


def _runs(points: Sequence[Point], *fields: str) -> Iterator[list[Point]]:
    """Split points at those where a field is missing, so that no line is drawn over a gap."""
    for measured, run in groupby(points, lambda p: all(getattr(p, field) is not None for field in fields)):
        if measured:
            yield list(run)


def _ticks(low: Number, high: Number, most: int = 6, whole: bool = False) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten) from at or below `low` to at or above `high`."""
    if low == high:
        low, high = (low - 0.5, high + 0.5) if low else (0.0, 1.0)
    rough = max((high - low) / most, 1.0 if whole else 0.0)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    return [i * step for i in range(math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9) + 1)]


def _scale(low: Number, high: Number, start: float, stop: float) -> Callable[[Number], float]:
    """Map low..high to the pixels start..stop; an empty range goes to the middle."""
    if low == high:
        return lambda value: (start + stop) / 2
    return lambda value: start + (value - low) / (high - low) * (stop - start)


def _without_collisions(ticks: Sequence[tuple[float, str]]) -> list[tuple[str, str]]:
    """Blank the texts that would run into the one before."""
    kept, free_from = [], -math.inf
    for x, text in ticks:
        half = len(text) * LETTER / 2
        fits = x - half >= free_from
        kept.append((_px(x), text if fits else ""))
        free_from = x + half + 4 if fits else free_from
    return kept


def _path(points: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{_px(x)},{_px(y)}" for x, y in points)


def _px(value: float) -> str:
    return f"{value:.1f}"


# ---- how it is spelt ---------------------------------------------------------------------------------------


def _figure(value: Number | None) -> str:
    return MISSING if value is None else f"{value:.4f}".replace("-", "−")


def _signed(value: Number | None) -> str:
    return MISSING if value is None else f"{value:+.4f}".replace("-", "−")


def _short(value: Number | None) -> str:
    return MISSING if value is None else f"{value:.4g}".replace("-", "−")


def _percent(share: Number | None) -> str:
    if share is None:
        return MISSING
    return f"{100 * share:.{0 if abs(share) >= 0.1 else 1}f}\u00a0%".replace("-", "−")


def _count(value: Number | None) -> str:
    return MISSING if value is None else f"{value:,.0f}"


def _moment(value: str | None) -> str:
    """An ISO time to the minute, as a person writes it."""
    return MISSING if value is None else value[:16].replace("T", " ")


class _Missing(Undefined):
    """Fails where an entry is looked up, before a filter could take it for a value."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._fail_with_undefined_error()


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("palate", "evaluation/templates"),
        autoescape=True,
        undefined=_Missing,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    spellings = (_figure, _signed, _short, _percent, _count, _moment, metric_name)
    environment.filters |= {spelling.__name__.lstrip("_"): spelling for spelling in spellings}
    environment.globals["marks"] = MARKS
    return environment


def _check_finite(value: object, where: str) -> None:
    """Refuse a NaN or infinity anywhere: a report that shows one would hide a broken run."""
    if isinstance(value, float) and not math.isfinite(value):
        raise DataError(f"{where}: the figure is {value}; expected a finite number or null; repeat the evaluation")
    if isinstance(value, Mapping):
        for key, entry in value.items():
            _check_finite(entry, f"{where}.{key}")
    elif isinstance(value, list | tuple):
        for index, entry in enumerate(value):
            _check_finite(entry, f"{where}[{index}]")


def _incomplete(error: Exception) -> DataError:
    return DataError(f"results: an entry is missing ({error}); expected the full results of an evaluation; repeat it")
