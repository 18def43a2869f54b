"""The strong floor of every table: what any model has to beat."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import polars as pl
from jaxtyping import Float, Int64

from palate.evaluation.protocols.base import Bench, Draw, Method, Predict, Predictions, Setting
from palate.ratings.biases import shrunk_biases, user_bias
from palate.ratings.tasks import Ratings, Task

_RANK = 20
_SWEEPS = 10
_RIDGE = 0.8
_COMMON = 5
_CONTENT_RIDGE = 20.0


def constant(bench: Bench) -> Predict:
    """The global mean for everyone; its list is in random order."""
    mean = float(bench.draw.ratings.values.mean())

    def one(task: Task, rng: np.random.Generator) -> Predictions:
        rating = np.full(len(task.query_items), mean)
        return Predictions(rating, _broken(rating, rng))

    return _by_task(bench.draw, one)


def random_order(bench: Bench) -> Predict:
    """Ratings drawn from those of the training people."""

    def one(task: Task, rng: np.random.Generator) -> Predictions:
        rating = rng.choice(bench.draw.ratings.values, len(task.query_items))
        return Predictions(rating, _broken(rating, rng))

    return _by_task(bench.draw, one)


def popularity(bench: Bench) -> Predict:
    """Ranked by how many training people have rated the item, of choices have chosen it; rated by the global mean."""
    ratings = bench.draw.ratings
    are_choices = set(np.unique(ratings.values).tolist()) <= {0.0, 1.0}
    counted = ratings.items[ratings.values > 0] if are_choices else ratings.items
    logs = np.log1p(np.bincount(counted, minlength=len(bench.setting.items)))
    mean, spread = float(ratings.values.mean()), float(ratings.values.std())
    # In the unit of ratings, as every score is: a protocol may mix scores with ratings that it gives.
    score = mean + spread * (logs - logs.mean()) / max(float(logs.std()), 1e-9)

    def one(task: Task, rng: np.random.Generator) -> Predictions:
        return Predictions(np.full(len(task.query_items), mean), _broken(score[task.query_items], rng))

    return _by_task(bench.draw, one)


def item_mean(bench: Bench) -> Predict:
    """Shrunk item mean plus shrunk user bias."""
    mean, bias = shrunk_biases(bench.draw.ratings, len(bench.setting.items))

    def one(task: Task, rng: np.random.Generator) -> Predictions:
        rating = mean + bias[task.query_items] + user_bias(task, mean, bias)
        return Predictions(rating, _broken(rating, rng))

    return _by_task(bench.draw, one)


def als_ridge(bench: Bench) -> Predict:
    """Item factors by alternating least squares on what the biases leave, and a ridge regression for each person.

    Bias and factors of an item that nobody in training has rated come from its content, by ridge regression.
    """
    num_items = len(bench.setting.items)
    # On a span of four, as of one to five stars: the penalties are for it.
    unit = float(np.ptp(bench.draw.ratings.values)) / 4
    ratings = bench.draw.ratings._replace(values=bench.draw.ratings.values / unit)
    mean, bias = shrunk_biases(ratings, num_items)
    factors = als_factors(ratings, mean, bias, num_items)
    known = np.bincount(ratings.items, minlength=num_items)
    content = common_content(bench.setting)
    rows = content[known > 0] * np.sqrt(known[known > 0])[:, None]
    wanted = np.column_stack([bias, factors])[known > 0] * np.sqrt(known[known > 0])[:, None]
    mapped = content @ np.linalg.solve(
        rows.T @ rows + _CONTENT_RIDGE * len(rows) ** 0.5 * np.eye(content.shape[1]), rows.T @ wanted
    )
    bias = np.where(known > 0, bias, mapped[:, 0])
    factors = np.where(known[:, None] > 0, factors, mapped[:, 1:])

    def one(task: Task, rng: np.random.Generator) -> Predictions:
        task = task._replace(support_values=task.support_values / unit)
        own = user_bias(task, mean, bias)
        rows = factors[task.support_items]
        left = task.support_values - mean - bias[task.support_items] - own
        taste = np.linalg.solve(rows.T @ rows + _RIDGE * np.eye(_RANK), rows.T @ left)
        rating = unit * (mean + bias[task.query_items] + own + factors[task.query_items] @ taste)
        return Predictions(rating, _broken(rating, rng))

    return _by_task(bench.draw, one)


def common_content(setting: Setting) -> Float[np.ndarray, "item content"]:
    """A one, whether an item has each name that at least five items have, and the year with its square."""
    columns = [np.ones(len(setting.items))]
    if setting.content is None:
        return np.column_stack(columns)
    for column, separator in setting.content.categories.items():
        names = [
            {name.strip() for name in (cell or "").split(separator)} - {""} for cell in setting.items[column].to_list()
        ]
        counts = Counter(name for cell in names for name in cell)
        columns += [np.array([name in cell for cell in names], float) for name, n in counts.items() if n >= _COMMON]
    if setting.content.time is not None:
        cells = setting.items[setting.content.time].cast(pl.Float64)
        years = cells.fill_null(strategy="mean").to_numpy()
        standard = (years - years.mean()) / max(float(years.std()), 1e-9)
        columns += [standard, standard**2]
    return np.column_stack(columns)


def als_factors(
    ratings: Ratings, mean: float, bias: Float[np.ndarray, "item"], num_items: int
) -> Float[np.ndarray, "item factor"]:
    """Item factors (Hu, Koren & Volinsky, 2008, doi 10.1109/ICDM.2008.22, with unit weights); 0 for unseen items."""
    names, users = np.unique(ratings.users, return_inverse=True)
    left = ratings.values - mean - bias[ratings.items]
    rng = np.random.default_rng(0)
    factors = rng.normal(0, 0.1, (num_items, _RANK))
    for _ in range(_SWEEPS):
        people = _solve_side(users, ratings.items, left, factors, len(names))
        factors = _solve_side(ratings.items, users, left, people, num_items)
    # Scaled so that a person's weights have unit variance and one ridge penalty fits every data set.
    scaled: Float[np.ndarray, "item factor"] = factors * people.std(0)
    return scaled


def _solve_side(
    rows: Int64[np.ndarray, "event"],
    columns: Int64[np.ndarray, "event"],
    left: Float[np.ndarray, "event"],
    other: Float[np.ndarray, "column factor"],
    num_rows: int,
) -> Float[np.ndarray, "row factor"]:
    order = np.argsort(rows, kind="stable")
    bounds = np.searchsorted(rows[order], np.arange(num_rows + 1))
    solved = np.zeros((num_rows, other.shape[1]))
    for row in range(num_rows):
        chosen = order[bounds[row] : bounds[row + 1]]
        if len(chosen):
            features = other[columns[chosen]]
            gram = features.T @ features + (1.0 + 0.05 * len(chosen)) * np.eye(other.shape[1])
            solved[row] = np.linalg.solve(gram, features.T @ left[chosen])
    return solved


def _broken(scores: Float[np.ndarray, "query"], rng: np.random.Generator) -> Float[np.ndarray, "query"]:
    """Break ties at random; differences above a millionth stay."""
    return scores + 1e-7 * rng.random(len(scores))


def _by_task(draw: Draw, one: Callable[[Task, np.random.Generator], Predictions]) -> Predict:
    def predict(part: str, tasks: Sequence[Task]) -> list[Predictions]:
        rng = np.random.default_rng([draw.seed, len(part)])
        return [one(task, rng) for task in tasks]

    return predict


def rounded(method: Method) -> Method:
    """The same with ratings rounded to the nearest level that training people use: nearer to the median."""

    def fit(bench: Bench) -> Predict:
        levels = np.unique(bench.draw.ratings.values)
        predict = method(bench)

        def one(predictions: Predictions) -> Predictions:
            nearest = np.abs(predictions.rating[:, None] - levels).argmin(1)
            return predictions._replace(rating=levels[nearest])

        return lambda part, tasks: [one(predictions) for predictions in predict(part, tasks)]

    return fit


FLOORS: Mapping[str, Method] = {
    "constant": constant,
    "random": random_order,
    "popularity": popularity,
    "item mean + user bias": item_mean,
    "ALS + per-user ridge": als_ridge,
}
ROUNDED: Mapping[str, Method] = {
    "item mean + user bias, rounded": rounded(item_mean),
    "ALS + per-user ridge, rounded": rounded(als_ridge),
}
"""Beside the floors wherever an absolute error is measured."""
