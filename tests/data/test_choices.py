"""Choices against a slow reading of the record event by event; the purchase matrix and the hold-out by hand."""

from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from palate.data.choices import Choices, hold_out, purchase_matrix, read_choices, with_ratings
from palate.data.episodes import EMPTY_HISTORY, EventMeaning, History
from palate.data.log import validate_interactions
from palate.data.vocabulary import Vocabulary
from palate.errors import DataError
from people import choices_of

START = datetime(2024, 1, 1)
VOCABULARY = Vocabulary(("a", "b", "c", "d", "e"))
MINUTE, HOUR, DAY = 60.0, 3600.0, 86_400.0


def seconds(minute: int) -> float:
    return START.replace(tzinfo=UTC).timestamp() + minute * MINUTE


def log(*events: tuple[str, str, str, int]) -> pl.DataFrame:
    """Events as (person, item, type, minute)."""
    rows = [(user, item, kind, START + timedelta(minutes=minute)) for user, item, kind, minute in events]
    frame = pl.DataFrame(rows, schema=["user_id", "item_id", "event_type", "timestamp"], orient="row")
    return validate_interactions(frame, source="test")


NO = EventMeaning(frozenset({"cancel", "dislike"}), frozenset())


def choices_from(*events: tuple[str, str, str, int]) -> Choices:
    return read_choices(log(*events), VOCABULARY, NO)


def history(items: list[int], times: list[float] | None = None, refused: list[int] | None = None) -> History:
    times = [float(place) for place in range(len(items))] if times is None else times
    return History(np.array(items, np.int64), np.array(times, np.float64), np.array(refused or [], np.int64))


class TestChoices:
    def test_people_come_by_id_and_items_by_first_choice(self) -> None:
        built = choices_from(("u2", "c", "buy", 0), ("u1", "e", "buy", 1), ("u2", "a", "buy", 2), ("u1", "b", "buy", 3))
        assert list(built) == ["u1", "u2"]
        assert built["u1"].items.tolist() == [4, 1]
        assert built["u2"].items.tolist() == [2, 0]
        assert built["u2"].times.tolist() == [seconds(0), seconds(2)]

    def test_a_repeat_keeps_the_first_place_and_time(self) -> None:
        built = choices_from(("u", "a", "buy", 0), ("u", "b", "buy", 1), ("u", "a", "buy", 2))["u"]
        assert built.items.tolist() == [0, 1]
        assert built.times.tolist() == [seconds(0), seconds(1)]
        assert built.refused.tolist() == []

    def test_a_cancelled_item_leaves_and_counts_as_refused(self) -> None:
        built = choices_from(("u", "a", "buy", 0), ("u", "b", "buy", 1), ("u", "a", "cancel", 2))["u"]
        assert built.items.tolist() == [1]
        assert built.times.tolist() == [seconds(1)]
        assert built.refused.tolist() == [0]

    def test_bought_again_after_a_cancellation_comes_back_to_its_place(self) -> None:
        events = [("u", "a", "buy", 0), ("u", "a", "cancel", 1), ("u", "b", "buy", 2), ("u", "a", "buy", 3)]
        built = choices_from(*events)["u"]
        assert built.items.tolist() == [0, 1]
        assert built.times.tolist() == [seconds(0), seconds(2)]
        assert built.refused.tolist() == []

    def test_a_refusal_before_the_first_choice_does_not_move_the_choice(self) -> None:
        built = choices_from(("u", "a", "dislike", 0), ("u", "b", "buy", 1), ("u", "a", "buy", 2))["u"]
        assert built.items.tolist() == [1, 0]
        assert built.times.tolist() == [seconds(1), seconds(2)]

    def test_who_only_refused_has_an_empty_history(self) -> None:
        built = choices_from(("u", "d", "dislike", 0), ("u", "b", "dislike", 1))["u"]
        assert built.items.tolist() == []
        assert built.refused.tolist() == [3, 1]

    def test_events_of_the_same_time_keep_the_order_of_the_log(self) -> None:
        items = ["d", "a", "e", "c", "b"]
        built = choices_from(*(("u", item, "buy", 0) for item in items))["u"]
        assert built.items.tolist() == [3, 0, 4, 2, 1]
        assert built.times.tolist() == [seconds(0)] * 5

    def test_without_negative_types_every_event_is_a_choice(self) -> None:
        built = read_choices(log(("u", "a", "cancel", 0)), VOCABULARY, EventMeaning(frozenset(), frozenset()))["u"]
        assert built.items.tolist() == [0]

    def test_refusals_come_in_the_same_order_every_time(self) -> None:
        # Long enough for a sort on several threads: ties must not fall as the threads do.
        vocabulary = Vocabulary(tuple(f"i{item:05}" for item in range(20_000)))
        order = np.random.default_rng(0).permutation(20_000)
        frame = pl.DataFrame(
            {"user_id": "u", "item_id": [vocabulary.ids[item] for item in order], "event_type": "cancel"}
        ).with_columns(timestamp=pl.lit(START))
        built = read_choices(validate_interactions(frame, source="test"), vocabulary, NO)["u"]
        np.testing.assert_array_equal(built.refused, order)

    def test_the_last_rating_of_an_item_counts_and_an_item_without_one_has_none(self) -> None:
        events = log(("u", "a", "rating", 0), ("u", "b", "buy", 1), ("u", "a", "rating", 2), ("v", "b", "buy", 3))
        rated = events.with_columns(weight=pl.Series([2.0, 9.0, 4.5, 9.0]))
        built = read_choices(rated, VOCABULARY, NO._replace(rating=frozenset({"rating"})))
        assert built["u"].items.tolist() == [0, 1]
        np.testing.assert_array_equal(built["u"].ratings, [4.5, np.nan])
        assert built["v"].ratings is None
        assert [values.tolist() for values in built["u"].rated()] == [[0], [4.5]]
        assert [len(values) for values in built["v"].rated()] == [0, 0]
        np.testing.assert_array_equal(built["u"].tail(1).ratings, [np.nan])
        np.testing.assert_array_equal(built["u"].head(1).ratings, [4.5])

    def test_what_is_refused_takes_its_rating_along(self) -> None:
        events = log(("u", "a", "rating", 0), ("u", "b", "rating", 1), ("u", "a", "cancel", 2))
        rated = events.with_columns(weight=pl.Series([2.0, 3.0, 9.0]))
        built = read_choices(rated, VOCABULARY, NO._replace(rating=frozenset({"rating"})))["u"]
        assert built.refused.tolist() == [0]
        assert built.ratings.tolist() == [3.0]

    def test_an_unknown_item_is_named(self) -> None:
        with pytest.raises(DataError, match="'zebra'"):
            choices_from(("u", "a", "buy", 0), ("u", "zebra", "buy", 1))


EVENTS = st.lists(
    st.tuples(st.sampled_from("uvw"), st.sampled_from("abcde"), st.sampled_from(["buy", "cancel"]), st.integers(0, 9)),
    min_size=1,
    max_size=30,
)


@given(EVENTS)
def test_histories_equal_a_reading_event_by_event(events: list[tuple[str, str, str, int]]) -> None:
    first: dict[tuple[str, str], int] = {}
    last: dict[tuple[str, str], str] = {}
    for user, item, kind, minute in sorted(events, key=lambda event: event[3]):  # stable: ties keep their order
        last[user, item] = kind
        if kind == "buy":
            first.setdefault((user, item), minute)
    built = choices_from(*events)
    assert list(built) == sorted({user for user, *_ in events})
    for user, seen in built.items():
        # A dict keeps the order in which keys came, which is that of the first choices.
        kept = [item for person, item in first if person == user and last[person, item] == "buy"]
        assert seen.items.tolist() == VOCABULARY.index(kept).tolist()
        assert seen.times.tolist() == [seconds(first[user, item]) for item in kept]
        refused = [item for (person, item), kind in last.items() if person == user and kind == "cancel"]
        assert sorted(seen.refused.tolist()) == sorted(VOCABULARY.index(refused).tolist())


def test_purchase_matrix_marks_choices_alone() -> None:
    people = [history([2, 0]), EMPTY_HISTORY, history([3], refused=[1])]
    assert purchase_matrix(choices_of(people).chosen, 4).tolist() == [[1, 0, 1, 0], [0, 0, 0, 0], [0, 0, 0, 1]]
    assert purchase_matrix(choices_of([]).chosen, 4).shape == (0, 4)


class TestHoldOut:
    # Person p01 came first, p20 last; every fourth has too few items to play the newcomer.
    people = {
        f"p{row:02}": history([0, 1, 2][:length], [float(row), row + 50.0, row + 60.0][:length])
        for row in range(20, 0, -1)
        for length in [1 if row % 4 == 0 else 3]
    }

    def part(self, share: float, seed: int = 0) -> tuple[Choices, Choices]:
        return hold_out(choices_of(self.people), share=share, min_items=3, rng=np.random.default_rng(seed))

    def test_everyone_is_in_one_part_and_kept_whole(self) -> None:
        training, held = self.part(0.4)
        assert not training.keys() & held.keys()
        assert training.keys() | held.keys() == self.people.keys()
        for user, kept in (*training.items(), *held.items()):
            assert kept.items.tolist() == self.people[user].items.tolist()
            assert kept.times.tolist() == self.people[user].times.tolist()

    @pytest.mark.parametrize(("share", "expected"), [(0.2, 3), (0.4, 6), (0.5, 8), (1.0, 15)])
    def test_the_share_is_of_those_with_enough_items(self, share: float, expected: int) -> None:
        _, held = self.part(share)
        assert len(held) == expected  # of 15 who have three items
        assert all(len(one.items) >= 3 for one in held.values())

    def test_half_are_the_latest_to_have_come(self) -> None:
        latest = {"p19", "p18", "p17", "p15"}  # p20 and p16 have too few items
        helds = [set(self.part(0.5, seed)[1]) for seed in range(20)]
        assert all(latest <= held for held in helds)
        # The other half is drawn: over twenty draws everyone's turn comes.
        assert set.union(*helds) == {user for user, one in self.people.items() if len(one.items) == 3}

    def test_latest_is_by_first_choice_not_by_last(self) -> None:
        people = {"old": history([0, 1], [1.0, 900.0]), "new": history([0, 1], [5.0, 6.0])}
        people |= {f"x{row}": history([0, 1], [2.0, 3.0 + row]) for row in range(2)}
        for seed in range(10):
            rng = np.random.default_rng(seed)
            assert "new" in hold_out(choices_of(people), share=0.5, min_items=2, rng=rng)[1]

    def test_same_seed_same_people_in_a_fixed_order(self) -> None:
        training, held = self.part(0.5, seed=3)
        again_training, again = hold_out(
            choices_of(dict(sorted(self.people.items()))), share=0.5, min_items=3, rng=np.random.default_rng(3)
        )
        assert list(held) == list(again) == sorted(held)
        assert training.keys() == again_training.keys()
        assert list(training) == [user for user in self.people if user in training]

    def test_nobody_with_enough_items_holds_nobody_out(self) -> None:
        training, held = hold_out(choices_of(self.people), share=0.5, min_items=9, rng=np.random.default_rng(0))
        assert len(held) == 0
        assert list(training) == list(self.people)


@given(
    st.lists(
        st.tuples(st.sampled_from("uvwxy"), st.sampled_from("abc"), st.sampled_from(["buy", "cancel", "dislike"])),
        min_size=1,
        max_size=40,
    )
)
def test_everyones_histories_are_what_reading_event_by_event_gives(events: list[tuple[str, str, str]]) -> None:
    """A slow reference: the last word on an item counts, at the place of the first yes."""
    rows = [(user, item, kind, minute) for minute, (user, item, kind) in enumerate(events)]
    built = choices_from(*rows)
    assert list(built) == sorted({user for user, *_ in rows})
    for user, history in built.items():
        first: dict[str, int] = {}
        last: dict[str, bool] = {}
        for who, item, kind, minute in rows:
            if who == user:
                last[item] = kind == "buy"
                if kind == "buy":
                    first.setdefault(item, minute)
        chosen = sorted((item for item, yes in last.items() if yes), key=lambda item: first[item])
        assert [VOCABULARY.ids[item] for item in history.items] == chosen
        assert (np.diff(history.times) > 0).all()
        assert {VOCABULARY.ids[item] for item in history.refused} == {item for item, yes in last.items() if not yes}


class TestView:
    people = choices_of(
        {
            "ann": history([3, 1], refused=[2])._replace(ratings=np.array([np.nan, 4.5])),
            "bob": EMPTY_HISTORY,
            "cem": history([0], [9.0], refused=[1, 4]),
        }
    )

    def test_a_person_is_found_by_id_and_by_row(self) -> None:
        assert list(self.people) == ["ann", "bob", "cem"]
        assert "bob" in self.people
        assert "dan" not in self.people
        for row, user in enumerate(self.people):
            one, same = self.people[user], self.people.history(row)
            assert [part.tolist() for part in one[:3]] == [part.tolist() for part in same[:3]]
        assert self.people["cem"].refused.tolist() == [1, 4]
        assert self.people["cem"].ratings is None
        np.testing.assert_array_equal(self.people["ann"].ratings, [np.nan, 4.5])
        with pytest.raises(KeyError):
            self.people["dan"]

    def test_the_last_event_is_a_repeat_or_a_refusal_too(self) -> None:
        people = choices_from(("u", "a", "buy", 0), ("v", "b", "buy", 1), ("u", "a", "buy", 7), ("v", "c", "cancel", 9))
        assert people.last_seen.tolist() == [seconds(7), seconds(9)]
        assert people.last_seen_of("u") == seconds(7)
        assert people.take(np.array([1])).last_seen_of("v") == seconds(9)
        assert self.people.last_seen_of("bob") is None

    def test_some_people_are_taken_in_the_order_asked_for(self) -> None:
        some = self.people.take(np.array([2, 0]))
        assert list(some) == ["cem", "ann"]
        assert [one.items.tolist() for one in some.histories()] == [[0], [3, 1]]
        assert [one.refused.tolist() for one in some.histories()] == [[1, 4], [2]]
        assert list(self.people.without(some)) == ["bob"]
        assert list(self.people.without()) == ["ann", "bob", "cem"]

    def test_a_model_reads_a_rating_of_each_choice_or_none_at_all(self) -> None:
        chosen = self.people.chosen
        assert with_ratings(chosen, False).values is None
        np.testing.assert_array_equal(with_ratings(chosen, True).values, [np.nan, 4.5, np.nan])
        unrated = choices_of([history([1, 2])]).chosen
        assert with_ratings(unrated, False).values is None
        np.testing.assert_array_equal(with_ratings(unrated, True).values, [np.nan, np.nan])
