"""A state is for the model that made it, and for the items that this model knows."""

import numpy as np
import pytest
import torch

from palate.data.episodes import History
from palate.errors import ModelError
from palate.recommend import State

STATE = State("a" * 16, {"delta": torch.zeros(500)}, History(np.array([3, 9]), np.arange(2.0), np.array([7])))


def test_a_state_of_this_model_is_read() -> None:
    STATE.check("a" * 16, 10)


def test_another_model_and_fewer_items_are_refused() -> None:
    with pytest.raises(ModelError, match=r"\Athe state was made by model a{16}, this is b{16}; adapt again"):
        STATE.check("b" * 16, 10)
    with pytest.raises(ModelError, match="names items beyond the 9 of this model; add those items to it first"):
        STATE.check("a" * 16, 9)
