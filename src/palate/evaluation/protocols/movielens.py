"""The MovieLens protocols: MeLU's states, TaNP's and HIRE's on ML-1M, RecBole-MetaRec's on ML-100K."""

import gzip
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Bool, Float, Int64

from palate.errors import DataError
from palate.evaluation.protocols.base import Draw, Setting
from palate.evaluation.protocols.content import ContentSpec
from palate.ratings.tasks import Ratings, Task, by_user, join, ratings_of

_STATES = {
    "user cold": "user_cold_state",
    "item cold": "item_cold_state",
    "both cold": "user_and_item_cold_state",
}
_AGES = (1, 18, 25, 35, 45, 50, 56)
_NUM_OCCUPATIONS = 21
_ABOUT_FILMS = {
    "plot_length": pl.col("plot").fill_null("").str.len_chars().cast(pl.Float64).log1p(),
    "cast_size": (
        pl.col("cast").fill_null("").str.split(",").list.eval(pl.element().str.strip_chars() != "").list.sum()
    ).cast(pl.Float64),
    "has_other_title": pl.col("title").str.contains(r"\([^)]*\)\s*\(\d{4}\)").cast(pl.Float64),
    "no_director": (
        pl.col("director").fill_null("").str.strip_chars().str.to_lowercase().is_in(["", "n/a", "nan"])
    ).cast(pl.Float64),
    "is_sequel": (
        pl.col("title").str.replace(r"\(.*", "").str.contains(r"\b(II|III|IV|V|VI|2|3|4|5)\b").cast(pl.Float64)
    ),
    "num_genres": pl.col("genres").str.split("|").list.len().cast(pl.Float64),
}
"""Numbers about a film that tell how well known it is."""
_CONTEXT, _GIVEN, _PLACES = 32, 3, 5


def read_table(path: Path) -> pl.DataFrame:
    """Read a file of a data set.

    Raises:
        DataError: it is not there or not Parquet; says how to get the data.
    """
    try:
        return pl.read_parquet(path)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise DataError(
            f"{path}: not readable ({str(error).splitlines()[0]}); the protocols read MovieLens and Last.fm from local "
            "files, as docs/protocols.md describes: pass their folder with --data"
        ) from None


def open_melu(folder: Path, num_draws: int) -> tuple[Setting, list[Draw]]:
    """MeLU's states: train on the warm one; people with 13–100 ratings in a state, 10 random ones are the query."""
    setting, states = _ml1m(folder)
    draws = []
    for seed in range(num_draws):
        rng = np.random.default_rng(100 + seed)
        parts = {
            part: tuple(
                _task(user, items, values, rng.permutation(len(items)), len(items) - 10)
                for user, (items, values) in by_user(states[state]).items()
                if 13 <= len(items) <= 100
            )
            for part, state in _STATES.items()
        }
        draws.append(Draw(seed, states["warm"], None, parts))
    return setting, draws


def open_tanp(folder: Path, num_draws: int) -> tuple[Setting, list[Draw]]:
    """People 70/10/20 for training, validation and test; 20 support items, the rest (up to 200 in all) the query.

    As in TaNP's loader, test people have 30 to 200 ratings of items that training people have rated.
    """
    setting, states = _ml1m(folder)
    everything = join(states.values())
    draws = []
    for seed in range(num_draws):
        rng = np.random.default_rng(seed)
        users = rng.permutation(np.unique(everything.users))
        train, validation, test = (
            everything.of(part) for part in np.split(users, [int(0.7 * len(users)), int(0.8 * len(users))])
        )
        seen = np.isin(test.items, train.items)
        test = Ratings(*(column[seen] for column in test))
        tasks = tuple(
            _task(user, items, values, rng.permutation(len(items)), 20)
            for user, (items, values) in by_user(test).items()
            if 30 <= len(items) <= 200
        )
        draws.append(Draw(seed, train, validation, {"user cold": tasks}))
    return setting, draws


def open_hire(folder: Path, num_draws: int) -> tuple[Setting, list[Draw]]:
    """HIRE's contexts of 32 × 32 on MeLU's states: train on the warm one, judge the people of the user-cold one.

    A context has 32 random items of the target person (filled up with others), and the ratings of up to 31 further cold
    people who share many of them; 3 of the 32 columns are given.
    """
    setting, states = _ml1m(folder)
    cold = states[_STATES["user cold"]]
    people = by_user(cold)
    users = np.array(list(people))
    values = np.zeros((len(users), len(setting.items)))
    for row, (items, ratings) in enumerate(people.values()):
        values[row, items] = ratings
    draws = []
    for seed in range(num_draws):
        rng = np.random.default_rng([seed, 32])
        alone: list[Task] = []
        rest: list[Task] = []
        everything: list[Task] = []
        for row in range(len(users)):
            columns = _context_items(values[row] > 0, rng)
            overlap = (values[:, columns] > 0).sum(1)
            near = np.argsort(-overlap, kind="stable")[: 2 * _CONTEXT]
            others = [other for other in rng.permutation(near)[:_CONTEXT] if other != row][: _CONTEXT - 1]
            for place, other in enumerate([row, *others]):
                rated = values[other, columns]
                shown, asked = columns[:_GIVEN], columns[_GIVEN:]
                given, hidden = shown[rated[:_GIVEN] > 0], asked[rated[_GIVEN:] > 0]
                if len(hidden) < _PLACES:
                    continue
                task = Task(int(users[other]), given, values[other, given], hidden, values[other, hidden])
                known = np.concatenate([given, hidden])
                (alone if place == 0 else rest).append(task)
                everything.append(task._replace(query_items=known, query_values=values[other, known]))
        parts = {
            "target, query": tuple(alone),
            "all rows, query": tuple(alone + rest),
            "all rows, given and query": tuple(everything),
        }
        draws.append(Draw(seed, states["warm"], None, parts))
    return setting, draws


def _context_items(rated: Bool[np.ndarray, "item"], rng: np.random.Generator) -> Int64[np.ndarray, "column"]:
    """32 random items that the target has rated, in random order; where there are fewer, others fill up."""
    own = rng.permutation(np.flatnonzero(rated))[:_CONTEXT]
    others = rng.permutation(np.flatnonzero(~rated))[: _CONTEXT - len(own)]
    return rng.permutation(np.concatenate([own, others]))


def open_metarec(folder: Path, num_draws: int) -> tuple[Setting, list[Draw]]:
    """RecBole-MetaRec's own tasks on ML-100K, one split of the people a seed."""
    base = folder / "movielens-100k"
    items = read_table(base / "items.parquet").sort("item_id")
    users = read_table(base / "users.parquet").sort("user_id")
    try:
        with gzip.open(base / "metarec_tasks.json.gz", "rt") as file:
            splits = json.load(file)
    except (OSError, ValueError) as error:
        raise DataError(f"{base / 'metarec_tasks.json.gz'}: not readable ({error})") from None
    item_rows = {str(name): row for row, name in enumerate(items["item_id"])}
    user_rows = {str(name): row for row, name in enumerate(users["user_id"])}

    def read(task: Mapping[str, Any]) -> Task:
        support, query = (np.array([item_rows[i] for i in task[f"{part}_items"]]) for part in ("support", "query"))
        values = (np.array(task[f"{part}_ratings"], np.float64) for part in ("support", "query"))
        given, asked = values
        return Task(user_rows[task["user"]], support, given, query, asked)

    draws = []
    for name, split in list(splits.items())[:num_draws]:
        train, validation = (ratings_of([read(task) for task in split[part]]) for part in ("train", "valid"))
        draws.append(Draw(int(name), train, validation, {"user cold": tuple(read(task) for task in split["test"])}))
    year = pl.col("year").cast(pl.Int32, strict=False)
    content = ContentSpec({"genres": " "}, groups="genres", time="year", texts=("title",))
    setting = Setting(_ml100k_profiles(users), items.with_columns(year), content)
    return setting, draws


def _ml1m(folder: Path) -> tuple[Setting, dict[str, Ratings]]:
    base = folder / "movielens-1m"
    items = read_table(base / "items.parquet").sort("item_id")
    users = read_table(base / "users.parquet").sort("user_id")
    table = read_table(base / "melu_states.parquet")
    states = {
        str(name): Ratings(
            np.searchsorted(users["user_id"], state["user_id"]),
            np.searchsorted(items["item_id"], state["item_id"]),
            state["rating"].to_numpy().astype(np.float64),
        )
        for (name,), state in table.partition_by("state", as_dict=True).items()
    }
    year = pl.col("title").str.extract(r"\((\d{4})\)\s*$").cast(pl.Int32)
    profiles = np.concatenate(
        [
            (users["gender"] == "M").to_numpy()[:, None] - 0.5,
            users["age"].to_numpy()[:, None] == np.array(_AGES),
            users["occupation"].to_numpy()[:, None] == np.arange(_NUM_OCCUPATIONS),
        ],
        axis=1,
    )
    content = ContentSpec(
        {"director": ",", "cast": ",", "genres": "|"},
        groups="genres",
        time="year",
        # Cold films are later than all warm ones; what the last warm years say must not be extrapolated.
        time_range=(1949.0, 1995.0),
        texts=("title", "genres", "plot"),
        numbers=tuple(_ABOUT_FILMS),
    )
    return Setting(profiles, items.with_columns(year.alias("year"), **_ABOUT_FILMS), content), states


def _ml100k_profiles(users: pl.DataFrame) -> Float[np.ndarray, "user profile"]:
    age = users["age"].to_numpy().astype(np.float64)
    jobs = sorted(users["occupation"].unique())
    columns = [(age - 33) / 12, users["gender"] == "M", age < 22, age < 30, age > 45]
    columns += [users["occupation"] == job for job in jobs]
    return np.stack([np.asarray(column, np.float64) for column in columns], axis=1)


def _task(
    user: int,
    items: Int64[np.ndarray, "event"],
    values: Float[np.ndarray, "event"],
    order: Int64[np.ndarray, "event"],
    num_support: int,
) -> Task:
    support, query = order[:num_support], order[num_support:]
    return Task(user, items[support], values[support], items[query], values[query])
