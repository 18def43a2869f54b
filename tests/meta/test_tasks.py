"""Supports by hand: targets, refusals, padding."""

import numpy as np
import torch

from palate.data.episodes import EMPTY_HISTORY, History
from palate.meta.head import Support
from palate.meta.tasks import make_support, make_supports
from people import choices_of

FEATURES = torch.arange(1.0, 11.0).view(5, 2)


def history(items: list[int], refused: list[int]) -> History:
    return History(np.array(items, np.int64), np.arange(len(items), dtype=float), np.array(refused, np.int64))


def supports(people: list[History], states: torch.Tensor) -> Support:
    found = choices_of(people)
    returning = np.array([one.returning for one in people], np.bool_)
    return make_supports(found.chosen, found.refused, returning, FEATURES, states)


def test_choices_come_first_then_refusals_then_padding() -> None:
    states = torch.randn(3, 4)
    support = supports([history([4, 0], [2]), EMPTY_HISTORY, history([], [1, 3])], states)
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
    back = supports([history([4], [])._replace(returning=True), EMPTY_HISTORY], states[:2])
    assert back.returning.tolist() == [1, 0]


def test_nobody_with_an_event_still_has_a_place() -> None:
    assert supports([EMPTY_HISTORY], torch.zeros(1, 4)).weight.tolist() == [[0]]
    assert supports([], torch.zeros(0, 4)).features.shape == (0, 1, 2)


def test_one_person_alone_has_the_same_support() -> None:
    for one in (history([4, 0], [2]), EMPTY_HISTORY, history([], [1, 3]), history([1], [])._replace(returning=True)):
        state = torch.randn(4)
        together, alone = supports([one], state[None]), make_support(one, FEATURES, state)
        assert all(torch.equal(part[0], own) for part, own in zip(together, alone, strict=True))
