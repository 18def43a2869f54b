"""The table of protocols: where the data comes from, what is measured, what is known, and which models are judged."""

from collections.abc import Mapping
from dataclasses import replace

from palate.backbone.next_item import LossConfig
from palate.backbone.sequence_model import SequenceModelConfig
from palate.config import Config
from palate.encoders.attributes import AttributeConfig
from palate.encoders.text import TextConfig
from palate.errors import ConfigError
from palate.evaluation.protocols.base import ProtocolEntry, Reach
from palate.evaluation.protocols.item_features import choice_features, rating_features
from palate.evaluation.protocols.lastfm import open_lastfm
from palate.evaluation.protocols.movielens import open_hire, open_melu, open_metarec, open_tanp
from palate.evaluation.protocols.scores import absolute_error, first_found_ndcg, matched_map, matched_precision, ndcg
from palate.evaluation.protocols.served import served_ratings

_SERVED = Config(
    attributes=AttributeConfig(numeric="standard"),
    text=TextConfig(max_length=96),
    model=SequenceModelConfig(max_events=64, dropout=0.3, id_dropout=0.1, loss=LossConfig(distinct=True)),
)
"""The defaults, but for visits, of which the protocols know nothing."""
_ASKED_TO_RATE = replace(
    _SERVED, num_members=1, training=replace(_SERVED.training, num_epochs=2), meta=replace(_SERVED.meta, num_steps=50)
)
"""Lists are not asked for: little time goes into what makes them."""
_TOP5 = {"precision@5": matched_precision(5), "ndcg@5": ndcg(5, "exponential"), "map@5": matched_map(5)}

PROTOCOLS: Mapping[str, ProtocolEntry] = {
    "melu": ProtocolEntry(
        title="MeLU's four states on MovieLens-1M",
        about=(
            "Train on the warm state (people and films up to 1997). In each of the three cold states a task is a "
            "person with 13 to 100 ratings in that state; 10 random ones are the query, the rest of that state's are "
            "the support. A model sees the task's support, profile and item content, and nothing else of the cold "
            "states. MAE and nDCG@3 (gain 2^r − 1) per task, mean over tasks; 3 draws. Lee et al., 2019, "
            "arXiv:1908.00413."
        ),
        open=open_melu,
        metrics={"mae": absolute_error, "ndcg@3": ndcg(3, "exponential")},
        lower_is_better=frozenset({"mae"}),
        main="ndcg@3",
        known={
            "user cold": {"mae": Reach(0.698, 0.680), "ndcg@3": Reach(0.782, 0.80)},
            "item cold": {"mae": Reach(0.870, 0.845), "ndcg@3": Reach(0.643, 0.67)},
            "both cold": {"mae": Reach(0.865, 0.840), "ndcg@3": Reach(0.636, 0.66)},
        },
        features=rating_features(16),
        palate=served_ratings(_ASKED_TO_RATE, "exponential"),
        objective="ratings",
        draws=3,
        curve_sizes=(0, 1, 2, 3, 5, 10, 20, 50),
    ),
    "tanp": ProtocolEntry(
        title="TaNP-style cold users on MovieLens-1M",
        about=(
            "People are split 70/10/20 at random; ratings of films that no training person has rated are left out; "
            "test people have 30 to 200 ratings, of which 20 random ones are the support and all others the query. "
            "Precision and average precision at 5 match values, not items: a listed 5 counts if a 5 is still free "
            "among the five highest; nDCG@5 has gain 2^r − 1. The 10 % between are not used here. Lin et al., 2021, "
            "arXiv:2103.06137."
        ),
        open=open_tanp,
        metrics=_TOP5,
        lower_is_better=frozenset(),
        main="ndcg@5",
        known={
            "user cold": {
                "precision@5": Reach(0.634, 0.65),
                "ndcg@5": Reach(0.772, 0.79),
                "map@5": Reach(0.540, 0.56),
            }
        },
        features=rating_features(16),
        palate=served_ratings(_ASKED_TO_RATE, "exponential"),
        objective="ratings",
        draws=3,
        curve_sizes=(0, 1, 2, 3, 5, 10, 20),
    ),
    "hire": ProtocolEntry(
        title="HIRE-style cold users on MovieLens-1M",
        about=(
            "Train on MeLU's warm state, judge the people of its user-cold state. A context is 32 random items of a "
            "target person, and up to 32 cold people: the target and others drawn from the 64 who have rated most of "
            "the 32 items. Ratings in the same 3 of the 32 columns (10 %) are given, all others asked for; a row needs "
            "5 asked ratings. A model here reads a row's own given ratings alone. Metrics as in TaNP but with gain r "
            "in nDCG. Three readings: the target's query; all rows' query; and all rows with the given entries ranked "
            "beside the asked ones, as the code of HIRE counts (its published test also shuffles the ranking first, "
            "which is left out here). HIRE is judged by the last, the only one whose figures are near the published."
        ),
        open=open_hire,
        metrics={**_TOP5, "ndcg@5": ndcg(5, "linear")},
        lower_is_better=frozenset(),
        main="ndcg@5",
        known={
            "all rows, given and query": {
                "precision@5": Reach(0.700, 0.700),
                "ndcg@5": Reach(0.917, 0.917),
                "map@5": Reach(0.645, 0.645),
            }
        },
        features=rating_features(16),
        palate=served_ratings(_ASKED_TO_RATE, "linear"),
        objective="ratings",
        draws=1,
        given_is_known=True,
        curve_sizes=(0, 1, 2, 3),
    ),
    "lastfm": ProtocolEntry(
        title="LastFM_20, TaNP's own tasks",
        about=(
            "The tasks as TaNP ships them: 248 training, 35 validation and 66 test people, 20 artists as support and "
            "the rest as query, half of them listened to (1) and half sampled from all others (0). Metrics as in "
            "TaNP, where a listed 0 counts if a 0 is among the five highest. Draws are seeds of the models. The file "
            "numbers artists by first appearance, which gives a person's artists away; rows are renumbered at random."
        ),
        open=open_lastfm,
        metrics=_TOP5,
        lower_is_better=frozenset(),
        main="ndcg@5",
        known={
            "user cold": {
                "precision@5": Reach(0.773, 0.80),
                "ndcg@5": Reach(0.786, 0.815),
                "map@5": Reach(0.722, 0.75),
            }
        },
        features=choice_features,
        palate=served_ratings(_ASKED_TO_RATE, "exponential"),
        objective="clicks",
        draws=3,
        curve_sizes=(0, 1, 2, 3, 5, 10, 20),
    ),
    "metarec": ProtocolEntry(
        title="RecBole-MetaRec on MovieLens-100K",
        about=(
            "RecBole-MetaRec's own tasks: five splits of the people, 8:1:1; people with 13 to 100 ratings, 10 of them "
            "the query, ratings scaled to (r − 1)/4. NDCG@5 as that project computes it: the five labels that "
            "torch.topk picks are the positives, with a gain of 1 each."
        ),
        open=open_metarec,
        metrics={"ndcg@5": first_found_ndcg(5)},
        lower_is_better=frozenset(),
        main="ndcg@5",
        known={"user cold": {"ndcg@5": Reach(0.625, 0.65)}},
        features=rating_features(8),
        palate=served_ratings(_ASKED_TO_RATE, "linear"),
        objective="ratings",
        draws=5,
        curve_sizes=(0, 1, 2, 3, 5, 10, 20, 50),
    ),
}


def find_protocol(name: str) -> ProtocolEntry:
    """Look a protocol up in the table; ConfigError where it is not there."""
    if name not in PROTOCOLS:
        raise ConfigError(f"protocol is {name!r}; choose one of: {', '.join(PROTOCOLS)}, or all")
    return PROTOCOLS[name]
