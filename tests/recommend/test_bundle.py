"""The bundle: a model's parts as files in memory, and the same parts again."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from palate.errors import ModelError
from palate.recommend import Recommender
from palate.recommend.bundle import FILES, from_files, identify, to_files


def test_files_give_the_same_files_again(model: Recommender) -> None:
    files = to_files(model._bundle)
    assert tuple(files) == FILES
    again = from_files(files, "here")
    assert to_files(again) == files
    assert again.item_table.titles == model.titles
    assert again.record[:2] == model.record[:2]
    for name, column in vars(model.record.log).items():
        np.testing.assert_array_equal(getattr(again.record.log, name), column)


def test_the_id_is_that_of_the_weights_alone(model: Recommender) -> None:
    table = model.item_table
    assert identify(model.backbone, model.params, model.scorers, table, model.ratings) == model.model_id
    moved = {**model.params, "popularity": model.params["popularity"] + 1}
    assert identify(model.backbone, moved, model.scorers, table, model.ratings) != model.model_id
    assert (
        identify(model.backbone, model.params, model.scorers, table.without_choices(), model.ratings) == model.model_id
    )
    ease = model.scorers.fitted["ease"]
    other = replace(model.scorers, fitted={**model.scorers.fitted, "ease": ease._replace(weights=ease.weights * 2)})
    assert identify(model.backbone, model.params, other, table, model.ratings) != model.model_id


def test_what_was_learned_of_ratings_is_in_the_id(rated_model: Recommender) -> None:
    parts = (rated_model.backbone, rated_model.params, rated_model.scorers, rated_model.item_table)
    assert identify(*parts, rated_model.ratings) == rated_model.model_id
    assert identify(*parts, None) != rated_model.model_id


@pytest.mark.parametrize("name", FILES)
def test_what_is_damaged_is_refused_in_one_line(model: Recommender, name: str) -> None:
    files = to_files(model._bundle)
    with pytest.raises(ModelError, match=r"\Ahere[^\n]*\Z"):
        from_files({**files, name: files[name][: len(files[name]) // 2]}, "here")
    with pytest.raises(ModelError, match=r"\Ahere: not a Palate model[^\n]*\Z"):
        from_files({other: content for other, content in files.items() if other != name}, "here")


def test_parts_of_a_bundle_are_what_the_model_has(model: Recommender) -> None:
    bundle = model._bundle
    assert bundle.item_table is model.item_table
    assert bundle.params is model.params
    assert torch.equal(bundle.profiles["user-000"], model.profiles["user-000"])
