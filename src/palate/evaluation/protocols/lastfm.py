"""LastFM_20: the tasks that TaNP ships; 20 artists as support, the rest query, each artist listened to or sampled."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from palate.errors import DataError
from palate.evaluation.protocols.base import Draw, Setting
from palate.ratings.tasks import Task, ratings_of


def open_lastfm(folder: Path, num_draws: int) -> tuple[Setting, list[Draw]]:
    """The tasks are fixed, so draws differ by the seed of the models alone.

    The file numbers artists in the order of their first appearance, so that a person's own artists stand side by side:
    a leak, which nothing here may read. Rows are renumbered at random.
    """
    path = folder / "lastfm-20" / "tasks.json"
    try:
        tasks = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path}: not readable ({error}); the protocols read MovieLens and Last.fm from local files, as "
            "docs/protocols.md describes: pass their folder with --data"
        ) from None
    everyone = [task for part in tasks.values() for task in part]
    names = sorted({item for task in everyone for side in ("si", "qi") for item in task[side]}, key=int)
    row_of = dict(zip(names, np.random.default_rng(0).permutation(len(names)).tolist(), strict=True))
    people = {task["user"]: row for row, task in enumerate(everyone)}

    def read(task: Mapping[str, Any]) -> Task:
        support, query = (np.array([row_of[item] for item in task[side]], np.int64) for side in ("si", "qi"))
        given, asked = (np.array(task[side], np.float64) for side in ("sy", "qy"))
        return Task(people[str(task["user"])], support, given, query, asked)

    train, validation = (ratings_of([read(task) for task in tasks[part]]) for part in ("training", "validation"))
    test = tuple(read(task) for task in tasks["testing"])
    setting = Setting(np.zeros((len(people), 0)), pl.DataFrame({"item_id": range(len(names))}), None)
    return setting, [Draw(seed, train, validation, {"user cold": test}) for seed in range(num_draws)]
