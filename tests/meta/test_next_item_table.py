"""The table against its least-squares problem written out row by row."""

import numpy as np
import pytest

from palate.data.event_log import from_sequences
from palate.errors import ConfigError, DataError
from palate.meta.next_item_table import NextItemTableConfig, fit_next_item_table


def by_rows(histories: list[list[int]], num_items: int, config: NextItemTableConfig) -> np.ndarray:
    """Each event's past and future as dense rows, then ridge regression."""
    pasts, futures = [], []
    for history in histories:
        for t in range(len(history) - 1):
            past, future = np.zeros(num_items), np.zeros(num_items)
            for s in range(t + 1):
                past[history[s]] += config.decay ** (t - s)
            ahead = history[t + 1 : t + 1 + config.horizon]
            weights = config.horizon_decay ** np.arange(len(ahead))
            np.add.at(future, ahead, weights / weights.sum())
            pasts.append(past)
            futures.append(future)
    x, y = np.array(pasts), np.array(futures)
    return np.linalg.solve(x.T @ x + config.penalty * np.eye(num_items), x.T @ y)


@pytest.mark.parametrize("repeats", [False, True])
def test_the_table_solves_the_regression(repeats: bool) -> None:
    rng = np.random.default_rng(0)
    histories = [
        (rng.integers(0, 9, size) if repeats else rng.permutation(9)[:size]).tolist() for size in (1, 2, 5, 9, 8, 7)
    ]
    config = NextItemTableConfig(decay=0.7, penalty=2.0, horizon=3)
    found = fit_next_item_table(from_sequences(histories), 9, config)
    np.testing.assert_allclose(found, by_rows(histories, 9, config), atol=1e-5)


def test_long_histories_forget_only_what_is_older_than_memory() -> None:
    history = np.random.default_rng(1).integers(0, 5, 700).tolist()
    config = NextItemTableConfig(decay=0.7, penalty=5.0, memory=60)
    found = fit_next_item_table(from_sequences([history]), 5, config)
    np.testing.assert_allclose(found, by_rows([history], 5, config), atol=1e-5)


def test_a_chain_is_found() -> None:
    histories = [[(first + step) % 6 for step in range(4)] for first in range(6)] * 20
    found = fit_next_item_table(from_sequences(histories), 6, NextItemTableConfig(decay=0.5, penalty=0.1, horizon=1))
    assert (found.argmax(1) == (np.arange(6) + 1) % 6).all()


def test_bad_settings_and_an_item_outside() -> None:
    for setting in ({"decay": 0.0}, {"penalty": 0.0}, {"horizon": 0}, {"memory": 0}, {"horizon_decay": 1.5}):
        with pytest.raises(ConfigError, match=next(iter(setting))):
            NextItemTableConfig(**setting)
    with pytest.raises(DataError, match="true size"):
        fit_next_item_table(from_sequences([[0, 7]]), 7, NextItemTableConfig())
