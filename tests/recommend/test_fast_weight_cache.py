"""A state that was kept is the one that adapting anew gives, to the bit, or it is not used."""

from dataclasses import replace
from datetime import datetime, timedelta

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from palate.data.catalog import Catalog
from palate.data.episodes import EMPTY_HISTORY, History
from palate.meta.adapter import Adapter
from palate.meta.head import Items, Layout, Support, make_head
from palate.meta.table import LEARNERS
from palate.recommend import Recommender, State
from palate.recommend.fast_weight_cache import from_bytes, to_bytes

NEW = pl.DataFrame({"item_id": ["new", "newer"], "title": ["blue kite", "red rake"], "price": [7.0, 9.0]})
histories = st.builds(
    lambda items, cut, start, returning: History(
        np.array(items[cut:], np.int64),
        start + 3600.0 * np.arange(len(items) - min(cut, len(items))),
        np.array(items[:cut], np.int64),
        returning and len(items) > cut,
    ),
    st.lists(st.integers(0, 61), max_size=24, unique=True),
    st.integers(0, 3),
    st.sampled_from([0.0, 1e9]),
    st.booleans(),
)


@pytest.fixture(scope="module")
def extended(model: Recommender) -> Recommender:
    """60 items and two that came after training."""
    return model.add_items(Catalog.infer(NEW))


def profiles(model: Recommender) -> list[torch.Tensor]:
    return [model.encode_profile({}), model.encode_profile({"country": "Italy", "age": 40.0})]


def same(one: State | None, other: State) -> bool:
    return one is not None and {name: (value.dtype, value.numpy().tobytes()) for name, value in one.fast.items()} == {
        name: (value.dtype, value.numpy().tobytes()) for name, value in other.fast.items()
    }


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(one=histories, other=histories, which=st.integers(0, 3))
def test_a_kept_state_is_recalled_for_what_it_was_made_of_alone(
    extended: Recommender, one: History, other: History, which: int
) -> None:
    first, second = profiles(extended)[which % 2], profiles(extended)[which // 2]
    made = extended.adapt_to(one, first)
    payload = extended.dump_state(made, first)
    recalled = extended.load_state(payload, one, first)
    assert same(recalled, made)
    assert recalled is not None
    assert recalled.history is one
    found = extended.load_state(payload, other, second)
    assert found is None or same(found, extended.adapt_to(other, second))
    if which in (1, 2):
        assert extended.load_state(payload, one, second) is None


def test_every_part_of_what_is_read_counts(extended: Recommender) -> None:
    history = History(np.arange(20), np.arange(20.0), np.array([30, 31]))
    profile = profiles(extended)[0]
    payload = extended.dump_state(extended.adapt_to(history, profile), profile)
    others = [
        EMPTY_HISTORY,
        history.head(19),
        history._replace(items=history.items[::-1].copy()),
        history._replace(times=history.times + np.eye(20)[19]),
        history._replace(refused=history.refused[:1]),
        history._replace(returning=True),
        History(
            history.items[4:], history.times[4:], history.refused
        ),  # the same that is read, without what came before
    ]
    # What a model reads of more has to count too. Ratings do where its members read them: see test_pipeline.
    assert History._fields == ("items", "times", "refused", "returning", "ratings")
    for other in others:
        assert extended.load_state(payload, other, profile) is None
    assert replace(extended, model_id="0" * 16).load_state(payload, history, profile) is None
    assert extended.load_state(payload, history, profile) is not None


def test_rows_that_moved_since_make_it_useless_to_whoever_chose_them_and_to_nobody_else(
    extended: Recommender,
) -> None:
    after = datetime(2024, 1, 1) + timedelta(days=141)
    chosen = pl.DataFrame(
        [(f"user-{row:03}", "new", after) for row in range(12)],
        schema=["user_id", "item_id", "timestamp"],
        orient="row",
    )
    warm = extended.with_item_events(chosen)
    profile = profiles(extended)[0]
    new = len(extended.vocabulary) - 2
    assert not torch.equal(warm.items.features[new], extended.items.features[new])
    for items, refused, remains in [([1, 2], [3], True), ([1, new], [3], False), ([1, 2], [new], False)]:
        history = History(np.array(items), np.arange(float(len(items))), np.array(refused))
        before, now = extended.adapt_to(history, profile), warm.adapt_to(history, profile)
        recalled = warm.load_state(extended.dump_state(before, profile), history, profile)
        assert (recalled is not None) == remains
        assert recalled is None or same(recalled, now)
        assert same(before, now) == remains
    # Numbers of items are a vocabulary's own: the same items under others are the same person.
    turned = extended.vocabulary.ids[:60] + extended.vocabulary.ids[60:][::-1]
    order = [*range(60), 61, 60]
    table = replace(
        extended.item_table,
        vocabulary=type(extended.vocabulary)(turned),
        rows=Items(*(column[order] for column in extended.items)),
    )
    other = replace(extended, item_table=table)
    history = History(np.array([1, 60]), np.arange(2.0), np.zeros(0, np.int64))
    payload = extended.dump_state(extended.adapt_to(history, profile), profile)
    there = history._replace(items=np.array([1, 61]))
    assert same(other.load_state(payload, there, profile), other.adapt_to(there, profile))
    assert other.load_state(payload, history, profile) is None


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_and_foreign_bytes_are_no_state_and_no_error(extended: Recommender, data: st.DataObject) -> None:
    history, profile = History(np.arange(5), np.arange(5.0), np.array([9])), profiles(extended)[0]
    made = extended.adapt_to(history, profile)
    payload = bytearray(extended.dump_state(made, profile))
    assert extended.load_state(data.draw(st.binary(max_size=300)), history, profile) is None
    assert extended.load_state(bytes(payload[: data.draw(st.integers(0, len(payload) - 1))]), history, profile) is None
    place, value = data.draw(st.integers(0, len(payload) - 1)), data.draw(st.integers(0, 255))
    assume(payload[place] != value)
    payload[place] = value
    found = extended.load_state(bytes(payload), history, profile)
    assert found is None or same(found, made)  # a space more or less in what the tensors are called by


@pytest.mark.parametrize("learner", LEARNERS)
def test_what_is_left_out_is_put_back_for_every_learner(learner: str) -> None:
    torch.manual_seed(0)
    items = Items(torch.randn(40, 6), torch.randn(40, 4), torch.randn(40), torch.randn(40))
    layout = Layout(torch.linspace(-1, 1, 6), torch.tensor([1.0, 0.0] * 3), torch.tensor([0.0, 1.0] * 3), 3)
    params = {
        name: value + 0.1 * torch.randn(value.shape)
        if value.is_floating_point() and not name.startswith("fixed.")
        else value
        for name, value in make_head(learner, 6, 3).params(layout, items).items()
    }
    adapter = Adapter(learner, {}, params)
    for size in (0, 1, 7):
        weight = torch.ones(max(size, 1)) * bool(size)
        features = torch.randn(max(size, 1), 6) * weight[:, None]
        support = Support(features, weight, weight, torch.randn(4), torch.tensor(0.0))
        profile = torch.randn(3)
        with torch.inference_mode():
            fast = adapter.adapt(profile, support)
            payload = to_bytes(fast, adapter.rest(profile), b"these")
            found = from_bytes(payload, adapter.rest(profile), b"these")
            assert from_bytes(payload, adapter.rest(profile), b"others") is None
        assert found is not None
        assert {name: value.numpy().tobytes() for name, value in found.items()} == {
            name: value.numpy().tobytes() for name, value in fast.items()
        }


def test_what_follows_from_the_model_is_not_kept(extended: Recommender) -> None:
    history, profile = History(np.arange(5), np.arange(5.0), np.array([9])), profiles(extended)[1]
    made = extended.adapt_to(history, profile)
    own = made.fast["state"].numel() + made.fast["delta"].numel()
    assert 4 * own < len(extended.dump_state(made, profile)) < 4 * own + 300
