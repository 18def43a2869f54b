import numpy as np
import pytest
import torch

from palate.backbone.batches import BatchConfig, BatchSource, inputs, padding_share
from palate.data.event_log import EventLog, from_sequences
from palate.errors import ConfigError, DataError


def numbered(lengths: list[int]) -> EventLog:
    """Person u's n-th event is item 100 u + n."""
    log = from_sequences([[100 * user + place for place in range(length)] for user, length in enumerate(lengths)])
    return EventLog(
        log.items,
        log.offsets,
        log.items.astype(np.float64),
        (log.items % 7).astype(np.uint8),
        (log.items / 2).astype(np.float32),
    )


LENGTHS = [1, 2, 5, 40, 0, 11, 10, 12, 23]


@pytest.mark.parametrize("epoch", range(4))
def test_every_event_is_a_target_once_and_read_at_most_once(epoch: int) -> None:
    source = BatchSource(numbered(LENGTHS), BatchConfig(tokens=40), 10)
    predicted, read = [], []
    for plan in source.plan(7, epoch):
        batch = source.load(plan)
        predicted += batch.targets[batch.weights > 0].tolist()
        read += batch.items[batch.mask].tolist()
    wanted = [100 * user + place for user, length in enumerate(LENGTHS) for place in range(length)]
    assert sorted(predicted) == wanted
    assert len(set(read)) == len(read)
    assert set(read) <= set(wanted)


def test_a_position_predicts_what_follows_what_it_has_read() -> None:
    source = BatchSource(numbered(LENGTHS), BatchConfig(tokens=40), 10)
    for plan in source.plan(0, 1):
        batch = source.load(plan)
        for row in range(len(plan)):
            for position in (batch.weights[row, :, 0] > 0).nonzero()[:, 0].tolist():
                target = int(batch.targets[row, position, 0])
                if position == 0:
                    assert target % 100 == 0
                    assert batch.from_start[row]
                else:
                    assert target == int(batch.items[row, position - 1]) + 1
                    assert batch.mask[row, position - 1]
            assert int(batch.users[row]) == plan[row].user
            assert bool(batch.from_start[row]) == (plan[row].start == 0)


def test_columns_follow_their_events() -> None:
    profiles = np.arange(len(LENGTHS), dtype=np.float32)[:, None]
    source = BatchSource(numbered(LENGTHS), BatchConfig(tokens=40), 10, profiles=profiles)
    for plan in source.plan(0, 0):
        batch = source.load(plan)
        assert batch.seconds is not None
        assert batch.kinds is not None
        assert batch.values is not None
        assert batch.next_seconds is not None
        assert batch.next_kinds is not None
        assert batch.next_values is not None
        assert batch.profiles is not None
        items, mask = batch.items, batch.mask
        torch.testing.assert_close(batch.seconds[mask], items[mask].double())
        assert torch.equal(batch.kinds[mask], items[mask] % 7)
        torch.testing.assert_close(batch.values[mask], items[mask] / 2)
        counted = batch.weights[..., 0] > 0
        torch.testing.assert_close(batch.next_seconds[counted], batch.targets[..., 0][counted].double())
        assert torch.equal(batch.next_kinds[counted], batch.targets[..., 0][counted] % 7)
        assert torch.equal(batch.profiles[:, 0].long(), batch.users)


def test_a_window_of_targets_decays_and_ends_with_the_history() -> None:
    source = BatchSource(from_sequences([[4, 5, 6, 7]]), BatchConfig(window=3, decay=0.5), 10)
    batch = source.load(source.plan(0, 0)[0])
    assert batch.targets[0, 1].tolist() == [5, 6, 7]
    torch.testing.assert_close(batch.weights[0, 1], torch.tensor([4.0, 2.0, 1.0]) / 7)
    assert batch.targets[0, 2, :2].tolist() == [6, 7]
    torch.testing.assert_close(batch.weights[0, 2], torch.tensor([2.0, 1.0, 0.0]) / 3)


@pytest.mark.parametrize("first_tile", [False, True])
def test_an_even_start_asks_for_all_that_follows_alike(first_tile: bool) -> None:
    config = BatchConfig(tokens=40, window=4, decay=0.5, even_start=True, first_tile=first_tile)
    source, plain = (
        BatchSource(numbered(LENGTHS), config, 10),
        BatchSource(numbered(LENGTHS), BatchConfig(40, 4, 0.5, first_tile=first_tile), 10),
    )
    asked = np.zeros((len(LENGTHS), 100), int)
    num_epochs = 250
    for epoch in range(num_epochs):
        plans = source.plan(3, epoch)
        for plan in plans if epoch else plans[:0]:
            batch = source.load(plan)
            for row in batch.from_start.nonzero()[:, 0].tolist():
                user = int(batch.users[row])
                targets = batch.targets[row, 0][batch.weights[row, 0] > 0] - 100 * user
                assert len(set(targets.tolist())) == min(LENGTHS[user], 4)
                assert batch.weights[row, 0].unique().tolist() in ([1 / len(targets)], [0, 1 / len(targets)])
                asked[user, targets] += 1
    for user, length in enumerate(LENGTHS):
        share = asked[user, :length] / (num_epochs - 1)
        assert share == pytest.approx(np.full(length, min(4 / max(length, 1), 1)), abs=0.14)
        assert not asked[user, length:].any()
    # Every other position is as it was.
    for plan in source.plan(3, 0):
        one, other = source.load(plan), plain.load(plan)
        assert torch.equal(one.targets[:, 1:], other.targets[:, 1:])
        assert torch.equal(one.weights[:, 1:], other.weights[:, 1:])
        assert one.next_seconds is not None
        assert other.next_seconds is not None
        assert torch.equal(one.next_seconds, other.next_seconds)


def test_a_first_tile_is_the_beginning_and_nothing_else() -> None:
    source = BatchSource(numbered(LENGTHS), BatchConfig(tokens=40, first_tile=True), 10)
    batches = [source.load(plan) for plan in source.plan(1, 5)]
    predicted = [item for batch in batches for item in batch.targets[batch.weights > 0].tolist()]
    wanted = [100 * user + place for user, length in enumerate(LENGTHS) for place in range(min(length, 11))]
    assert sorted(predicted) == wanted
    assert all(batch.from_start.all() for batch in batches)


def test_plans_depend_on_seed_and_epoch_alone() -> None:
    source = BatchSource(numbered(LENGTHS), BatchConfig(tokens=40), 10)
    assert source.plan(1, 2) == source.plan(1, 2)
    assert source.plan(1, 2) != source.plan(1, 3)
    assert source.plan(1, 2) != source.plan(2, 2)


def test_batches_are_bounded_and_hardly_padded() -> None:
    rng = np.random.default_rng(0)
    log = from_sequences([np.arange(length) for length in rng.geometric(0.02, 2000)])
    source = BatchSource(log, BatchConfig(tokens=1000), 50)
    for plan in source.plan(0, 0):
        assert len(plan) * (max(tile.stop - tile.start for tile in plan) + 1) <= 1000 + 20
    assert padding_share(source) < 0.02


def test_inputs_are_the_most_recent_events() -> None:
    log = numbered([3, 0, 12])
    batch = inputs(log, 10, np.zeros((3, 2), np.float32))
    assert batch.items.shape == (3, 10)
    assert batch.items[0, :3].tolist() == [0, 1, 2]
    assert batch.items[2].tolist() == list(range(202, 212))
    assert batch.mask.sum(1).tolist() == [3, 0, 10]
    assert batch.from_start.tolist() == [True, True, False]
    assert batch.num_targets() == 0


def test_some_people_only_and_rows() -> None:
    source = BatchSource(numbered(LENGTHS), BatchConfig(), 10, users=np.array([2, 5]))
    batch = source.load(source.plan(0, 0)[0])
    assert set(batch.users.tolist()) <= {2, 5}
    part = batch.rows(0, 1)
    assert part.items.shape[0] == 1
    assert part.num_targets() == int((batch.weights[:1] > 0).sum())


def test_nothing_to_predict_is_refused() -> None:
    with pytest.raises(DataError, match="no person has an event"):
        BatchSource(from_sequences([[], []]), BatchConfig(), 10)
    with pytest.raises(ConfigError, match=r"batches\.tokens is 0"):
        BatchConfig(tokens=0)
    with pytest.raises(ConfigError, match=r"batches\.decay is 0"):
        BatchConfig(decay=0.0)
