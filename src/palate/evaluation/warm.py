"""People whom the model knows from training: what they choose after the cut that they had not chosen before.

The same curve as for newcomers, beside the same baselines. At N = 0 a person's history before the cut is all that is
known of them, at N also their first N new items since. What they choose later is relevant; what they chose before is
removed from the list.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import torch
from jaxtyping import Float

from palate.data.choices import read_choices
from palate.data.episodes import History
from palate.data.splitting import Split
from palate.data.vocabulary import Vocabulary
from palate.evaluation.few_shot import Judged, Newcomers, ScoreHistories, few_shot_curve
from palate.recommend.recommender import Recommender

SUPPORT_SIZES = (0, 1, 5)
MIN_NEW_ITEMS = 10
"""A person is judged who chooses at least this many items that are new to them."""


class Returning(NamedTuple):
    """The people to judge on, in the order of their ids."""

    people: Newcomers
    """Their histories go on after the cut, with the items that are new to them."""
    known: tuple[int, ...]
    """How many items of each come before the cut."""


def returning_after(split: Split, model: Recommender) -> Returning | None:
    """Collect the people in training who choose enough new items that training knows; None where there are none."""
    trained = Vocabulary(model.vocabulary.ids[: model.num_trained])
    negative = model.config.negative_events
    events = split.warm_user_events.filter(
        pl.col("item_id").is_in(list(trained.ids)) & ~pl.col("event_type").is_in(list(negative))
    )
    histories: dict[str, History] = {}
    for user, later in read_choices(events, trained, model.config.meaning).items():
        before = model.users.get(user)
        if before is None:  # whose only events before the cut say no
            continue
        whole = before.then(later)
        if len(whole.items) - len(before.items) >= MIN_NEW_ITEMS:
            histories[user] = whole._replace(refused=before.refused)
    if not histories:
        return None
    profiles = torch.stack([model.profiles[user] for user in histories])
    known = tuple(len(model.users[user].items) for user in histories)
    return Returning(Newcomers(tuple(histories), tuple(histories.values()), profiles), known)


def evaluate_warm(
    model: Recommender,
    split: Split,
    palate_models: Callable[[Recommender, Newcomers], list[Judged]],
    baselines: Sequence[Judged],
) -> dict[str, Any] | None:
    """Judge the recommender and the baselines on them; None where there is nobody to judge.

    Raises:
        NumericalError: a model scored NaN.
    """
    found = returning_after(split, model)
    if found is None:
        return None
    config = replace(model.config.evaluation, support_sizes=SUPPORT_SIZES, min_items=MIN_NEW_ITEMS)
    models = [
        judged._replace(score=partial(_score_returning, judged.score, split.cut.replace(tzinfo=UTC).timestamp()))
        for judged in palate_models(model, found.people)
    ]
    curve = few_shot_curve(
        [*models, *baselines],
        found.people,
        model.num_trained,
        config,
        seed=model.config.seed,
        known=found.known,
    )
    return curve | {"since": " since the cut"}


def _score_returning(score: ScoreHistories, cut: float, histories: Sequence[History]) -> Float[np.ndarray, "user item"]:
    """Score people who have no event since the cut as those who come back, which is when a list is asked for."""
    return score([history._replace(returning=bool(history.times[-1] < cut)) for history in histories])
