"""A judged model: where each person's target ended up, and how it was made; one JSON file a model and seed.

Trainings take hours and are run one by one; what is kept of each is enough to compare any two of them person by person.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from palate.errors import DataError
from palate.evaluation.sequential.leave_one_out import Held, Ranks

_FORMAT = "palate-judged-2"


@dataclass(frozen=True, eq=False)
class Judged:
    """One model, trained with one seed and judged on the test items of one data set."""

    dataset: str
    model: str
    kind: str
    """As in the table of models: "baseline" or "palate"."""
    seed: int
    settings: Mapping[str, Any]
    """What was chosen on validation, as plain values."""
    cpu_seconds: float
    """Of fitting, choosing and judging, on one thread."""
    date: str
    version: str
    """Of Palate."""
    test: str
    """Fingerprint of the people and targets that were judged; only equal ones can be compared."""
    ranks: Ranks


def fingerprint(held: Held) -> str:
    """Eight bytes in hexadecimal that stand for the people, their inputs and their targets."""
    digest = hashlib.sha256()
    for column in (held.users, held.inputs.offsets, held.inputs.items, held.targets):
        digest.update(column.astype(column.dtype.newbyteorder("<")).tobytes())
    return digest.hexdigest()[:16]


def write_judged(judged: Judged, folder: Path) -> Path:
    """Write `MODEL-SEED.json` into the folder of the data set; a file of that name is replaced.

    Raises:
        DataError: the folder cannot be written.
    """
    page = {name: value for name, value in vars(judged).items() if name != "ranks"}
    page |= {"format": _FORMAT, "ranks": {name: ranks.tolist() for name, ranks in judged.ranks._asdict().items()}}
    name = re.sub(r"[^a-z0-9]+", "-", judged.model.lower()).strip("-")
    path = folder / judged.dataset / f"{name}-{judged.seed}.json"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(page), encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror}); free space or choose another folder") from None
    return path


def read_judged(folder: Path, dataset: str) -> list[Judged]:
    """Read all that was written for a data set, by model and seed; none where the folder has nothing of it.

    Raises:
        DataError: a file is damaged, or was judged on another test part than the others.
    """
    found: list[Judged] = []
    for path in sorted((folder / dataset).glob("*.json")):
        try:
            page = json.loads(path.read_text(encoding="utf-8"))
            if page.pop("format") != _FORMAT:
                raise ValueError("another format")
            ranks = page.pop("ranks")
            judged = Judged(**page, ranks=Ranks(*(np.array(ranks[name], np.int64) for name in Ranks._fields)))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            reason = str(error).splitlines()[0]
            raise DataError(f"{path}: is no judged model ({reason}); remove it and judge the model again") from None
        if found and judged.test != found[0].test:
            raise DataError(f"{path}: was judged on other test items than {found[0].model}; judge one of them again")
        found.append(judged)
    return sorted(found, key=lambda row: (row.model, row.seed))
