"""The baselines of ratings as methods of a protocol."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Float

from palate.baselines import RATING_BASELINES, RatingBaseline, RatingData
from palate.evaluation.protocols.base import Bench, Method, Predict, Predictions
from palate.evaluation.protocols.content_columns import common_content
from palate.ratings.tasks import Task


def baseline_methods(*, rounded: bool) -> Mapping[str, Method]:
    """Every baseline of ratings by its label; with `rounded`, those that are judged rounded too once more."""
    methods = {label: partial(_fit, baseline) for label, baseline in RATING_BASELINES.items()}
    again = {
        f"{label}, rounded": _rounded(methods[label])
        for label, baseline in RATING_BASELINES.items()
        if rounded and baseline.rounded
    }
    return {**methods, **again}


def _fit(baseline: RatingBaseline[Any], bench: Bench) -> Predict:
    """Fit on a draw; ties are broken at random."""
    data = RatingData(bench.draw.ratings, len(bench.setting.items), lambda: common_content(bench.setting))
    model = baseline.fit(data, baseline.config)

    def predict(part: str, tasks: Sequence[Task]) -> list[Predictions]:
        rng = np.random.default_rng([bench.draw.seed, len(part)])
        found = []
        for task in tasks:
            rating, score = model(task, rng)
            found.append(Predictions(rating, _break_ties(score, rng)))
        return found

    return predict


def _break_ties(scores: Float[np.ndarray, "query"], rng: np.random.Generator) -> Float[np.ndarray, "query"]:
    """At random; differences above a millionth stay."""
    return scores + 1e-7 * rng.random(len(scores))


def _rounded(method: Method) -> Method:
    """The same with ratings rounded to the nearest level that training people use: nearer to the median."""

    def fit(bench: Bench) -> Predict:
        levels = np.unique(bench.draw.ratings.values)
        predict = method(bench)

        def one(predictions: Predictions) -> Predictions:
            nearest = np.abs(predictions.rating[:, None] - levels).argmin(1)
            return predictions._replace(rating=levels[nearest])

        return lambda part, tasks: [one(predictions) for predictions in predict(part, tasks)]

    return fit
