"""What the scorers of a model say together: features, their sum for one person and for many, settings on strangers."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from palate.data.event_log import EventLog, from_sequences
from palate.scorers.choice import choose_scorers
from palate.scorers.evidence import LEAST, PER_SCORER, Scorers, no_scorers, refit
from palate.scorers.item_item import SCORERS, ItemItemConfig
from palate.scorers.kin import NUM_RELATIVES, Kin, no_kin

NUM_ITEMS = 24
CONFIG = ItemItemConfig(ease_penalty=(50.0, 500.0), decays=(0.2, 1.0))


def ring(seed: int, people: int = 60) -> EventLog:
    """Walks along a ring, one item after the other: the next one is known from the last."""
    starts = np.random.default_rng(seed).integers(0, NUM_ITEMS, people)
    return from_sequences([(start + np.arange(6)) % NUM_ITEMS for start in starts])


def chosen_on(log: EventLog, config: ItemItemConfig = CONFIG) -> Scorers:
    """Scorers of a ring, chosen by what others do there."""
    past = log.cut(1)
    relevant, seen = (np.zeros((log.num_users, NUM_ITEMS), bool) for _ in range(2))
    relevant[np.arange(log.num_users), log.items[log.offsets[1:] - 1]] = True
    seen[np.repeat(np.arange(log.num_users), past.lengths()), past.items] = True
    return choose_scorers(ring(0), past, relevant, seen, config)


def test_settings_are_those_that_rank_strangers_best() -> None:
    """Only the last event says what follows it: old ones are best forgotten."""
    scorers = chosen_on(ring(1))
    assert list(scorers.fitted) == list(CONFIG.kinds)
    assert scorers.fitted["ease"].decay == scorers.fitted["neighbours"].decay == 0.2
    assert scorers.fitted["transitions"].decay == 0.0
    last = ring(2)
    found = scorers.features(last.cut(1), NUM_ITEMS)
    hits = found[..., PER_SCORER * 2].argmax(1) == last.items[last.offsets[1:] - 1]
    assert hits.all()


def test_features_have_a_spread_of_one() -> None:
    scorers = chosen_on(ring(1))
    variance = scorers.features(ring(1).cut(1), NUM_ITEMS).var(1).mean(0)
    np.testing.assert_allclose(variance, 1, rtol=1e-3)


@given(seed=st.integers(0, 99), later=st.integers(0, 40))
def test_what_is_added_for_one_is_what_is_added_for_many(seed: int, later: int) -> None:
    """`later` items came after the fit; the first three of them have kin."""
    rng = np.random.default_rng(seed)
    relatives = rng.integers(0, NUM_ITEMS, (min(later, 3), NUM_RELATIVES))
    kin = Kin(relatives, rng.random(relatives.shape).astype(np.float32))
    scorers = chosen_on(ring(1), replace(CONFIG, width=1 + seed % 5))
    log = from_sequences([rng.integers(0, NUM_ITEMS + later, rng.integers(0, 8)) for _ in range(5)])
    weights = rng.normal(size=(5, scorers.num_features)).astype(np.float32)
    start = rng.normal(size=(5, NUM_ITEMS + later)).astype(np.float32)
    many = start.copy()
    scorers.add_to(many, log, weights, kin)
    added = np.einsum("uif,uf->ui", scorers.features(log, NUM_ITEMS + later), weights)
    for new in range(len(relatives)):
        added[:, NUM_ITEMS + new] = added[:, relatives[new]] @ kin.weights[new]
    np.testing.assert_allclose(many, start + added, rtol=1e-4, atol=1e-3)
    for user in range(5):
        one = start[user].copy()
        past = log.items[log.offsets[user] : log.offsets[user + 1]].astype(np.int64)
        items, added = scorers.contribution(past, weights[user], kin)
        assert len(set(items.tolist())) == len(items)
        one[items] += added
        np.testing.assert_allclose(one, many[user], rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("dense", [0, 10**9])
def test_sums_over_named_items_are_those_over_all(dense: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("palate.scorers.evidence._DENSE", dense)
    scorers = chosen_on(ring(1), replace(CONFIG, width=2))
    weights = np.arange(1, scorers.num_features + 1, dtype=np.float32)
    items, added = scorers.contribution(np.array([3, 4, 5]), weights, no_kin())
    whole = np.zeros((1, NUM_ITEMS), np.float32)
    scorers.add_to(whole, from_sequences([[3, 4, 5]]), weights[None], no_kin())
    found = np.zeros(NUM_ITEMS, np.float32)
    found[items] = added
    np.testing.assert_allclose(found, whole[0], rtol=1e-4, atol=1e-4)


def test_only_items_of_which_something_is_said_are_named() -> None:
    """However the sums are made: an index scores what is named one by one."""
    scorers = chosen_on(ring(1), replace(CONFIG, width=2))
    items, added = scorers.contribution(np.array([3]), np.ones(6, np.float32), no_kin())
    assert 0 < len(items) <= 6
    assert added.all()


def test_weights_of_nothing_cost_nothing() -> None:
    """As for a list that is for another visit."""
    items, added = chosen_on(ring(1)).contribution(np.array([3, 4]), np.zeros(6, np.float32), no_kin())
    assert len(items) == len(added) == 0


def test_little_evidence_counts_as_none_in_the_logarithm() -> None:
    scorers = chosen_on(ring(1))
    nothing = scorers.features(from_sequences([[]]), NUM_ITEMS)
    assert not nothing.any()
    raw = scorers.fitted["ease"].evidence(ring(3))
    logarithm = scorers.features(ring(3), NUM_ITEMS)[..., 1] * scorers.spread[1]
    np.testing.assert_allclose(logarithm, np.log(np.maximum(raw, LEAST) / LEAST), rtol=1e-4, atol=1e-5)


def test_arrays_and_settings_are_all_of_it() -> None:
    scorers = chosen_on(ring(1))
    settings = {name: scorer.setting for name, scorer in scorers.fitted.items()}
    again = Scorers.from_arrays(scorers.to_arrays(), settings)
    np.testing.assert_array_equal(again.features(ring(2), NUM_ITEMS), scorers.features(ring(2), NUM_ITEMS))
    assert no_scorers().num_features == 0
    assert len(no_scorers().contribution(np.array([1]), np.zeros(0), no_kin())[0]) == 0


def test_a_refit_keeps_settings_and_spread_and_reads_the_new_events() -> None:
    scorers, log = chosen_on(ring(1)), ring(5, 200)
    again = refit(scorers, log, NUM_ITEMS, CONFIG)
    np.testing.assert_array_equal(again.spread, scorers.spread)
    for name, scorer in scorers.fitted.items():
        assert again.fitted[name].setting == scorer.setting
        wanted = SCORERS[name].fit(log, NUM_ITEMS, scorer.setting.strength, CONFIG)
        np.testing.assert_array_equal(again.fitted[name].weights, wanted.weights)
