"""Histories by hand as everyone's choices."""

from collections.abc import Mapping, Sequence

import numpy as np

from palate.data.choices import Choices
from palate.data.episodes import History
from palate.data.event_log import from_histories, from_sequences


def choices_of(people: Mapping[str, History] | Sequence[History]) -> Choices:
    """Of people by id, or of people who are called by their places."""
    named = people if isinstance(people, Mapping) else {f"p{row:03}": one for row, one in enumerate(people)}
    rated = any(one.ratings is not None for one in named.values())
    return Choices(
        tuple(named),
        from_histories(named.values(), rated=rated),
        from_sequences(one.refused for one in named.values()),
        np.array([one.times[-1] if len(one.times) else np.nan for one in named.values()]),
    )
