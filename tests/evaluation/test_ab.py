"""Assignment by hash: stable, uniform, monotone; and the alarm when groups are of the wrong size."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from palate.errors import ConfigError, DataError
from palate.evaluation.ab import _uniform, assign, check_shares

KEY = b"experiment-1"
GOLDEN = "cbbcabbaaabcbcbcaaabbcbcacacac"
PEOPLE = [f"user-{place}" for place in range(20_000)]
weights = st.floats(0.01, 5.0)


def groups(shares: dict[str, float], key: bytes = KEY, people: list[str] = PEOPLE) -> list[str]:
    return [assign(person, shares, key) for person in people]


def test_assignment_never_changes_between_versions() -> None:
    """Golden: people of a running experiment must stay where they are."""
    shares = {"a": 1.0, "b": 1.0, "c": 1.0}
    assert "".join(assign(f"user-{place}", shares, KEY) for place in range(30)) == GOLDEN


@pytest.mark.parametrize("shares", [{"a": 1.0, "b": 1.0}, {"a": 0.95, "b": 0.05}, {"a": 3.0, "b": 2.0, "c": 5.0}])
def test_groups_are_as_large_as_their_shares(shares: dict[str, float]) -> None:
    counts = Counter(groups(shares))
    assert check_shares(counts, shares, threshold=1e-3).mismatch is False
    expected = np.array(list(shares.values())) / sum(shares.values()) * len(PEOPLE)
    np.testing.assert_allclose([counts[name] for name in shares], expected, rtol=0.15)


def test_two_experiments_mix_people_independently() -> None:
    one, two = groups({"a": 1.0, "b": 1.0}), groups({"a": 1.0, "b": 1.0}, b"experiment-2")
    table = Counter(zip(one, two, strict=True))
    assert chisquare([table[left, right] for left in "ab" for right in "ab"]).pvalue > 1e-3


def test_numbered_ids_spread_over_groups_in_every_stretch() -> None:
    """Neighbouring ids must not land together: runs of the same group are as long as a coin's."""
    row = np.array([name == "a" for name in groups({"a": 1.0, "b": 1.0})])
    changes = int((row[1:] != row[:-1]).sum())
    assert abs(changes - len(row) / 2) < 4 * np.sqrt(len(row) / 4)


@given(first=weights, second=weights, third=weights, more=st.floats(1.0, 10.0))
def test_raising_a_share_moves_nobody_out_of_it_and_nobody_else_around(
    first: float, second: float, third: float, more: float
) -> None:
    before = {"a": first, "b": second, "c": third}
    people = PEOPLE[:200]
    moves = {
        (old, new)
        for old, new in zip(
            groups(before, people=people), groups({**before, "b": second * more}, people=people), strict=True
        )
        if old != new
    }
    assert moves <= {("a", "b"), ("c", "b")}


def test_raising_a_share_moves_as_few_people_as_it_must() -> None:
    old, new = groups({"a": 0.95, "b": 0.05}), groups({"a": 0.80, "b": 0.20})
    moved = np.mean([left != right for left, right in zip(old, new, strict=True)])
    assert moved == pytest.approx(0.15, abs=0.01)


def test_order_unit_and_empty_variants_change_nothing() -> None:
    plain = groups({"a": 0.3, "b": 0.7}, people=PEOPLE[:500])
    assert groups({"b": 70.0, "off": 0.0, "a": 30.0}, people=PEOPLE[:500]) == plain


def test_names_do_not_run_into_ids() -> None:
    assert _uniform("bx", "a", KEY) != _uniform("x", "ab", KEY)
    assert assign("", {"only": 1.0}, KEY) == "only"
    assert assign("\ud800", {"only": 1.0}, KEY) == "only"


def test_the_check_is_pearsons() -> None:
    counts, shares = {"a": 5100, "b": 4900}, {"a": 1.0, "b": 1.0}
    found, expected = check_shares(counts, shares), chisquare([5100, 4900])
    assert found.chi_square == pytest.approx(expected.statistic)
    assert found.p_value == pytest.approx(expected.pvalue)
    assert found.expected == {"a": 5000.0, "b": 5000.0}
    assert not found.mismatch
    assert check_shares({"a": 5200, "b": 4800}, shares).mismatch


def test_the_check_alarms_as_seldom_as_it_says() -> None:
    rng = np.random.default_rng(0)
    alarms = [
        check_shares(dict(zip("abc", row.tolist(), strict=True)), {"a": 2.0, "b": 1.0, "c": 1.0}, threshold=0.05)
        for row in rng.multinomial(1000, [0.5, 0.25, 0.25], 2000)
    ]
    assert np.mean([found.mismatch for found in alarms]) == pytest.approx(0.05, abs=0.015)


def test_a_variant_that_lost_everyone_is_a_mismatch() -> None:
    assert check_shares({"a": 100}, {"a": 1.0, "b": 1.0}).mismatch


def test_mistakes_are_named() -> None:
    for shares in ({}, {"a": 0.0}, {"a": -1.0, "b": 1.0}, {"a": float("nan")}, {"a": float("inf")}):
        with pytest.raises(ConfigError, match="share"):
            assign("user", shares, KEY)
    with pytest.raises(ConfigError, match="key"):
        assign("user", {"a": 1.0}, b"x" * 65)
    with pytest.raises(ConfigError, match="threshold"):
        check_shares({"a": 10}, {"a": 1.0}, threshold=1.0)
    with pytest.raises(DataError, match="no share"):
        check_shares({"a": 10, "z": 3}, {"a": 1.0})
    with pytest.raises(DataError, match="below 0"):
        check_shares({"a": 10, "b": -3}, {"a": 1.0, "b": 1.0})
    with pytest.raises(DataError, match="at least 5"):
        check_shares({"a": 6, "b": 2}, {"a": 1.0, "b": 1.0})
