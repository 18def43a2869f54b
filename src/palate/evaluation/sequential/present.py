"""The figures of the sequential benchmark for people: a table for the terminal and a page of docs."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from palate.evaluation.sequential.cold_users import SIZES

Results = Mapping[str, Any]
_METRICS = {"hr@10": "HR@10", "ndcg@10": "NDCG@10"}
_OTHERS = {"hr@5": "HR@5", "ndcg@5": "NDCG@5", "hr@20": "HR@20", "ndcg@20": "NDCG@20"}

_INTRODUCTION = """\
# Next-item models on public data

<!-- Written by `palate bench sequence --page`; do not edit. -->

Leave one out: the last item of a person is the test, the second last the validation, all before it trains. Every item
of the catalogue is ranked; an item that ties with the target counts as above it. A model is shown what the person did
before the target (in the test, the validation item too), and nothing of the future: not when the target happens, and no
other person's last two items. Settings are chosen on the validation items. The headline takes the items that a person
already had out of the list; *kept* leaves them in. Intervals are 95 % over people (percentile bootstrap), each person a
mean over seeds.

**Published figures stand in columns of their own.** They come from papers, or from others' runs of their code, each
with its own preprocessing (ties in time, rare items, seen items removed or kept), often as the best of many epochs;
the third digit is not comparable. Models that are also given the time at which the target happens answer an easier
question and have a column apart.

The data is for research and no part of the package. Put it in one folder and pass it with `--data`:
`movielens-1m/sequences.parquet` (`user_id`, `position`, `item_id`, `rating`: ML-1M from
[GroupLens](https://grouplens.org/datasets/movielens/1m/) in SASRec's order, films with fewer than 5 ratings left out),
`movielens-1m/items.parquet` (`item_id`, `title`, `genres`, `plot`), `movielens-1m/users.parquet` (`user_id`, `gender`,
`age`, `occupation`), and in `amazon-2014/` the `.txt` and `_item2attributes.json` files of
[S3-Rec](https://github.com/RUCAIBox/CIKM2020-S3Rec) for Beauty, Sports_and_Outdoors and Toys_and_Games.
"""


def sequential_table(results: Results) -> Table:
    """Models down; HR@10 and NDCG@10 ± half-width of the interval, seen items removed and kept, across."""
    table = Table(title=_caption(results), box=box.SIMPLE_HEAD)
    table.title_justify = "left"
    table.add_column("model")
    for heading in (*_METRICS.values(), *(f"{name}, kept" for name in _METRICS.values())):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in results["methods"]:
        cells = [
            f"{cell['mean']:.4f} ±{(cell['high'] - cell['low']) / 2:.4f}"
            for part in ("removed", "kept")
            for cell in (row["metrics"][part][metric] for metric in _METRICS)
        ]
        table.add_row(Text(row["name"], "bold" if row["kind"] == "palate" else ""), *cells)
    return table


def cold_table(results: Results, part: str, title: str) -> Table:
    """Models on cold people by support size, and the gain over the backbone alone; `part` is next or later."""
    rows = results[part]["sizes"]
    gain = results[part]["gain"]
    table = Table(
        title=f"Cold people, nDCG@10 of {title}",
        caption=""
        if gain is None
        else f"mean gain {gain['mean']:+.1%}, 95 % interval {gain['low']:+.1%} to {gain['high']:+.1%}",
    )
    table.add_column("after events")
    for row in rows:
        table.add_column(str(row["n"]), justify="right")
    for name, values in results["models"].items():
        table.add_row(name, *(f"{values[part][SIZES.index(row['n'])]:.4f}" for row in rows))
    table.add_row("gain", *("" if row["relative"] is None else f"{row['relative']['mean']:+.1%}" for row in rows))
    table.add_row("interval", *(f"{row['low']:+.4f} {row['high']:+.4f}" for row in rows))
    table.add_row("people", *(f"{row['people']:,}" for row in rows))
    return table


def sequential_page(runs: Sequence[Results]) -> str:
    """A page of docs in Markdown with every run's tables, published figures beside them."""
    lines = [_INTRODUCTION]
    for results in runs:
        lines += [f"## {results['title']}", "", f"`palate bench sequence --dataset {results['dataset']}`", ""]
        lines += [_made(results), ""]
        lines += _headline(results)
        lines += [_comparison(found) for found in results["comparisons"]]
        lines += [""] * bool(results["comparisons"])
        lines += ["Further cut-offs, and seen items kept in the list:", ""]
        lines += _further(results)
    return "\n".join(lines).rstrip() + "\n"


def _headline(results: Results) -> list[str]:
    best = {metric: max(row["metrics"]["removed"][metric]["mean"] for row in results["methods"]) for metric in _METRICS}
    published = results["published"]
    timed = any(row["target_time"] for row in published.values())
    heads = [*_METRICS.values(), *(f"{name}, published" for name in _METRICS.values())]
    heads += [f"{name}, published, target's time given" for name in _METRICS.values()] if timed else []
    rows = []
    for row in results["methods"]:
        cells = [_measured(row["metrics"]["removed"][metric], best[metric]) for metric in _METRICS]
        rows.append([row["name"], *cells, *[""] * (len(heads) - 2)])
    for name, row in published.items():
        figures = [f"{row['hr']:.3f}", f"{row['ndcg']:.3f}"]
        before = 4 if row["target_time"] else 2
        rows.append([name, *[""] * before, *figures, *[""] * (len(heads) - before - 2)])
    return _markdown(["model", *heads], rows)


def _further(results: Results) -> list[str]:
    heads = [*_OTHERS.values(), *(f"{name}, kept" for name in _METRICS.values()), "chosen", "CPU s a seed"]
    rows = []
    for row in results["methods"]:
        parts = row["metrics"]
        cells = [f"{parts['removed'][metric]['mean']:.4f}" for metric in _OTHERS]
        cells += [f"{parts['kept'][metric]['mean']:.4f}" for metric in _METRICS]
        chosen = ", ".join(f"{name}: {value}" for name, value in row["settings"][0].items())
        rows.append([row["name"], *cells, chosen, f"{row['cpu_seconds']:,.0f}"])
    return _markdown(["model", *heads], rows)


def _caption(results: Results) -> str:
    return f"{results['title']}: {results['num_judged']:,} people, {results['num_items']:,} items"


def _made(results: Results) -> str:
    seeds = max(len(row["seeds"]) for row in results["methods"])
    return (
        f"{results['num_events']:,} events of {results['num_people']:,} people, of whom {results['num_judged']:,} are "
        f"judged, on {results['num_items']:,} items. Measured {results['date']} with Palate {results['version']} on "
        f"one thread; up to {seeds} seed{'s' * (seeds > 1)} a model."
    )


def _comparison(found: Results) -> str:
    """A line that says whether a model is told apart from the best baseline."""
    verdict = ("better" if found["mean"] > 0 else "worse") if found["significant"] else "not told apart"
    return (
        f"- {found['model']} against the best baseline ({found['baseline']}), NDCG@10: {found['mean']:+.4f} "
        f"({found['low']:+.4f} to {found['high']:+.4f}), {verdict}"
    )


def _measured(cell: Mapping[str, Any], best: float) -> str:
    mean = f"**{cell['mean']:.4f}**" if cell["mean"] == best else f"{cell['mean']:.4f}"
    return f"{mean} ({cell['low']:.4f}–{cell['high']:.4f})"


def _markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [columns, ["---", *["---:"] * (len(columns) - 1)], *rows]
    return [f"| {' | '.join(line)} |" for line in lines] + [""]
