"""Counts of profiles by hand, and what may not be counted."""

import math

import numpy as np
import pytest

from palate.data.event_log import EventLog
from palate.errors import ConfigError, DataError
from palate.meta.profile_table import fit_profile_table


def make_log(profiles: list[list[float]] | None) -> EventLog:
    """Three people; the first two chose items 0, 0 and 1, the last one 1 and 2."""
    known = None if profiles is None else np.array(profiles, np.float32)
    return EventLog(np.array([0, 0, 1, 1, 2], np.int32), np.array([0, 2, 3, 5]), profiles=known)


def test_by_hand() -> None:
    table = fit_profile_table(make_log([[1, 0], [1, 0], [0, 1]]), 4, strength=2.0)
    # Shares of all five choices: .4, .4, .2, 0; the first feature's people made 3 of them, the second's 2.
    first = [math.log((2 + 2) / (1.2 + 2)), math.log((1 + 2) / (1.2 + 2)), math.log((0 + 2) / (0.6 + 2)), 0.0]
    second = [math.log(2 / 2.8), math.log(3 / 2.8), math.log(3 / 2.4), 0.0]
    np.testing.assert_allclose(table, [first, second], rtol=1e-6)


def test_what_everyone_has_says_nothing_and_strength_tempers() -> None:
    log = make_log([[1, 1], [1, 0], [1, 0]])
    assert np.abs(fit_profile_table(log, 3)[0]).max() < 1e-6
    weak, strong = (np.abs(fit_profile_table(log, 3, strength)[1]).max() for strength in (1.0, 100.0))
    assert weak > strong > 0


def test_refusals() -> None:
    with pytest.raises(ConfigError, match="the strength is 0"):
        fit_profile_table(make_log([[1.0]] * 3), 3, 0.0)
    with pytest.raises(DataError, match="the log has no profiles"):
        fit_profile_table(make_log(None), 3)
    with pytest.raises(DataError, match="negative feature"):
        fit_profile_table(make_log([[1.0], [-1.0], [0.0]]), 3)
    with pytest.raises(DataError, match="holds item 2, the catalogue 2"):
        fit_profile_table(make_log([[1.0]] * 3), 2)
