"""One person read in one pass by all members: the states of the ensemble, whatever the members know of events."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

from palate.backbone.batches import inputs
from palate.backbone.ensemble import Ensemble
from palate.backbone.reader import Reader
from palate.backbone.sequence_model import BLOCKS, Catalogue, SequenceModelConfig
from palate.data.episodes import EMPTY_HISTORY, History
from palate.data.event_log import from_histories
from palate.errors import DataError

PLAIN = SequenceModelConfig(dim=8, num_layers=2, max_events=5, dropout=0.2)
RICH = replace(PLAIN, timed=True, calendar=True, visit_gap=12.0, relative=True, hidden_multiple=1.5, rated=True)
FLAVOURS = [
    replace(base, block=block, num_layers=layers)
    for base, block, layers in itertools.product(
        [PLAIN, RICH, replace(PLAIN, relative=True), replace(PLAIN, visit_gap=1.0, timed=True)], BLOCKS, (0, 1, 3)
    )
]
NUM_ITEMS = 20


def build(config: SequenceModelConfig, num_members: int, num_profile: int) -> Ensemble:
    torch.manual_seed(0)
    ensemble = Ensemble(config, num_members, Catalogue(torch.arange(NUM_ITEMS)), num_profile).eval()
    for parameter in ensemble.parameters():  # zeros at the start would hide a path that is not there
        torch.nn.init.normal_(parameter, std=0.4)
    return ensemble


def person(length: int, returning: bool, seed: int) -> History:
    rng = np.random.default_rng(seed)
    times = 1.6e9 + np.cumsum(rng.choice([0.0, 60.0, 7200.0, 1e6], length))
    refused = rng.integers(0, NUM_ITEMS, 2)
    ratings = rng.choice([1.0, 3.5, np.nan], length) if seed % 4 else None  # some rate everything, some nothing
    return History(rng.permutation(NUM_ITEMS)[:length], times, refused, returning, ratings)


@pytest.mark.parametrize("config", FLAVOURS, ids=lambda c: f"{c.block}-{c.num_layers}-{c.relative}-{c.timed}")
@pytest.mark.parametrize(("num_members", "num_profile"), [(1, 0), (3, 4)])
def test_a_state_is_the_ensembles(config: SequenceModelConfig, num_members: int, num_profile: int) -> None:
    ensemble = build(config, num_members, num_profile)
    reader = Reader(ensemble)
    with torch.inference_mode():
        vectors = torch.randn(NUM_ITEMS, num_members * config.dim)
        for length, returning in itertools.product([1, 2, 4, 5, 6, 9], [False, True]):
            history, profile = person(length, returning, seed=length), torch.randn(num_profile)
            log = from_histories([history], rated=config.rated)
            batch = inputs(log, config.max_events, returning=np.array([returning]))
            [expected] = ensemble.last_states(batch._replace(profiles=profile[None]), vectors)
            torch.testing.assert_close(reader.state(history, profile, vectors), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("config", FLAVOURS, ids=lambda c: f"{c.block}-{c.num_layers}-{c.relative}-{c.timed}")
def test_so_is_the_state_before_the_first_event(config: SequenceModelConfig) -> None:
    ensemble, profile = build(config, 2, 3), torch.tensor([1.0, -2.0, 0.5])
    vectors = torch.zeros(NUM_ITEMS, 2 * config.dim)
    with torch.inference_mode():
        log = from_histories([EMPTY_HISTORY], rated=config.rated)
        batch = inputs(log, config.max_events)._replace(profiles=profile[None])
        [expected] = ensemble.last_states(batch, vectors)
        torch.testing.assert_close(Reader(ensemble).state(EMPTY_HISTORY, profile, vectors), expected)


def test_a_rating_moves_the_state_and_no_rating_is_not_a_rating_of_zero() -> None:
    ensemble, profile = build(replace(PLAIN, rated=True), 1, 0), torch.zeros(0)
    reader, vectors = Reader(ensemble), torch.randn(NUM_ITEMS, 8)
    history = person(3, False, 0)
    ratings = (None, [5.0, np.nan, np.nan], [1.0, np.nan, np.nan], [0.0, 0.0, 0.0])
    states = [
        reader.state(history._replace(ratings=None if given is None else np.array(given)), profile, vectors)
        for given in ratings
    ]
    assert len({tuple(state.tolist()) for state in states}) == 4


def test_what_a_history_does_not_tell_is_refused() -> None:
    ensemble = build(replace(PLAIN, num_kinds=3), 1, 0)
    with pytest.raises(DataError, match="the events have none"):
        Reader(ensemble).state(person(2, False, 0), torch.zeros(0), torch.zeros(NUM_ITEMS, 8))
