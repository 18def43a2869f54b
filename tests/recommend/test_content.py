"""Item content as model input: the text vector, and beside it the attributes at a tenth of their scale."""

import numpy as np
import polars as pl
import torch

from palate.config import Config
from palate.data.catalog import Catalog
from palate.encoders.attributes import AttributeConfig, AttributeEncoder
from palate.encoders.text import encode_texts
from palate.recommend.content import encode_content

FRAME = pl.DataFrame({"item_id": ["a", "b", "c"], "title": ["garden hose", None, ""], "price": [1.0, 2.0, 6.0]})
PRICES = AttributeEncoder.fit(FRAME, ["price"], [], AttributeConfig())


def test_text_then_attributes(tiny: Config) -> None:
    content = encode_content(Catalog.infer(FRAME), PRICES, tiny.text)
    assert torch.equal(content[:, :-1], encode_texts(["garden hose", "", ""], tiny.text))
    standardised = (np.array([1.0, 2.0, 6.0]) - 3.0) / np.sqrt(14 / 3)
    np.testing.assert_allclose(content[:, -1], 0.1 * standardised, rtol=1e-6)


def test_a_missing_text_is_an_empty_one(tiny: Config) -> None:
    content = encode_content(Catalog.infer(FRAME), PRICES, tiny.text)
    assert torch.equal(content[1, :-1], content[2, :-1])
    assert not torch.allclose(content[0, :-1], content[1, :-1], atol=0.1)


def test_without_text_there_are_attributes_alone(tiny: Config) -> None:
    content = encode_content(Catalog(FRAME, None, ("price",), ()), PRICES, tiny.text)
    assert content.shape == (3, 2)
    assert torch.equal(content[:, 0], torch.zeros(3))
