"""Run a protocol: fit every method on every draw, judge them on the same tasks, and put the figures together."""

import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int64

from palate.errors import ConfigError, DataError, NumericalError
from palate.evaluation.protocols.base import Bench, Draw, Method, Metric, Predict, Predictions, ProtocolEntry
from palate.evaluation.protocols.baselines import baseline_methods
from palate.evaluation.protocols.learners import learner_methods
from palate.evaluation.protocols.table import find_protocol
from palate.meta import LEARNERS
from palate.meta.quality import MIN_USERS
from palate.ratings.tasks import Task
from palate.significance import Interval, clustered_interval
from palate.threads import one_thread

Table = dict[str, dict[str, dict[str, list[Float[np.ndarray, "task"]]]]]
"""part → method → metric → one array a draw."""


def run_protocol(
    name: str,
    folder: Path,
    *,
    num_draws: int | None = None,
    learners: Sequence[str] | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Run one protocol and return its figures as plain values.

    Args:
        name: a line of the table of protocols.
        folder: where the data sets are.
        num_draws: fewer draws than a full run has.
        learners: names in `palate.meta.LEARNERS`; by default all of them.
        say: takes lines about the progress.

    Raises:
        ConfigError: an unknown protocol or learner, or no draw.
        DataError: the data is not there or not what the protocol needs.
        NumericalError: a method diverged, or is shown to be below the constant predictor; names it.
    """
    entry = find_protocol(name)
    num_draws = entry.draws if num_draws is None else num_draws
    if num_draws < 1:
        raise ConfigError(f"the number of draws is {num_draws}; expected at least 1")
    chosen = list(LEARNERS) if learners is None else list(learners)
    for learner in chosen:
        if learner not in LEARNERS:
            raise ConfigError(f"learner is {learner!r}; choose from: {', '.join(LEARNERS)}")
    with one_thread():
        return _run(name, entry, folder, num_draws, chosen, say)


def _run(
    name: str,
    entry: ProtocolEntry,
    folder: Path,
    num_draws: int,
    learners: Sequence[str],
    say: Callable[[str], None],
) -> dict[str, Any]:
    setting, draws = entry.open(folder, num_draws)
    trained = learner_methods(entry.objective)
    methods: dict[str, tuple[str, Method]] = {
        **{label: ("baseline", method) for label, method in baseline_methods(rounded="mae" in entry.metrics).items()},
        **{label: ("learner", trained[label]) for label in learners},
        "Palate": ("palate", entry.palate),
    }
    table: Table = {part: {label: {} for label in methods} for part in draws[0].parts}
    curves: dict[str, dict[int, list[Float[np.ndarray, "task"]]]] = {label: {} for label in methods}
    seconds = dict.fromkeys(["item features", *methods], 0.0)
    left_out: dict[str, str] = {}
    for draw in draws:
        # A method is given no task before it is fitted, and no answer ever.
        bench = Bench(setting, draw._replace(parts={}), entry.features, lambda line: say(f"seed {draw.seed}: {line}"))  # noqa: B023
        for label, (kind, method) in methods.items():
            if kind == "learner":
                _ = bench.features  # not part of any one learner's time
            if label in left_out:
                continue
            started = time.perf_counter()
            bench.say(label)
            try:
                predict = method(bench)
            except DataError as error:
                if kind == "palate":
                    raise
                left_out[label] = str(error)
                bench.say(f"{label} left out: {error}")
                continue
            for part, tasks in draw.parts.items():
                for metric, values in _judge(predict, part, tasks, entry.metrics, label, entry.given_is_known).items():
                    table[part][label].setdefault(metric, []).append(values)
            if kind != "baseline":
                _extend_curve(curves[label], predict, draw, entry)
            seconds[label] += time.perf_counter() - started
    methods = {label: method for label, method in methods.items() if label not in left_out}
    people = {part: np.concatenate([[task.user for task in draw.parts[part]] for draw in draws]) for part in table}
    trained_labels = [label for label, (kind, _) in methods.items() if kind != "baseline"]
    for part, figures in table.items():
        _refuse_divergence(figures, people[part], trained_labels, entry, part)
    return {
        "protocol": name,
        "title": entry.title,
        "about": entry.about,
        "date": datetime.now(UTC).date().isoformat(),
        "commit": _commit(),
        "version": version("palate"),
        "seeds": [draw.seed for draw in draws],
        "metrics": {metric: {"lower_is_better": metric in entry.lower_is_better} for metric in entry.metrics},
        "main": entry.main,
        "seconds": {label: round(value, 1) for label, value in seconds.items() if label not in left_out},
        "left_out": left_out,
        "parts": {
            part: _summary(figures, methods, people[part], entry, part, len(draws)) for part, figures in table.items()
        },
        "curves": _curve_figures(curves, people, entry, len(draws)),
    }


def _judge(
    predict: Predict,
    part: str,
    tasks: Sequence[Task],
    metrics: Mapping[str, Metric],
    label: str,
    given_is_known: bool,
) -> dict[str, Float[np.ndarray, "task"]]:
    """Every metric of every task; the method never sees the query's values."""
    hidden = [task._replace(query_values=np.full(len(task.query_values), np.nan)) for task in tasks]
    predictions = predict(part, hidden)
    if given_is_known:
        predictions = [_recall(said, task) for said, task in zip(predictions, hidden, strict=True)]
    try:
        return {
            name: np.array([metric(said, task.query_values) for said, task in zip(predictions, tasks, strict=True)])
            for name, metric in metrics.items()
        }
    except NumericalError as error:
        raise NumericalError(f"{label}: {part}: {error}") from None


def _recall(said: Predictions, task: Task) -> Predictions:
    """Answer with the given rating where a support item is asked for."""
    given = dict(zip(task.support_items.tolist(), task.support_values.tolist(), strict=True))
    asked = task.query_items.tolist()
    rating, score = (
        np.array([given.get(item, value) for item, value in zip(asked, values, strict=True)]) for values in said
    )
    return Predictions(rating, score)


def _extend_curve(
    curve: dict[int, list[Float[np.ndarray, "task"]]], predict: Predict, draw: Draw, entry: ProtocolEntry
) -> None:
    """Quality by support size on the first part: each task with its first events alone."""
    part, tasks = next(iter(draw.parts.items()))
    for size in entry.curve_sizes:
        short = [task.with_support(size) for task in tasks]
        main = {entry.main: entry.metrics[entry.main]}
        values = _judge(predict, part, short, main, f"{size} events", entry.given_is_known)
        curve.setdefault(size, []).append(values[entry.main])


def _refuse_divergence(
    figures: Mapping[str, Mapping[str, Sequence[np.ndarray]]],
    people: Int64[np.ndarray, "task"],
    labels: Iterable[str],
    entry: ProtocolEntry,
    part: str,
) -> None:
    """A trained method that is shown to be below the constant predictor has not learned, whatever its loss says."""
    sign = -1 if entry.main in entry.lower_is_better else 1
    constant = np.concatenate(figures["constant"][entry.main])
    for label in labels:
        values = np.concatenate(figures[label][entry.main])
        found = clustered_interval(sign * (values - constant), people)
        if len(np.unique(people)) >= MIN_USERS and found.high < 0:
            raise NumericalError(
                f"{label}: {entry.main} on {part} is {values.mean():.4f} after its last step, worse than a constant "
                f"predictor ({constant.mean():.4f}; 95 % interval of how much better it is {found.low:+.4f} to "
                f"{found.high:+.4f}); it has not learned"
            )


def _summary(
    figures: Mapping[str, Mapping[str, Sequence[np.ndarray]]],
    methods: Mapping[str, tuple[str, Method]],
    people: Int64[np.ndarray, "task"],
    entry: ProtocolEntry,
    part: str,
    num_draws: int,
) -> dict[str, Any]:
    rows = []
    for label, (kind, _) in methods.items():
        cells = {}
        for metric, draws in figures[label].items():
            interval = clustered_interval(np.concatenate(draws), people)
            by_draw = [round(float(values.mean()), 4) for values in draws]
            cells[metric] = {**_plain(interval), "by_draw": by_draw}
        rows.append({"name": label, "kind": kind, "metrics": cells})
    known = {
        metric: {"best_known": reach.best_known, "reach": reach.reach}
        for metric, reach in entry.known.get(part, {}).items()
    }
    return {
        "num_tasks": len(people),
        "num_people": len(np.unique(people)),
        "num_draws": num_draws,
        "known": known,
        "methods": rows,
        "comparisons": {metric: _compare(figures, rows, people, metric, entry) for metric in entry.metrics},
    }


def _compare(
    figures: Mapping[str, Mapping[str, Sequence[np.ndarray]]],
    rows: Sequence[Mapping[str, Any]],
    people: Int64[np.ndarray, "task"],
    metric: str,
    entry: ProtocolEntry,
) -> dict[str, Any]:
    """Palate against the best baseline, on the same people."""
    sign = -1 if metric in entry.lower_is_better else 1

    def best(kind: str) -> str:
        of_kind = [row for row in rows if row["kind"] == kind]
        return str(max(of_kind, key=lambda row: sign * row["metrics"][metric]["mean"])["name"])

    ours = next(str(row["name"]) for row in rows if row["kind"] == "palate")
    baseline = best("baseline")
    one, other = (np.concatenate(figures[label][metric]) for label in (ours, baseline))
    found = clustered_interval(one - other, people)
    return {"palate": ours, "baseline": baseline, **_named(found), "significant": found.low > 0 or found.high < 0}


def _curve_figures(
    curves: Mapping[str, Mapping[int, Sequence[np.ndarray]]],
    people: Mapping[str, Int64[np.ndarray, "task"]],
    entry: ProtocolEntry,
    num_draws: int,
) -> dict[str, Any]:
    part, tasks = next(iter(people.items()))
    return {
        "part": part,
        "metric": entry.main,
        "sizes": list(entry.curve_sizes),
        "methods": {
            label: [_plain(clustered_interval(np.concatenate(draws), tasks)) for draws in points.values()]
            for label, points in curves.items()
            if points and all(len(draws) == num_draws for draws in points.values())
        },
    }


def _named(interval: Interval) -> dict[str, float]:
    plain = _plain(interval)
    return {"difference": plain["mean"], "low": plain["low"], "high": plain["high"]}


def _plain(interval: Interval) -> dict[str, float]:
    return {name: round(value, 5) for name, value in interval._asdict().items()}


def _commit() -> str | None:
    """The commit of the working tree that the package runs from, "+" where files differ; None outside one."""
    with suppress(OSError, subprocess.CalledProcessError):
        here = Path(__file__).parent
        told = [
            subprocess.run(["git", *command], cwd=here, capture_output=True, text=True, check=True).stdout.strip()
            for command in (["rev-parse", "--short", "HEAD"], ["status", "--porcelain", "--untracked-files=no", "."])
        ]
        return told[0] + ("+" if told[1] else "")
    return None
