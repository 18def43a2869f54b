"""The tables of the sequential benchmark: which models are judged on which data, and what others have published."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from palate.baselines import SEQUENCE_BASELINES, ListBaseline, Scorer, select
from palate.errors import ConfigError
from palate.evaluation.sequential.data import SequenceData
from palate.evaluation.sequential.leave_one_out import Held, figures, rank_targets
from palate.evaluation.sequential.served_models import fit_recommender, scorer_of


class Bench(NamedTuple):
    """All that a model may know before it is judged."""

    data: SequenceData
    """Its log holds the training events alone."""
    validation: Held
    """For the choice of settings and of when to stop."""
    seed: int
    say: Callable[[str], None]
    """Takes a line about the progress."""
    folder: Path
    """Takes checkpoints: a run that is started again goes on from them."""


class Fitted(NamedTuple):
    """A model that is ready to be judged."""

    scorer: Scorer
    settings: Mapping[str, Any]
    """What was chosen, as plain values."""
    variants: Mapping[str, Scorer] = {}
    """Further scorers from the same fit, judged beside it, by what to add to the name."""


class ModelEntry(NamedTuple):
    """One line of the table of models."""

    kind: str
    """"baseline" or "palate"; a Palate model is compared with the best baseline."""
    fit: Callable[[Bench], Fitted]
    by_chance: bool
    """Whether the seed changes anything; if not, one fit stands for all seeds."""


def _fit_baseline(bench: Bench, baseline: ListBaseline[Any]) -> Fitted:
    """Select by nDCG@10 of the validation items."""
    num_items = bench.data.num_items

    def validate(scorer: Scorer) -> float:
        return float(figures(rank_targets(scorer, bench.validation, num_items).removed)["ndcg@10"].mean())

    chosen = select(baseline, bench.data.log, num_items, validate)
    return Fitted(chosen.scorer, chosen.settings)


def _fit_recommender(bench: Bench, informed: bool) -> Fitted:
    folder = bench.folder / ("informed" if informed else "ids")
    model = fit_recommender(bench.data, informed=informed, seed=bench.seed, folder=folder, say=bench.say)
    chosen = {name: scorer.setting._asdict() for name, scorer in model.scorers.fitted.items()}
    validation = model.training["meta validation"]
    return Fitted(
        scorer_of(model, bench.data),
        {"model": model.model_id, "item-item": chosen, "NDCG@10 of held-out people, step by step": validation},
        {"backbone alone": scorer_of(model, bench.data, backbone_alone=True)},
    )


MODELS: Mapping[str, ModelEntry] = {
    **{
        label: ModelEntry("baseline", partial(_fit_baseline, baseline=baseline), by_chance=False)
        for label, baseline in SEQUENCE_BASELINES.items()
    },
    "Palate": ModelEntry("palate", partial(_fit_recommender, informed=False), by_chance=True),
    "Palate with content": ModelEntry("palate", partial(_fit_recommender, informed=True), by_chance=True),
}


class Published(NamedTuple):
    """Figures from a paper or from code that others ran; seen items are removed from the list in most of them."""

    hr: float
    """HR@10."""
    ndcg: float
    """NDCG@10."""
    target_time: bool = False
    """The model was shown when the target happened, which no other model here knows: never compared."""


class DataEntry(NamedTuple):
    """One line of the table of data sets."""

    title: str
    published: Mapping[str, Published]


DATASETS: Mapping[str, DataEntry] = {
    "ml-1m": DataEntry(
        "MovieLens-1M",
        {
            "SASRec, binary cross-entropy": Published(0.250, 0.134),
            "gSASRec": Published(0.300, 0.173),
            "HSTU": Published(0.310, 0.172),
            "SASRec, full cross-entropy": Published(0.315, 0.182),
            "SASRec, 3,000 negatives": Published(0.316, 0.186),
            "HSTU-large": Published(0.329, 0.189),
            "HSTU-large, mixture of logits": Published(0.341, 0.198),
            "HSTU-large, given the target's time": Published(0.364, 0.216, target_time=True),
        },
    ),
    "beauty": DataEntry(
        "Amazon 2014 Beauty",
        {
            "TIGER": Published(0.065, 0.038),
            "ActionPiece": Published(0.078, 0.042),
            "HSTU": Published(0.079, 0.044),
            "eSASRec": Published(0.093, 0.052),
            "SASRec, sampled softmax": Published(0.092, 0.053),
            "BSARec": Published(0.1008, 0.0611),  # its authors'; replications find less
        },
    ),
    "sports": DataEntry(
        "Amazon 2014 Sports and Outdoors",
        {
            "TIGER": Published(0.040, 0.023),
            "SASRec, sampled softmax": Published(0.057, 0.031),
            "eSASRec": Published(0.056, 0.032),
        },
    ),
    "toys": DataEntry(
        "Amazon 2014 Toys and Games",
        {
            "TIGER": Published(0.071, 0.043),
            "SASRec, sampled softmax": Published(0.097, 0.058),
        },
    ),
}


def find_models(names: Sequence[str] | None) -> Mapping[str, ModelEntry]:
    """Look models up in the table, all of them by default; ConfigError where one is not there."""
    for name in names or ():
        if name not in MODELS:
            raise ConfigError(f"model is {name!r}; choose from: {'; '.join(MODELS)}")
    return MODELS if names is None else {name: MODELS[name] for name in names}
