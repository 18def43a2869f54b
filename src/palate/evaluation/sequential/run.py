"""Run the sequential benchmark on a data set: fit each model, judge it on the test items, compare with baselines."""

import multiprocessing
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64

from palate.errors import ConfigError, DataError, NumericalError
from palate.evaluation.sequential.data import SequenceData, open_sequences
from palate.evaluation.sequential.judged import Judged, fingerprint, read_judged, write_judged
from palate.evaluation.sequential.leave_one_out import Split, figures, leave_one_out, rank_targets
from palate.evaluation.sequential.table import DATASETS, MODELS, Bench, ModelEntry, find_models
from palate.significance import bootstrap_interval, paired_difference
from palate.threads import one_thread

MAIN = "ndcg@10"
"""The metric of the comparisons."""
PARTS = ("removed", "kept")
"""Whether the items of the input are in the list, as in `Ranks`."""
People = Mapping[str, Mapping[str, Float64[np.ndarray, "judged"]]]
"""part → metric → each person's value, a mean over seeds."""


def run_sequential(
    name: str,
    folder: Path,
    out: Path,
    *,
    models: Sequence[str] | None = None,
    num_seeds: int = 1,
    workers: int = 1,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Run models on one data set; return the figures of all models that `out` holds, from earlier runs too.

    Args:
        name: a name in `SEQUENCE_DATA`.
        folder: where the data sets are.
        out: takes a file for each model and seed; one of the same name is replaced.
        models: names in `MODELS`; by default all of them. With none (an empty list) earlier runs are put together.
        num_seeds: how often a model that depends on chance is trained.
        workers: processes side by side, a model and seed each, one thread each; a script that asks for more than one
            must be guarded by `if __name__ == "__main__"`.
        say: takes lines about the progress; with several workers, one when each is done.

    Raises:
        ConfigError: an unknown data set or model, no seed, or nothing to put together.
        DataError: the data is not there or not what it should be, or `out` holds what was judged on other data.
        NumericalError: a model scored NaN; names it.
    """
    chosen = find_models(models)
    if num_seeds < 1:
        raise ConfigError(f"the number of seeds is {num_seeds}; expected at least 1")
    jobs = [(label, seed) for label, entry in chosen.items() for seed in range(num_seeds if entry.by_chance else 1)]
    data = open_sequences(name, folder)
    test = fingerprint(leave_one_out(data.log).test)
    stays = [row for row in read_judged(out, name) if not any(_is_replaced(row, *job) for job in jobs)]
    _refuse_other_data(stays, test, out / name, folder)
    if min(workers, len(jobs)) > 1:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(min(workers, len(jobs)), mp_context=context) as pool:
            futures = {pool.submit(_judge_job, name, folder, out, *job): job for job in jobs}
            for future in as_completed(futures):
                if future.exception() is not None:
                    pool.shutdown(wait=False, cancel_futures=True)
                future.result()
                say(f"{name}: {futures[future][0]}, seed {futures[future][1]}: done")
    else:
        for label, seed in jobs:
            say(f"{name}: {label}, seed {seed}")
            _judge_job(name, folder, out, label, seed, say)
    found = read_judged(out, name)
    if not found:
        raise ConfigError(f"models: none is named and {out / name} holds none; name at least one")
    _refuse_other_data(found, test, out / name, folder)
    return summarise(data, found)


def _is_replaced(judged: Judged, label: str, seed: int) -> bool:
    """Whether judging this model writes the file of `judged`, which may be a variant of it, anew."""
    return judged.seed == seed and (judged.model == label or judged.model.startswith(f"{label}, "))


def _refuse_other_data(found: Sequence[Judged], test: str, where: Path, folder: Path) -> None:
    if any(judged.test != test for judged in found):
        raise DataError(f"{where}: was judged on other data than {folder}; remove it or name another folder with --out")


def _judge_job(
    name: str, folder: Path, out: Path, label: str, seed: int, say: Callable[[str], None] = lambda line: None
) -> None:
    """Fit and judge one model with one seed, on one thread, and keep what came of it."""
    with one_thread():
        data = open_sequences(name, folder)
        split = leave_one_out(data.log)
        for judged in judge(label, find_models([label])[label], data, split, seed, say, out / "checkpoints" / name):
            write_judged(judged, out)


def judge(
    label: str,
    entry: ModelEntry,
    data: SequenceData,
    split: Split,
    seed: int,
    say: Callable[[str], None],
    folder: Path,
) -> list[Judged]:
    """Fit a model and rank the test items; it is given neither the test part nor the log that holds it.

    Its variants follow it. CPU seconds are those of the fit (of this process: what a resumed run spent before is not
    counted) and of the judging; a variant has those of the fit too.

    Raises:
        NumericalError: it scored NaN.
    """
    started = time.process_time()
    known = replace(data, log=split.training)
    fitted = entry.fit(
        Bench(known, split.validation, seed, lambda line: say(f"{data.name}: {label}: {line}"), folder / f"seed-{seed}")
    )
    spent = time.process_time() - started
    found = []
    for name, scorer in {
        label: fitted.scorer,
        **{f"{label}, {more}": s for more, s in fitted.variants.items()},
    }.items():
        started = time.process_time()
        try:
            ranks = rank_targets(scorer, split.test, data.num_items)
        except NumericalError as error:
            raise NumericalError(f"{name} on {data.name}: {error}") from None
        found.append(
            Judged(
                dataset=data.name,
                model=name,
                kind=entry.kind,
                seed=seed,
                settings=dict(fitted.settings),
                cpu_seconds=round(spent + time.process_time() - started, 1),
                date=datetime.now(UTC).date().isoformat(),
                version=version("palate"),
                test=fingerprint(split.test),
                ranks=ranks,
            )
        )
    return found


def summarise(data: SequenceData, found: Sequence[Judged]) -> dict[str, Any]:
    """Put the figures of judged models together, in the order of the table of models; others come last."""
    order = {label: place for place, label in enumerate(MODELS)}
    labels = sorted({row.model for row in found}, key=lambda label: (order.get(label, len(order)), label))
    people: dict[str, People] = {}
    kinds: dict[str, str] = {}
    rows = []
    for label in labels:
        seeds = [row for row in found if row.model == label]
        by_seed = [{part: figures(getattr(row.ranks, part)) for part in PARTS} for row in seeds]
        people[label] = _over_seeds(by_seed)
        kinds[label] = seeds[0].kind
        rows.append(
            {
                "name": label,
                "kind": seeds[0].kind,
                "seeds": [row.seed for row in seeds],
                "settings": [dict(row.settings) for row in seeds],
                "cpu_seconds": round(sum(row.cpu_seconds for row in seeds) / len(seeds), 1),
                "metrics": {part: _summary(part, by_seed, people[label]) for part in PARTS},
            }
        )
    return {
        "dataset": data.name,
        "title": DATASETS[data.name].title,
        "date": max(row.date for row in found),
        "version": max(found, key=lambda row: row.date).version,
        "num_people": data.log.num_users,
        "num_judged": len(found[0].ranks.removed),
        "num_items": data.num_items,
        "num_events": len(data.log),
        "methods": rows,
        "comparisons": _compare(kinds, people),
        "published": {label: row._asdict() for label, row in DATASETS[data.name].published.items()},
    }


def _over_seeds(found: Sequence[People]) -> People:
    """A person's mean over seeds: people are the unit of the intervals, and all have the same seeds."""
    return {
        part: {metric: np.mean([seed[part][metric] for seed in found], axis=0) for metric in metrics}
        for part, metrics in found[0].items()
    }


def _summary(part: str, found: Sequence[People], people: People) -> dict[str, Any]:
    cells = {}
    for metric, values in people[part].items():
        interval = bootstrap_interval(values)
        by_seed = [round(float(seed[part][metric].mean()), 5) for seed in found]
        cells[metric] = {**{name: round(value, 5) for name, value in interval._asdict().items()}, "by_seed": by_seed}
    return cells


def _compare(kinds: Mapping[str, str], people: Mapping[str, People]) -> list[dict[str, Any]]:
    """Each Palate model against the best baseline, on the same people, by `MAIN` with seen items removed."""
    means = {label: float(parts["removed"][MAIN].mean()) for label, parts in people.items()}
    baselines = [label for label, kind in kinds.items() if kind == "baseline"]
    if not baselines:
        return []
    best = max(baselines, key=lambda label: means[label])
    comparisons = []
    for label, kind in kinds.items():
        if kind != "baseline":
            found = paired_difference(people[label]["removed"][MAIN], people[best]["removed"][MAIN])
            bounds = {name: round(getattr(found, name), 5) for name in ("mean", "low", "high")}
            comparisons.append({"model": label, "baseline": best, **bounds, "significant": found.significant})
    return comparisons
