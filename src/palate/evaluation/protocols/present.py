"""The figures of a protocol for people: a table for the terminal, a page of docs, and the HTML report."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from palate.evaluation.report import metric_name, write_report

Results = Mapping[str, Any]
_KNOWN = {"best_known": "best known elsewhere", "reach": "to reach"}


def protocol_tables(results: Results) -> Iterator[Table]:
    """One table a part: methods down, metrics across, mean ± half-width of the 95 % interval over people."""
    for part, figures in results["parts"].items():
        table = Table(title=_caption(results, part, figures), box=box.SIMPLE_HEAD)
        table.title_justify = "left"
        table.add_column("method")
        for metric in results["metrics"]:
            table.add_column(_heading(results, metric), justify="right", no_wrap=True)
        for row in _rows(results, figures):
            cells = [Text("–") if cell is None else _terminal_cell(cell) for cell in row["cells"]]
            table.add_row(Text(row["name"], "bold" if row["kind"] == "palate" else ""), *cells)
        yield table


def protocol_page(runs: Sequence[Results]) -> str:
    """A page of docs in Markdown with every run's tables and curves."""
    lines = [
        "# Public few-shot protocols",
        "",
        "<!-- Written by `make protocols DATA=…`; do not edit. -->",
        "",
        "Every figure is a mean over tasks with its 95 % interval over people (percentile bootstrap, people resampled",
        "whole). All methods of a table are judged on the same tasks, and none sees the ratings that are asked for.",
        "Settings and stopping were chosen on people held out of the training people. Learners share one small network",
        "on the same item features and are trained on known items. Rounded baselines show how much of an absolute",
        "error is only a matter of whole stars.",
        "",
        "Palate is the recommender: trained once a draw by `palate.train` on the training people's events, the items'",
        "content and the profiles, saved, loaded, and asked by `predict`; choices and refusals are ratings of two",
        "levels.",
        "",
        "The data sets are not part of the package and are for research only. Put them in one folder and pass it with",
        "`--data`: `movielens-1m/` (`items.parquet`, `users.parquet`, and the ratings in MeLU's states as",
        "`melu_states.parquet`), `movielens-100k/` (`items.parquet`, `users.parquet`, and RecBole-MetaRec's tasks as",
        "`metarec_tasks.json.gz`) and `lastfm-20/tasks.json` (TaNP's tasks).",
        "",
    ]
    for results in runs:
        lines += [f"## {results['title']}", "", f"`palate bench meta --protocol {results['protocol']}`", ""]
        lines += [results["about"], "", _made(results), ""]
        for part, figures in results["parts"].items():
            lines += [f"### {_caption(results, part, figures)}", ""]
            lines += _markdown(
                ["method", *(_heading(results, metric) for metric in results["metrics"])],
                [
                    [row["name"], *("–" if cell is None else _markdown_cell(cell) for cell in row["cells"])]
                    for row in _rows(results, figures)
                ],
            )
            lines += [_comparison(results, metric, found) for metric, found in figures["comparisons"].items()] + [""]
        for label, reason in results["left_out"].items():
            lines += [f"Left out: {label} ({reason})", ""]
        curves = results["curves"]
        lines += [f"### {metric_name(curves['metric'])} by support size, {curves['part']}", ""]
        lines += ["A task with fewer support events than a column says counts there with all that it has.", ""]
        lines += _markdown(
            ["method", *map(str, curves["sizes"])],
            [[label, *(f"{point['mean']:.3f}" for point in points)] for label, points in curves["methods"].items()],
        )
    return "\n".join(lines).rstrip() + "\n"


def write_protocol_report(results: Results, path: Path) -> None:
    """The HTML report: the tables, and the learning curve of each learner.

    Raises:
        DataError: the page cannot be written.
    """
    curves = results["curves"]
    part = results["parts"][curves["part"]]
    kinds = {row["name"]: row["kind"] for row in part["methods"]}
    models = [
        {
            "name": label,
            "kind": "palate" if kinds[label] == "palate" else "baseline",
            "config": {},
            "metrics": {curves["metric"]: [{"n": n, **p} for n, p in zip(curves["sizes"], points, strict=True)]},
        }
        for label, points in curves["methods"].items()
    ]
    nothing = {"mean": None, "low": None, "high": None, "best": False}
    tables = [
        {
            "caption": _caption(results, name, figures),
            "columns": [_heading(results, metric) for metric in results["metrics"]],
            "rows": [{**row, "cells": [cell or nothing for cell in row["cells"]]} for row in _rows(results, figures)],
        }
        for name, figures in results["parts"].items()
    ]
    page = {
        "headline": _headline(results),
        "protocol": {"title": results["title"], "about": results["about"], "made": _made(results), "tables": tables},
        "few_shot": {
            "metric": curves["metric"],
            "support_sizes": curves["sizes"],
            "num_users": part["num_people"],
            "person": "person",
            "people": "people",
            "lower_is_better": results["metrics"][curves["metric"]]["lower_is_better"],
            "intro": "How each learner gains from events: the same tasks with their first support events alone.",
            "models": models,
            "comparisons": [],
        },
    }
    write_report(page, path)


def _rows(results: Results, figures: Results) -> list[dict[str, Any]]:
    """Baselines, learners, Palate, then the figures to compare with; the best measured mean of a metric is marked."""
    best = {}
    for metric, about in results["metrics"].items():
        means = [row["metrics"][metric]["mean"] for row in figures["methods"]]
        best[metric] = min(means) if about["lower_is_better"] else max(means)
    rows = [
        {
            "name": row["name"],
            "kind": row["kind"],
            "cells": [
                {**row["metrics"][metric], "best": row["metrics"][metric]["mean"] == best[metric]}
                for metric in results["metrics"]
            ],
        }
        for row in figures["methods"]
    ]
    for key, name in _KNOWN.items():
        cells = [
            {"mean": figures["known"][metric][key], "low": None, "high": None, "best": False}
            if metric in figures["known"]
            else None
            for metric in results["metrics"]
        ]
        if any(cells):
            rows.append({"name": name, "kind": "known", "cells": cells})
    return rows


def _caption(results: Results, part: str, figures: Results) -> str:
    num_draws = figures["num_draws"]
    draws = f"{num_draws} draws" if num_draws > 1 else "one draw"
    return f"{results['title']}: {part}, {figures['num_tasks']:,} tasks of {figures['num_people']:,} people, {draws}"


def _heading(results: Results, metric: str) -> str:
    arrow = "↓" if results["metrics"][metric]["lower_is_better"] else "↑"
    name = "MAE" if metric == "mae" else metric_name(metric)
    return f"{name} {arrow}"


def _made(results: Results) -> str:
    seeds = ", ".join(map(str, results["seeds"]))
    commit = f", commit {results['commit']}" if results["commit"] else ""
    minutes = sum(results["seconds"].values()) / 60
    return (
        f"Measured {results['date']} with Palate {results['version']}{commit}; seeds {seeds}; {minutes:.0f} minutes "
        "on one thread in all."
    )


def _comparison(results: Results, metric: str, found: Results) -> str:
    """A line that says whether Palate's own model is told apart from the best baseline."""
    lower = results["metrics"][metric]["lower_is_better"]
    better = (found["difference"] < 0) == lower and found["difference"] != 0
    verdict = ("better" if better else "worse") if found["significant"] else "not told apart"
    return (
        f"- {found['palate']} against the best baseline ({found['baseline']}), {_heading(results, metric)[:-2]}: "
        f"{found['difference']:+.4f} ({found['low']:+.4f} to {found['high']:+.4f}), {verdict}"
    )


def _headline(results: Results) -> str:
    """One sentence on the main metric of the first part, good or bad."""
    part = results["curves"]["part"]
    found, metric = results["parts"][part]["comparisons"][results["main"]], _heading(results, results["main"])[:-2]
    interval = f"95\u00a0% interval {found['low']:+.3f} to {found['high']:+.3f}"
    other = f"the best baseline ({found['baseline']})"
    if not found["significant"]:
        return f"On {part}, {found['palate']} and {other} cannot be told apart ({interval})."
    better = (found["difference"] < 0) == results["metrics"][results["main"]]["lower_is_better"]
    return (
        f"On {part}, {found['palate']} is {'better' if better else 'worse'} than {other}: "
        f"{metric} differs by {found['difference']:+.3f} ({interval})."
    )


def _terminal_cell(cell: Mapping[str, Any]) -> Text:
    text = Text(f"{cell['mean']:.4f}", "bold" if cell["best"] else "")
    if cell["low"] is not None:
        text.append(f" ±{(cell['high'] - cell['low']) / 2:.4f}", "not bold dim")
    return text


def _markdown_cell(cell: Mapping[str, Any]) -> str:
    mean = f"**{cell['mean']:.4f}**" if cell["best"] else f"{cell['mean']:.4f}"
    return mean if cell["low"] is None else f"{mean} ({cell['low']:.4f}–{cell['high']:.4f})"


def _markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [columns, ["---", *["---:"] * (len(columns) - 1)], *rows]
    return [f"| {' | '.join(line)} |" for line in lines] + [""]
