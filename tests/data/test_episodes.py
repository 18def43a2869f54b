"""Histories whole, up to some moment and going on, by hand."""

import numpy as np
import pytest

from palate.data.episodes import EMPTY_HISTORY, History


def history(items: list[int], times: list[float] | None = None, refused: list[int] | None = None) -> History:
    times = [float(place) for place in range(len(items))] if times is None else times
    return History(np.array(items, np.int64), np.array(times, np.float64), np.array(refused or [], np.int64))


class TestHeadAndTail:
    whole = history([3, 1, 4], refused=[2])

    def test_head_knows_nothing_of_what_came_after(self) -> None:
        head = self.whole.head(2)
        assert (head.items.tolist(), head.times.tolist(), head.refused.tolist()) == ([3, 1], [0.0, 1.0], [])
        assert self.whole.head(0).items.tolist() == []

    def test_tail_is_the_most_recent_and_keeps_the_refusals(self) -> None:
        tail = self.whole.tail(2)
        assert (tail.items.tolist(), tail.times.tolist(), tail.refused.tolist()) == ([1, 4], [1.0, 2.0], [2])

    @pytest.mark.parametrize("length", [3, 4, 100])
    def test_more_than_there_is_gives_all(self, length: int) -> None:
        assert self.whole.tail(length).items.tolist() == [3, 1, 4]
        assert self.whole.head(length).items.tolist() == [3, 1, 4]

    def test_tail_of_nothing_is_empty(self) -> None:
        assert self.whole.tail(0).items.tolist() == []
        assert EMPTY_HISTORY.tail(5).items.tolist() == []


def test_what_came_later_follows_with_its_ratings_and_a_repeat_adds_nothing() -> None:
    before = history([3, 1], [0.0, 1.0], refused=[4])._replace(ratings=np.array([2.0, np.nan]))
    later = history([1, 0, 2], [5.0, 6.0, 7.0], refused=[3])._replace(ratings=np.array([1.0, 5.0, np.nan]))
    whole = before.then(later)
    assert whole.items.tolist() == [3, 1, 0, 2]
    assert whole.times.tolist() == [0.0, 1.0, 6.0, 7.0]
    assert whole.refused.tolist() == [3]
    np.testing.assert_array_equal(whole.ratings, [2.0, np.nan, 5.0, np.nan])
    plain = before.then(history([0], [6.0]))
    np.testing.assert_array_equal(plain.ratings, [2.0, np.nan, np.nan])
    assert history([1]).then(history([2])).ratings is None
