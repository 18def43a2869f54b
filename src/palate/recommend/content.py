"""Item content as model input: the text vector beside the encoded attributes."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from palate.data.catalog import Catalog
from palate.encoders.attributes import AttributeEncoder
from palate.encoders.text import TextConfig, encode_texts

_ATTRIBUTE_SCALE = 0.1
"""Weight of a standardised attribute beside a text vector of length 1."""


def encode_content(
    catalog: Catalog,
    encoder: AttributeEncoder,
    config: TextConfig,
    progress: Callable[[int, int], None] | None = None,
) -> Float[Tensor, "item content"]:
    """Encode each row of a catalogue; a missing text counts as empty, a catalogue without texts has attributes alone.

    Raises:
        DataError: an attribute that the encoder was fitted on is absent or of the wrong type.
        ModelError: the language model cannot be used.
    """
    attributes = torch.from_numpy(encoder.transform(catalog.frame)) * _ATTRIBUTE_SCALE
    if catalog.text is None:
        return torch.cat([torch.zeros(len(attributes), 1), attributes], 1)
    texts = catalog.frame[catalog.text].fill_null("").to_list()
    return torch.cat([encode_texts(texts, config, progress=progress), attributes], 1)
