"""Choices after training: counts by hand, and whatever way they came in, what a plain recomputation says."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from palate.data.episodes import History
from palate.meta.evidence import EvidenceConfig, FeatureSpace, Rotation
from palate.meta.head import Items
from palate.meta.item_choices import ItemChoices
from palate.meta.item_tasks import ItemPosterior, ItemTaskConfig, gather_choosers, known_by

DAY = 86_400.0
NUM = 12
SPACE = FeatureSpace(Rotation(torch.zeros(2), torch.eye(2)), torch.zeros(3, 4))
EVIDENCE = EvidenceConfig(rank=4, shrink=2.0, exponent=0.5)


def history(items: Sequence[int], times: Sequence[float]) -> History:
    return History(np.array(items, np.int64), np.array(times, float), np.zeros(0, np.int64))


def posterior(*counts: float) -> ItemPosterior:
    """Of twelve items; training went from day 0 to day 100."""
    return ItemPosterior(
        evidence=torch.tensor([[1.0, 0.0], [0.5, 1.5]]),
        vectors=torch.tensor([[1.0, 0.0], [0.25, 2.0]]),
        bias=torch.tensor([-3.0, 2.0]),
        popularity=torch.tensor([1.0, 0.5]),
        counts=torch.full((NUM,), counts[0]) if counts else torch.arange(NUM).float(),
        rate=torch.tensor([1.0, 10.0]),
        shelf=torch.tensor([0.0, 100 * DAY, 1.0], dtype=torch.float64),
    )


def chosen(learned: ItemPosterior, items: Sequence[int], days: Sequence[float], half_life: float = 0.0) -> ItemChoices:
    """Each choice by another person."""
    choices = ItemChoices(learned, half_life)
    people = {f"u{n}": history([item], [day * DAY]) for n, (item, day) in enumerate(zip(items, days, strict=True))}
    choices.exchange({}, people)
    return choices


def test_without_choices_at_the_end_of_training_nothing_changes() -> None:
    counts = ItemChoices(posterior(), 0.0).counts(13, 100 * DAY, 0.5)
    torch.testing.assert_close(counts, torch.cat([posterior().counts, torch.zeros(1)]))


def test_by_hand() -> None:
    """100 days later twice the time has passed; a new item with 4 choices in its 40 days."""
    choices = chosen(posterior(50.0), [12, 12, 12, 12, 3, 3], [150, 160, 170, 180, 190, 110])
    counts = choices.counts(13, 190 * DAY, 0.5)
    assert counts[3] == pytest.approx(52 * 100 / 190)
    assert counts[0] == pytest.approx(50 * 100 / 190)
    assert counts[12] == pytest.approx(0.5 * 100 * (1 + 3) / (10 + 40))
    plain = chosen(posterior(50.0), [12, 12], [150, 160]).counts(13, 190 * DAY, 0.0)
    assert plain[12] == 2, "without trust in the rate choosers are counted"


def test_a_burst_is_no_more_than_the_most_popular() -> None:
    assert chosen(posterior(), [12] * 9, [100.1] * 9).counts(13, 100.1 * DAY, 1.0)[12] == 11


def test_a_new_item_that_is_no_longer_chosen_falls() -> None:
    choices = chosen(posterior(), [12] * 4, [101.0] * 4)
    fresh = [float(choices.counts(13, day * DAY, 1.0)[12]) for day in (101, 110, 200)]
    assert fresh == sorted(fresh, reverse=True)
    assert fresh[0] > 2 * fresh[2]


def test_with_a_half_life_old_choices_fade() -> None:
    """One half-life without events; a choice of today weighs one, as one of the last day did in training."""
    counts = chosen(posterior(50.0), [5], [120], 20.0).counts(12, 120 * DAY, 0.5)
    then, whole = 1 - 2 ** (-100 / 20), 1 - 2 ** (-120 / 20)
    assert counts[5] == pytest.approx((25 + 1) * then / whole)
    assert counts[0] == pytest.approx(25 * then / whole)
    later = chosen(posterior(50.0), [5], [120], 20.0).counts(12, 140 * DAY, 0.5)
    assert later[5] == pytest.approx((12.5 + 0.5) * then / (1 - 2 ** (-140 / 20)))


def test_only_what_came_after_training_counts() -> None:
    choices = ItemChoices(posterior(), 0.0)
    people = {"a": history([3, 12], [90 * DAY, 101 * DAY]), "b": history([4], [101 * DAY])}
    choices.exchange({}, people)
    counts, told = choices.counts(13, 101 * DAY, 0.5), choices.choosers(13)
    assert counts[3] == pytest.approx(3 * 100 / 101)
    assert counts[4] == pytest.approx(5 * 100 / 101)
    assert told.counts.tolist() == [1]
    assert told.joint.toarray()[0].nonzero()[0].tolist() == [3], "but it says what the chooser had"


def test_a_short_half_life_over_years_neither_overflows_nor_forgets_today() -> None:
    choices = chosen(posterior(50.0), [5, 12], [101, 101], 0.01)
    choices.exchange({}, {"late": history([5, 12], [3000 * DAY, 3000 * DAY])})
    counts = choices.counts(13, 3000 * DAY, 0.0)
    assert counts[5] == pytest.approx(1.0)
    assert counts[12] == pytest.approx(1.0)


def rows(choices: ItemChoices, now: float) -> Items:
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(NUM + 3, 2, generator=generator)
    features = torch.cat([torch.randn(NUM + 3, 7, generator=generator), vectors], 1)
    base = Items(features, vectors, torch.randn(NUM + 3, generator=generator), torch.zeros(NUM + 3))
    return choices.rows(base, now, ItemTaskConfig(sizes=(5,)), EVIDENCE, SPACE)


person = st.lists(
    st.tuples(st.integers(0, NUM + 2), st.floats(80, 200, width=32)), max_size=6, unique_by=lambda choice: choice[0]
).map(lambda found: history([item for item, _ in found], sorted(day * DAY for _, day in found)))


@given(
    st.lists(st.dictionaries(st.sampled_from("abcdef"), person, max_size=4), max_size=6), st.sampled_from([0.0, 7.0])
)
def test_however_people_changed_only_what_they_are_now_counts(
    steps: list[dict[str, History]], half_life: float
) -> None:
    choices, now = ItemChoices(posterior(), half_life), {}
    for changed in steps:
        choices.exchange({user: now[user] for user in changed if user in now}, changed)
        now |= changed
    gone = sorted(now)[::3]
    choices.exchange({user: now.pop(user) for user in gone}, {})
    plain = ItemChoices(posterior(), half_life)
    plain.exchange({}, now)
    for one, other in zip(rows(choices, 210 * DAY), rows(plain, 210 * DAY), strict=True):
        torch.testing.assert_close(one, other)
    counts = choices.counts(NUM + 3, 210 * DAY, 0.0)
    for item in range(NUM + 3):
        ages = [210 - found.times[list(found.items).index(item)] / DAY for found in now.values() if item in found.items]
        late = sum(1.0 if not half_life else 2 ** (-age / half_life) for age in ages if age < 110)
        if item >= NUM:
            assert counts[item] == pytest.approx(late, abs=1e-6)
    told = choices.choosers(NUM + 3)
    expected = gather_choosers(
        range(NUM, NUM + 3),
        [
            [
                known_by(found.items, found.times, place)
                for found in now.values()
                for place in np.flatnonzero((found.items == item) & (found.times > 100 * DAY)).tolist()
            ]
            for item in range(NUM, NUM + 3)
        ],
        NUM,
    )
    assert told.counts.tolist() == expected.counts.tolist()
    assert (told.joint.toarray() == expected.joint.toarray()).all()
    np.testing.assert_allclose(told.mean.toarray(), expected.mean.toarray(), atol=1e-12)
