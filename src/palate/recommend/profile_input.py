"""What a caller gives as a person's attributes, encoded as in training."""

from collections.abc import Mapping

import polars as pl
import torch
from jaxtyping import Float
from torch import Tensor

from palate.encoders.attributes import AttributeEncoder
from palate.errors import ConfigError, DataError

_TYPES = {"numeric": pl.Float64, "categorical": pl.String}


def encode_profile(encoder: AttributeEncoder, profile: Mapping[str, object] | None) -> Float[Tensor, "profile"]:
    """Encode a person's attributes; missing ones count as unknown.

    Raises:
        ConfigError: an attribute that the model does not know.
        DataError: a value of the wrong type.
    """
    columns, given = encoder.columns, dict(profile or {})
    unknown = sorted(set(given).difference(column.name for column in columns))
    if unknown:
        known = ", ".join(column.name for column in columns) or "none"
        raise ConfigError(f"profile attribute {unknown[0]!r} is unknown; the model knows: {known}")
    try:
        row = pl.DataFrame(
            {column.name: pl.Series([given.get(column.name)], dtype=_TYPES[column.kind]) for column in columns}
            or {"": [None]}
        )
    except TypeError:
        expected = ", ".join(f"{c.name}: {'a number' if c.kind == 'numeric' else 'text'}" for c in columns)
        raise DataError(f"profile {given} has a value of the wrong type; expected {expected}") from None
    return torch.from_numpy(encoder.transform(row)[0])
