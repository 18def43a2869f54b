"""What is given of a person's attributes, as the encoder that training fitted reads it."""

import polars as pl
import pytest
import torch

from palate.encoders.attributes import AttributeConfig, AttributeEncoder
from palate.errors import ConfigError, DataError
from palate.recommend.profile_input import encode_profile

FRAME = pl.DataFrame({"age": [20.0, 30.0, None], "country": ["Italy", "Spain", "Italy"]})


@pytest.fixture(scope="module")
def encoder() -> AttributeEncoder:
    return AttributeEncoder.fit(FRAME, ("age",), ("country",), AttributeConfig())


@pytest.mark.parametrize("row", range(3))
def test_it_is_the_row_that_training_encoded(encoder: AttributeEncoder, row: int) -> None:
    expected = torch.from_numpy(encoder.transform(FRAME))[row]
    assert torch.equal(encode_profile(encoder, FRAME.row(row, named=True)), expected)


def test_what_is_missing_is_unknown(encoder: AttributeEncoder) -> None:
    unknown = encode_profile(encoder, None)
    assert torch.equal(encode_profile(encoder, {}), unknown)
    assert torch.equal(encode_profile(encoder, {"age": None}), unknown)


def test_a_model_without_attributes_has_an_empty_profile() -> None:
    nothing = AttributeEncoder.fit(pl.DataFrame({"user_id": ["a"]}), (), (), AttributeConfig())
    assert encode_profile(nothing, None).shape == (0,)
    with pytest.raises(ConfigError, match=r"'age' is unknown; the model knows: none\Z"):
        encode_profile(nothing, {"age": 3})


def test_what_cannot_be_read_is_named(encoder: AttributeEncoder) -> None:
    with pytest.raises(ConfigError, match=r"'height' is unknown; the model knows: age, country\Z"):
        encode_profile(encoder, {"height": 180, "age": 3})
    with pytest.raises(DataError, match="expected age: a number, country: text"):
        encode_profile(encoder, {"age": "old"})
