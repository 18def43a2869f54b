"""Whether a meta-trained head ranks better than chance, with the evidence for it: an interval over people.

Chance is a list in random order for the same validation people. Each person has one random order for all of their
episodes, and is paired with it. Comparing with the expectation of a random order instead would take bad luck for a
broken model where hits are rare: in a catalogue of 3,000 items a list that knows nothing hits nothing for most people,
and the interval of 20 of them lay below the expectation in half of the simulated cases. Paired with a drawn order, at
most 5 in 100 did, from 10 people on.
"""

from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Int64

from palate.significance import paired_difference

MIN_USERS = 10
"""An interval over fewer people is no evidence: it excludes chance more often than it says."""


@dataclass(frozen=True)
class Quality:
    """How the lists of the validation people compare with lists in random order."""

    num_users: int
    """Validation people."""
    ndcg: float
    """Their NDCG@10: the mean over people of the mean over their episodes."""
    random: float
    """The same for lists in random order."""
    low: float
    """Of `ndcg` minus `random`: the lower end of its 95 % interval over people."""
    high: float

    @property
    def verdict(self) -> Literal["better", "inconclusive", "worse"]:
        """What is shown of the lists against random order."""
        if self.num_users < MIN_USERS or self.low <= 0 <= self.high:
            return "inconclusive"
        return "better" if self.low > 0 else "worse"

    def describe(self) -> str:
        """Say it in words."""
        finding = {
            "better": "the lists are better than lists in random order",
            "inconclusive": "the lists cannot be told apart from lists in random order",
            "worse": "the lists are worse than lists in random order",
        }[self.verdict]
        few = f" (an interval needs at least {MIN_USERS} people)" if self.num_users < MIN_USERS else ""
        return (
            f"{finding}: NDCG@10 {self.ndcg:.4f} against {self.random:.4f} for {self.num_users:,} validation "
            f"{'person' if self.num_users == 1 else 'people'}, 95 % interval of the difference "
            f"{self.low:+.4f} to {self.high:+.4f}{few}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a model folder and a report."""
        return asdict(self) | {"verdict": self.verdict, "text": self.describe()}


def compare_with_chance(
    ndcg: Float[np.ndarray, "episode"], random: Float[np.ndarray, "episode"], users: Int64[np.ndarray, "episode"]
) -> Quality:
    """Compare the lists of episodes with lists in random order; people, who may have several episodes, are the unit.

    Raises:
        NumericalError: a value is NaN or infinite.
    """
    _, person = np.unique(users, return_inverse=True)
    counts = np.bincount(person)
    ours, chance = (np.bincount(person, values) / counts for values in (ndcg, random))
    found = paired_difference(ours, chance)
    return Quality(len(counts), float(ours.mean()), float(chance.mean()), found.low, found.high)
