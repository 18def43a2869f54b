"""Item-item scorers: sparse rows against dense ones, one person against many, ages, and what came after the fit."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from palate.baselines.base import at_decay
from palate.baselines.linear import linear_model
from palate.data.event_log import EventLog, from_sequences
from palate.errors import ConfigError
from palate.scorers.item_item import SCORERS, ItemItemConfig, Setting
from palate.scorers.item_weights import ease_weights, neighbour_weights, transition_weights

NUM_ITEMS = 30
WEIGHTS = {
    "ease": ease_weights,
    "neighbours": neighbour_weights,
    "transitions": lambda log, num_items, strength: transition_weights(log, num_items),
}


def walks(seed: int = 0, people: int = 80, num_items: int = NUM_ITEMS) -> EventLog:
    """People who go on from an item to one near it."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 12, people)
    return from_sequences(
        [np.cumsum([rng.integers(num_items), *rng.integers(1, 4, length)]) % num_items for length in lengths]
    )


def test_every_scorer_has_a_reference() -> None:
    assert set(SCORERS) == set(WEIGHTS)


@pytest.mark.parametrize("kind", SCORERS)
@pytest.mark.parametrize("decay", [0.0, 0.5, 1.0])
def test_a_scorer_with_whole_rows_is_the_dense_model(kind: str, decay: float) -> None:
    config, log = ItemItemConfig(width=NUM_ITEMS), walks()
    scorer = SCORERS[kind].fit(log, NUM_ITEMS, 60.0, config)._replace(setting=Setting(60.0, decay))
    # The dense model puts items without evidence behind all others by their popularity: of none here.
    model = linear_model(WEIGHTS[kind](log, NUM_ITEMS, 60.0), np.zeros(NUM_ITEMS, np.float32))
    wanted = at_decay(model, NUM_ITEMS, decay)(walks(1))
    np.testing.assert_allclose(scorer.evidence(walks(1)), wanted, rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("kind", SCORERS)
@given(seed=st.integers(0, 50), decay=st.sampled_from([0.0, 0.3, 0.8, 1.0]), width=st.integers(1, 40))
def test_one_person_is_read_as_many_are(kind: str, seed: int, decay: float, width: int) -> None:
    scorer = SCORERS[kind].fit(walks(), NUM_ITEMS, 60.0, ItemItemConfig(width=width))
    scorer = scorer._replace(setting=Setting(60.0, decay))
    # Items from NUM_ITEMS on came after the fit: they say nothing, and the events before them are as old as they are.
    log = walks(seed, 10, NUM_ITEMS + 5)
    together = scorer.evidence(log)
    for user in range(log.num_users):
        chosen = log.items[log.offsets[user] : log.offsets[user + 1]].astype(np.int64)
        items, values = scorer.neighbours(chosen)
        np.testing.assert_allclose(np.bincount(items, values, NUM_ITEMS), together[user], rtol=1e-4, atol=1e-5)


def test_the_largest_weights_are_kept() -> None:
    log = walks()
    whole = ease_weights(log, NUM_ITEMS, 60.0)
    scorer = SCORERS["ease"].fit(log, NUM_ITEMS, 60.0, ItemItemConfig(width=4))
    for item, row in enumerate(whole):
        ends = slice(scorer.starts[item], scorer.starts[item + 1])
        kept = np.abs(scorer.weights[ends])
        assert len(kept) == 4
        assert kept.min() >= np.sort(np.abs(row))[-4] - 1e-7
        np.testing.assert_allclose(scorer.weights[ends], row[scorer.items[ends]])


@pytest.mark.parametrize("kind", SCORERS)
def test_a_large_catalogue_is_fitted_on_its_most_chosen_items(kind: str) -> None:
    log = walks(people=300)
    counts = np.bincount(log.items, minlength=NUM_ITEMS)
    kept = np.sort(np.argsort(-counts, kind="stable")[:10])
    scorer = SCORERS[kind].fit(log, NUM_ITEMS, 60.0, ItemItemConfig(most_items=10))
    lengths = np.diff(scorer.starts)
    assert lengths[np.setdiff1d(np.arange(NUM_ITEMS), kept)].sum() == 0
    assert (lengths[kept] > 0).all()
    assert set(scorer.items.tolist()) <= set(kept.tolist())
    if kind == "neighbours":  # of two items it does not matter who else is there
        whole = SCORERS[kind].fit(log, NUM_ITEMS, 60.0, ItemItemConfig())
        item = int(kept[3])
        ours = dict(
            zip(*(part[scorer.starts[item] : scorer.starts[item + 1]].tolist() for part in scorer[1:3]), strict=True)
        )
        all_of_them = dict(
            zip(*(part[whole.starts[item] : whole.starts[item + 1]].tolist() for part in whole[1:3]), strict=True)
        )
        assert ours == {other: all_of_them[other] for other in ours}


def test_the_log_is_left_as_it_was() -> None:
    log = walks()
    before = log.offsets.copy()
    SCORERS["neighbours"].fit(log, NUM_ITEMS, 10.0, ItemItemConfig())._replace(setting=Setting(10.0, 0.1)).evidence(log)
    np.testing.assert_array_equal(log.offsets, before)


def test_settings_that_cannot_be_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"item_item\.kinds names 'svd'; choose among: ease"):
        ItemItemConfig(kinds=("svd",))
    with pytest.raises(ConfigError, match="name each once"):
        ItemItemConfig(kinds=("ease", "ease"))
    with pytest.raises(ConfigError, match=r"item_item\.ease_penalty is \(0\.0,\)"):
        ItemItemConfig(ease_penalty=(0.0,))
    with pytest.raises(ConfigError, match=r"item_item\.decays is \(1\.5,\)"):
        ItemItemConfig(decays=(1.5,))
    with pytest.raises(ConfigError, match=r"item_item\.width is 0"):
        ItemItemConfig(width=0)
