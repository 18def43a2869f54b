"""All that processes of a home do, in random sequences and side by side, against a model of what must be there.

    python soak/everything.py --model MODEL --sqlite 500 --postgres 100

A sequence begins with a fresh home that is served. Events come in all the time, in batches and one by one, while people
are erased, models are trained, promoted and rolled back, `palate live`, `off-policy`, `retrain` and `backup` come and
go, backups are restored into another home or this one, a second service is started, and the service or a helper is
stopped or killed at a random moment. Of the sequences on SQLite a third run over a disk that takes notes: there a kill
of the service is a power cut under all processes, and what was not synced is kept, lost or torn.

After each end of the service, and in each backup: nothing acknowledged is missing, nothing is there twice, nothing of
who was erased is there, the database is sound, the pointer names a model that was promoted. After the last, stopped
service no byte of an erased id is in the database's files.

Each sequence is drawn from its own seed and can be run alone: --first N --sqlite 1. Threads and processes run freely,
so the same seed draws the same acts but not the same interleaving.
"""

import argparse
import os
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import psycopg
from sequence import Sequence, Template
from sqlalchemy import make_url
from store_kills import postgres

from palate.recommend import Recommender
from palate.service.home import Home
from palate.service.opening import prepare, register
from palate.store import Store


def make_template(folder: Path, store: str | None, model: Recommender) -> Template:
    """Make the home that the others are copied from."""
    home = Home(folder)
    home.make()
    url = store or home.database
    with closing(Store.open(url)) as opened:
        key = prepare(opened, home, lambda: model, None)
        assert key is not None, "the template's store is not empty"
        params = {**model.params, "popularity": model.params["popularity"] + 1}
        register(opened, home, replace(model, params=params, model_id="f" * 16), {})
    return Template(home, url, key, tuple(model.vocabulary.ids))


def soak(
    template: Template, make_store: Callable[[], str] | None, number: int, first: int, length: int
) -> Counter[str]:
    """Run sequences one after the other; stop at the first fault."""
    counts: Counter[str] = Counter()
    begun = time.monotonic()
    for seed in range(first, first + number):
        store = None if make_store is None else make_store()
        with tempfile.TemporaryDirectory(prefix="palate-everything-") as scratch:
            sequence = Sequence(template, store, Path(scratch), seed, power=store is None and seed % 3 == 2)
            try:
                sequence.run(length)
            except BaseException as error:
                done = f"{seed - first + 1} sequences, {time.monotonic() - begun:.0f} s"
                sys.exit(f"fault after {done}, seed {seed}, acts {sequence.did}: {type(error).__name__}: {error}")
            counts += sequence.counts
        if (seed - first + 1) % 25 == 0:
            print(f"{seed - first + 1} sequences, {time.monotonic() - begun:.0f} s", flush=True)
    return counts


class Databases:
    """Databases of a PostgreSQL server, one at a time beside the template."""

    def __init__(self, url: str) -> None:
        self._url = make_url(url)
        self._last: str | None = None

    def make(self, template: str | None) -> str:
        """Make a database, empty or a copy, in the place of the last copy; return its URL."""
        name = f"soak_{uuid.uuid4().hex[:12]}"
        with psycopg.connect(self._url.render_as_string(hide_password=False), autocommit=True) as connection:
            if self._last is not None:
                connection.execute(f"DROP DATABASE {self._last} WITH (FORCE)".encode())
            copied = "" if template is None else f" TEMPLATE {make_url(template).database}"
            connection.execute(f"CREATE DATABASE {name}{copied}".encode())
        self._last = None if template is None else name
        return self._url.set(database=name).render_as_string(hide_password=False)


def main() -> None:
    """Both databases."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="folder of a small model")
    parser.add_argument("--sqlite", type=int, default=500, metavar="SEQUENCES")
    parser.add_argument("--postgres", type=int, default=100, metavar="SEQUENCES")
    parser.add_argument("--url", help="a PostgreSQL server, any database of it; sequences make their own")
    parser.add_argument("--first", type=int, default=0, metavar="SEED")
    parser.add_argument("--length", type=int, default=10, metavar="ACTS")
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    model = Recommender.load(options.model)
    with tempfile.TemporaryDirectory(prefix="palate-everything-") as scratch:
        if options.sqlite:
            template = make_template(Path(scratch) / "sqlite", None, model)
            counts = soak(template, None, options.sqlite, options.first, options.length)
            print(f"SQLite: {options.sqlite} sequences, none at fault; {dict(counts)}", flush=True)
        if options.postgres:
            with postgres(options.url) as url:
                databases = Databases(url)
                template = make_template(Path(scratch) / "postgres", databases.make(None), model)
                make = lambda: databases.make(template.store)  # noqa: E731
                counts = soak(template, make, options.postgres, options.first, options.length)
                print(f"PostgreSQL: {options.postgres} sequences, none at fault; {dict(counts)}", flush=True)


if __name__ == "__main__":
    main()
