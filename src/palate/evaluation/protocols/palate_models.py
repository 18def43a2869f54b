"""Palate's own few-shot models as methods of a protocol, and the item features that the learners read."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np

from palate.encoders.text import TextConfig, encode_texts
from palate.evaluation.protocols.base import Bench, Draw, Features, Method, Predict, Predictions, Setting
from palate.evaluation.protocols.content import common_content
from palate.ratings.chooser import ChooserConfig, fit_chooser
from palate.ratings.content import ItemContent, item_content, taste_kernels
from palate.ratings.factors import FactorConfig
from palate.ratings.knowledge import Knowledge, KnowledgeConfig, fit_knowledge
from palate.ratings.ranker import RankerConfig, fit_ranker
from palate.ratings.rater import Gain, Rater, expected_gain, median_rating
from palate.ratings.rater_training import RaterConfig, fit_rater
from palate.ratings.tasks import Task, join

_FOLDS = 5
_AXES = 16
_TEXT_LENGTH = 96


def rating_features(num_factors: int) -> Callable[[Setting, Draw], Features]:
    """Cross-fitted factors and biases, from content where nobody has rated an item."""

    def make(setting: Setting, draw: Draw) -> Features:
        content = read_content(setting)
        config = KnowledgeConfig(FactorConfig(num_factors), num_folds=_FOLDS)
        known = fit_knowledge(draw.ratings, len(setting.items), content.kernels, config, seed=draw.seed)
        warm = known.warm.double().numpy()
        offset = known.least + known.unit * (known.mean + warm[..., 0])
        fold = np.zeros(len(setting.profiles), np.int64)
        fold[: len(known.fold)] = known.fold
        return Features(warm[..., 1:], offset, fold, (known, content))

    return make


def choice_features(setting: Setting, draw: Draw) -> Features:
    """Axes of the shrunk cosine of joint choices, and the log odds that a shown item is chosen; both cross-fitted."""
    ratings, num_items = draw.ratings, len(setting.items)
    users = np.unique(ratings.users)
    fold = np.zeros(len(setting.profiles), np.int64)
    fold[np.random.default_rng(draw.seed).permutation(users)] = np.arange(len(users)) % _FOLDS + 1
    chosen = ratings.values > 0

    def cosine(kept: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        matrix = np.zeros((len(setting.profiles), num_items))
        matrix[ratings.users[kept & chosen], ratings.items[kept & chosen]] = 1.0
        counts = matrix.sum(0)
        together = matrix.T @ matrix
        np.fill_diagonal(together, 0.0)
        return together / np.sqrt(np.outer(counts + 3, counts + 3)), counts

    whole, _ = cosine(np.ones(len(chosen), bool))
    values, axes = np.linalg.eigh(whole)
    axes = axes[:, ::-1][:, :_AXES] / np.sqrt(np.maximum(values[::-1][:_AXES], 1e-9))
    vectors, offsets = [], []
    for left_out in range(_FOLDS + 1):
        kept = (fold[ratings.users] != left_out) | (left_out == 0)
        similar, counts = cosine(kept)
        shown = (kept & ~chosen).sum() / num_items  # what is not chosen was drawn evenly
        vectors.append(similar @ axes)
        offsets.append(np.log((counts + 0.5) / (shown + 0.5)))
    stacked = np.stack(vectors)
    return Features(stacked / stacked[0].std(), np.stack(offsets), fold)


def rater_method(configs: Mapping[str, RaterConfig], gain: Gain) -> Method:
    """The rater: median of the predicted distribution to rate, expected gain to rank; one training a config."""

    def fit(bench: Bench) -> Predict:
        known, content = bench.features.source
        trained: dict[RaterConfig, Rater] = {}

        def predict(part: str, tasks: Sequence[Task]) -> list[Predictions]:
            config = configs[part]
            if config not in trained:
                trained[config] = _train_rater(bench, known, content, config)
            rater = trained[config]
            return [
                Predictions(median_rating(found, rater.levels), expected_gain(found, rater.levels, gain))
                for found in rater.predict(tasks, bench.setting.profiles)
            ]

        return predict

    return fit


def ranker_method(config: RankerConfig, *, with_validation: bool = False) -> Method:
    """The ranker; what it puts out is not a rating, so its ratings are the global mean.

    `with_validation` learns from the protocol's validation people as well, as a last fit after all choices would.
    """

    def fit(bench: Bench) -> Predict:
        setting, draw = bench.setting, bench.draw
        content = common_content(setting)[:, 1:]
        ratings = draw.ratings
        if with_validation and draw.validation is not None:
            ratings = join([ratings, draw.validation])
        ranker = fit_ranker(ratings, len(setting.items), setting.profiles, content, config, seed=draw.seed)
        mean = float(draw.ratings.values.mean())

        def predict(part: str, tasks: Sequence[Task]) -> list[Predictions]:
            scores = ranker.score(tasks, setting.profiles)
            return [Predictions(np.full(len(score), mean), score) for score in scores]

        return predict

    return fit


def chooser_method(config: ChooserConfig) -> Method:
    """The chooser of sampled choices; its rating is the probability of a choice."""

    def fit(bench: Bench) -> Predict:
        chooser = fit_chooser(bench.draw.ratings, len(bench.setting.items), config, seed=bench.draw.seed)

        def predict(part: str, tasks: Sequence[Task]) -> list[Predictions]:
            return [Predictions(1 / (1 + np.exp(-score)), score) for score in chooser.score(tasks)]

        return predict

    return fit


def read_content(setting: Setting) -> ItemContent:
    """Kernels and features of the items, texts by the bundled encoder."""
    if setting.content is None:
        raise ValueError("this data set has no content")
    encode = partial(encode_texts, config=TextConfig(max_length=_TEXT_LENGTH))
    return item_content(setting.items, setting.content, encode)


def _train_rater(bench: Bench, known: Knowledge, content: ItemContent, config: RaterConfig) -> Rater:
    assert bench.setting.content is not None
    taste = content.select(taste_kernels(bench.setting.content, content.names))
    seed = bench.draw.seed

    def on_step(step: int, of: int, loss: float) -> None:
        if step % 100 == 0 or step == of:
            bench.say(f"rater: step {step} of {of}, loss {loss:.4f}")

    return fit_rater(bench.draw.ratings, bench.setting.profiles, known, taste, config, seed=seed, on_step=on_step)
