"""One person's fast weights, and what they were made of."""

from dataclasses import dataclass

import numpy as np

from palate.data.episodes import History
from palate.errors import ModelError
from palate.meta.learner import Fast


@dataclass(frozen=True, eq=False, repr=False)
class State:
    """One person's fast weights after their events; valid for the model that made it, and for no other."""

    model_id: str
    fast: Fast
    history: History

    def __repr__(self) -> str:
        chosen, refused = len(self.history.items), len(self.history.refused)
        return f"<palate.State of model {self.model_id}: {chosen} items chosen, {refused} refused>"

    def check(self, model_id: str, num_items: int) -> None:
        """Refuse a state that a model cannot read.

        Raises:
            ModelError: another model made it, or it knows items that this one lacks.
        """
        if self.model_id != model_id:
            raise ModelError(
                f"the state was made by model {self.model_id}, this is {model_id}; adapt again from the events"
            )
        # `add_items` keeps the weights and so the model id: the state may know items that this catalogue lacks.
        named = np.concatenate([self.history.items, self.history.refused])
        if named.max(initial=-1) >= num_items:
            raise ModelError(
                f"the state names items beyond the {num_items:,} of this model; add those items to it first"
            )
