"""The backbone reads only the past, whoever shares the batch; an item is id plus content; gradients have gradients."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.func import functional_call, grad

from palate.backbone.transformer import Backbone, BackboneConfig, ItemTower
from palate.data.episodes import EMPTY_HISTORY, History, pack
from palate.errors import ConfigError

NUM_ITEMS, NUM_CONTENT, NUM_PROFILE, MAX_EVENTS = 12, 5, 3, 8
WAITS = np.array([0, 60, 7200, 2 * 86_400, 10 * 86_400, 90 * 86_400, 30, 100.0])


def make_backbone(**changes: Any) -> Backbone:
    torch.manual_seed(0)
    config = BackboneConfig(**({"dim": 8, "num_layers": 2, "max_events": MAX_EVENTS} | changes))
    backbone = Backbone(config, torch.randn(NUM_ITEMS, NUM_CONTENT), NUM_PROFILE).eval()
    with torch.no_grad():
        # The small initial scales would hide what a part contributes.
        backbone.profile.normal_()
        backbone.position.normal_()
        backbone.gap.normal_()
    return backbone


def history(items: list[int]) -> History:
    return History(np.array(items, np.int64), 1.7e9 + WAITS[: len(items)].cumsum(), np.zeros(0, np.int64))


def states_of(backbone: Backbone, people: list[History], width: int | None = None) -> Tensor:
    profiles = torch.linspace(-1, 1, NUM_PROFILE).repeat(len(people), 1)
    with torch.no_grad():
        states: Tensor = backbone(backbone.items(), pack(people, width), profiles)
    return states


class TestBackbone:
    @pytest.mark.parametrize("changed", range(6))
    def test_an_event_changes_the_states_after_it_alone(self, changed: int) -> None:
        backbone = make_backbone()
        before = states_of(backbone, [history([0, 1, 2, 3, 4, 5])])[0]
        items = [0, 1, 2, 3, 4, 5]
        items[changed] = 11
        after = states_of(backbone, [history(items)])[0]
        # Position n has read n events: event j (from 0) is first read at position j + 1.
        torch.testing.assert_close(after[: changed + 1], before[: changed + 1], rtol=0, atol=0)
        assert ((after - before).abs().amax(1)[changed + 1 :] > 1e-4).all()

    @settings(max_examples=25, deadline=None)
    @given(st.permutations(range(NUM_ITEMS)), st.integers(0, MAX_EVENTS), st.integers(0, MAX_EVENTS))
    def test_a_longer_history_keeps_the_states_of_its_beginning(self, items: list[int], length: int, cut: int) -> None:
        backbone = make_backbone(num_layers=1)
        whole = history(list(items[:length]))
        begun = states_of(backbone, [whole.head(min(cut, length))])[0]
        longer = states_of(backbone, [whole])[0]
        places = min(cut, length) + 1
        torch.testing.assert_close(longer[:places], begun[:places], rtol=1e-5, atol=1e-6)

    def test_padding_and_neighbours_are_inert(self) -> None:
        backbone = make_backbone()
        short = history([3, 1, 4])
        alone = states_of(backbone, [short])
        for states in (
            states_of(backbone, [short], MAX_EVENTS),
            states_of(backbone, [short, history([5, 2, 6, 7, 8]), EMPTY_HISTORY]),
        ):
            torch.testing.assert_close(states[0, :4], alone[0], rtol=0, atol=1e-6)

    def test_before_any_event_the_state_is_of_the_profile(self) -> None:
        backbone = make_backbone()
        vectors, sequences = backbone.items(), pack([EMPTY_HISTORY, EMPTY_HISTORY])
        same = backbone(vectors, sequences, torch.ones(2, NUM_PROFILE))[:, 0]
        torch.testing.assert_close(same[0], same[1])
        other = backbone(vectors, sequences, torch.tensor([[1.0, 1, 1], [1, -1, 1]]))[:, 0]
        assert (other[0] - other[1]).abs().max() > 1e-2

    def test_the_profile_is_read_after_events_too(self) -> None:
        backbone = make_backbone()
        sequences = pack([history([1, 2]), history([1, 2])])
        states = backbone(backbone.items(), sequences, torch.tensor([[1.0, 1, 1], [1, -1, 1]]))
        assert ((states[0] - states[1]).abs().amax(1) > 1e-3).all()

    def test_order_and_waiting_time_count(self) -> None:
        backbone = make_backbone()
        usual = states_of(backbone, [history([1, 2])])[0, -1]
        assert (states_of(backbone, [history([2, 1])])[0, -1] - usual).abs().max() > 1e-3
        hurried = history([1, 2])._replace(times=np.array([1.7e9, 1.7e9 + 100 * 86_400]))
        assert (states_of(backbone, [hurried])[0, -1] - usual).abs().max() > 1e-3

    def test_order_counts_by_the_position_alone(self) -> None:
        # Without gaps, one layer sees the events before the last as a set, but for their positions.
        backbone = make_backbone(num_layers=1)
        with torch.no_grad():
            backbone.gap.zero_()
        states = states_of(backbone, [history([1, 2, 3]), history([2, 1, 3])])[:, -1]
        assert (states[0] - states[1]).abs().max() > 1e-3

    def test_more_events_than_it_reads_are_refused(self) -> None:
        with pytest.raises(ValueError, match=f"hold 9 events; the backbone reads {MAX_EVENTS}"):
            states_of(make_backbone(), [history([1])], MAX_EVENTS + 1)

    def test_dropout_is_for_training_alone(self) -> None:
        backbone = make_backbone(dropout=0.5, id_dropout=0.0)
        people = [history([1, 2, 3])]
        torch.testing.assert_close(states_of(backbone, people), states_of(backbone, people), rtol=0, atol=0)
        backbone.train()
        assert (states_of(backbone, people) - states_of(backbone, people)).abs().max() > 1e-3

    def test_the_second_derivative_exists_and_is_right(self) -> None:
        backbone = make_backbone().double()
        sequences, profiles = pack([history([1, 2, 3])]), torch.ones(1, NUM_PROFILE, dtype=torch.float64)
        name = "blocks.0.attention.query.weight"
        parameters = {key: value.detach() for key, value in backbone.named_parameters()}
        vectors = backbone.items().detach()
        direction = torch.randn(8, 8, dtype=torch.float64)

        def loss(weight: Tensor) -> Tensor:
            states: Tensor = functional_call(backbone, parameters | {name: weight}, (vectors, sequences, profiles))
            return states[0, -1].square().sum()

        def along(weight: Tensor) -> Tensor:
            return (grad(loss)(weight) * direction).sum()

        weight = parameters[name]
        second = (grad(along)(weight) * direction).sum()
        step = 1e-4
        ahead, behind = loss(weight + step * direction), loss(weight - step * direction)
        torch.testing.assert_close(second, (ahead - 2 * loss(weight) + behind) / step**2, rtol=1e-4, atol=1e-6)
        assert second.abs() > 1e-3


class TestItemTower:
    def make(self, id_dropout: float) -> ItemTower:
        torch.manual_seed(0)
        return ItemTower(torch.randn(200, NUM_CONTENT), 6, id_dropout)

    def test_a_vector_is_id_plus_content(self) -> None:
        tower = self.make(0.5).eval()
        expected = tower.ids.weight + tower.content @ tower.project.weight.T
        torch.testing.assert_close(tower(), expected)

    def test_an_item_without_an_id_is_its_content(self) -> None:
        tower = self.make(0.0).eval()
        with torch.no_grad():
            tower.ids.weight[3] = 0
        torch.testing.assert_close(tower()[3], tower.encode_new(tower.content[3:4])[0])

    def test_ids_are_dropped_whole_and_in_training_alone(self) -> None:
        tower = self.make(0.3)
        whole, content = tower.eval()(), tower.encode_new(tower.content)
        torch.testing.assert_close(tower(), whole, rtol=0, atol=0)
        vectors = tower.train()()
        dropped, kept = (vectors == content).all(1), (vectors == whole).all(1)
        assert (dropped ^ kept).all()
        assert 30 <= int(dropped.sum()) <= 90  # 60 of 200 on average
        assert not torch.equal(tower(), vectors)

    def test_without_id_dropout_training_is_exact(self) -> None:
        tower = self.make(0.0)
        torch.testing.assert_close(tower.train()(), tower.eval()(), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"dim": 9}, "backbone.dim is 9"),
        ({"num_layers": -1}, "backbone.num_layers is -1"),
        ({"max_events": 0}, "backbone.max_events is 0"),
        ({"dropout": 1.0}, "backbone.dropout is 1.0"),
        ({"id_dropout": -0.1}, "backbone.id_dropout is -0.1"),
        ({"num_heads": 0}, "backbone.num_heads is 0"),
    ],
)
def test_a_bad_size_is_named(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        BackboneConfig(**changes)
