"""Supports by hand: targets, refusals, padding."""

import numpy as np
import torch

from palate.data.episodes import EMPTY_HISTORY, History
from palate.meta.tasks import make_supports

FEATURES = torch.arange(1.0, 11.0).view(5, 2)


def history(items: list[int], refused: list[int]) -> History:
    return History(np.array(items, np.int64), np.arange(len(items), dtype=float), np.array(refused, np.int64))


def test_choices_come_first_then_refusals_then_padding() -> None:
    states = torch.randn(3, 4)
    support = make_supports([history([4, 0], [2]), EMPTY_HISTORY, history([], [1, 3])], FEATURES, states)
    nothing = [0.0, 0.0]
    assert support.features.tolist() == [
        [[9, 10], [1, 2], [5, 6]],
        [nothing, nothing, nothing],
        [[3, 4], [7, 8], nothing],
    ]
    assert support.target.tolist() == [[1, 1, -1], [0, 0, 0], [-1, -1, 0]]
    assert support.weight.tolist() == [[1, 1, 1], [0, 0, 0], [1, 1, 0]]
    assert torch.equal(support.state, states)
    assert support.returning.tolist() == [0, 0, 0]
    back = make_supports([history([4], [])._replace(returning=True), EMPTY_HISTORY], FEATURES, states[:2])
    assert back.returning.tolist() == [1, 0]


def test_nobody_with_an_event_still_has_a_place() -> None:
    assert make_supports([EMPTY_HISTORY], FEATURES, torch.zeros(1, 4)).weight.tolist() == [[0]]
    assert make_supports([], FEATURES, torch.zeros(0, 4)).features.shape == (0, 1, 2)
