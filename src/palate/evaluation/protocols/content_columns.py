"""What is known of a protocol's items before any rating, as columns that a linear model can read."""

from collections import Counter

import numpy as np
import polars as pl
from jaxtyping import Float

from palate.evaluation.protocols.base import Setting

_COMMON = 5


def common_content(setting: Setting) -> Float[np.ndarray, "item content"]:
    """A one, whether an item has each name that at least five items have, and the year with its square."""
    columns = [np.ones(len(setting.items))]
    if setting.content is None:
        return np.column_stack(columns)
    for column, separator in setting.content.categories.items():
        names = [
            {name.strip() for name in (cell or "").split(separator)} - {""} for cell in setting.items[column].to_list()
        ]
        counts = Counter(name for cell in names for name in cell)
        columns += [np.array([name in cell for cell in names], float) for name, n in counts.items() if n >= _COMMON]
    if setting.content.time is not None:
        cells = setting.items[setting.content.time].cast(pl.Float64)
        years = cells.fill_null(strategy="mean").to_numpy()
        standard = (years - years.mean()) / max(float(years.std()), 1e-9)
        columns += [standard, standard**2]
    return np.column_stack(columns)
