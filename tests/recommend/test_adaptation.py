"""Adaptation: one person at a time and many at once are the same, and models of the same weights share it."""

import numpy as np
import polars as pl
import torch

from palate.data.catalog import Catalog
from palate.data.episodes import EMPTY_HISTORY
from palate.meta.head import score_rows
from palate.recommend import Recommender


def test_one_and_many_agree(model: Recommender) -> None:
    adaptation, users = model._adaptation, ["user-000", "user-007", "user-050"]
    histories = [EMPTY_HISTORY, *(model.users[user] for user in users)]
    profiles = torch.stack([model.encode_profile(None), *(model.profiles[user] for user in users)])
    many = adaptation.score_many(model.items, model.item_table.kin, histories, profiles)
    for row, history in enumerate(histories):
        fast = adaptation.adapt(model.items, history, profiles[row])
        one = score_rows(fast, model.item_table.scoring_rows).numpy().copy()
        named, added = model.scorers.contribution(history.items, fast["scorers"].numpy(), model.item_table.kin)
        assert len(named) or not len(history.items)
        one[named] += added
        np.testing.assert_allclose(many[row], one, atol=2e-5)


def test_what_follows_from_the_profile_is_in_every_state(model: Recommender) -> None:
    profile = model.profiles["user-000"]
    fast = model._adaptation.adapt(model.items, model.users["user-000"], profile)
    for name, value in model._adaptation.from_profile(profile).items():
        assert torch.equal(fast[name], value)


def test_more_items_do_not_read_the_weights_again(model: Recommender) -> None:
    new = Catalog.infer(pl.DataFrame({"item_id": ["new"], "title": ["garden gnome"], "price": [3.0]}))
    model.recommend([])
    assert model.add_items(new)._adaptation is model._adaptation
