"""The recommender as a method of a protocol: trained by `palate.train`, saved, loaded, asked as the service asks."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import polars as pl
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from palate.config import Config
from palate.data.catalog import Catalog, Profiles
from palate.data.dataset import Dataset
from palate.data.episodes import History
from palate.data.log import validate_interactions
from palate.evaluation.protocols.base import Bench, Method, Predict, Predictions, Setting
from palate.pipeline import train
from palate.progress import Reporter
from palate.ratings.rater import Gain, expected_gain
from palate.ratings.tasks import Ratings, Task
from palate.recommend import Recommender

_BEGIN = datetime(2000, 1, 1)
"""The protocols know no times: each person's n-th event happens n seconds after this."""
_RATING = "rating"


def served_ratings(config: Config, gain: Gain) -> Method:
    """Ratings are the log, the items' content is the catalogue, and `predict` answers: its median rates, its expected
    gain ranks. Choices are ratings of two levels. Of a task it is told the support and the profile."""

    def fit(bench: Bench) -> Predict:
        model, places, profiles = _trained(bench, config, ratings_as_events(bench.draw.ratings))

        def predict(part: str, tasks: Sequence[Task]) -> list[Predictions]:
            return [_rate(model, task, places, profiles[task.user], gain) for task in tasks]

        return predict

    return fit


def _trained(
    bench: Bench, config: Config, events: pl.DataFrame
) -> tuple[Recommender, Int64[np.ndarray, "item"], Float[Tensor, "user profile"]]:
    """A recommender, saved and loaded, with the numbers of the setting's items and its people's profiles."""
    setting, reporter = bench.setting, Reporter()
    columns = _profile_columns(setting)
    people = pl.DataFrame({"user_id": [_name(user) for user in range(len(setting.profiles))]} | columns)
    dataset = Dataset(
        "protocol",
        validate_interactions(events, source="protocol"),
        catalogue_of(setting),
        Profiles(people, tuple(columns), ()),
    )
    trained = train(dataset, replace(config, seed=bench.draw.seed), reporter=reporter)
    for stage in reporter.stages:
        bench.say(f"{stage.name}: {stage.detail}, {stage.seconds:.0f} s")
    with TemporaryDirectory() as folder:
        trained.save(Path(folder) / "model")
        model = Recommender.load(Path(folder) / "model")
    places = model.vocabulary.index([_name(item) for item in range(len(setting.items))])
    return model, places, torch.from_numpy(model.profile_encoder.transform(people))


def _rate(
    model: Recommender, task: Task, places: Int64[np.ndarray, "item"], profile: Float[Tensor, "profile"], gain: Gain
) -> Predictions:
    items = places[task.support_items]
    times, nothing = np.arange(len(items), dtype=np.float64), np.zeros(0, np.int64)
    history = History(items, times, nothing, ratings=task.support_values)
    said = model.predict_for(history, profile, [model.vocabulary.ids[place] for place in places[task.query_items]])
    levels = np.array(list(said[0].distribution))
    distribution = np.array([list(line.distribution.values()) for line in said])
    return Predictions(np.array([line.median for line in said]), expected_gain(distribution, levels, gain))


def ratings_as_events(ratings: Ratings) -> pl.DataFrame:
    """Each rating as an event of the type that rates, with the rating as weight."""
    order = np.argsort(ratings.users, kind="stable")
    users = ratings.users[order]
    return pl.DataFrame(
        {
            "user_id": [_name(user) for user in users.tolist()],
            "item_id": [_name(item) for item in ratings.items[order].tolist()],
            "weight": ratings.values[order],
            "place": np.arange(len(users)) - np.searchsorted(users, users),
        }
    ).select(
        "user_id",
        "item_id",
        "weight",
        timestamp=pl.lit(_BEGIN) + pl.duration(seconds="place"),
        event_type=pl.lit(_RATING),
    )


def catalogue_of(setting: Setting) -> Catalog:
    """The texts of an item and its lists of names as one text; its numbers, and its groups, as numbers."""
    names, content = [_name(item) for item in range(len(setting.items))], setting.content
    if content is None:
        return Catalog.from_ids(names)
    frame = setting.items
    worded = [
        pl.col(name).cast(pl.String).fill_null("") for name in dict.fromkeys((*content.texts, *content.categories))
    ]
    text = frame.select(pl.concat_str(worded, separator=". ")).to_series()
    columns = {name: frame[name].cast(pl.Float64) for name in content.numbers}
    if content.time is not None:
        columns[content.time] = frame[content.time].cast(pl.Float64).clip(*content.time_range)
    if content.groups is not None:
        split = frame[content.groups].fill_null("").str.split(content.categories[content.groups])
        for group in sorted({one for row in split.to_list() for one in row if one}):
            columns[f"{content.groups} {group}"] = split.list.contains(group).cast(pl.Float64)
    return Catalog(pl.DataFrame({"item_id": names, "text": text} | columns), "text", tuple(columns), ())


def _profile_columns(setting: Setting) -> dict[str, Float[np.ndarray, "user"]]:
    return {f"profile {place:02}": column for place, column in enumerate(np.asarray(setting.profiles, np.float64).T)}


def _name(number: int) -> str:
    return f"{number:06}"
