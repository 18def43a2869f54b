"""A table whose rows live on two workers gives the values, the gradients and the training of a table on one."""

from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from palate.backbone.engine import train
from palate.backbone.launch import launch
from palate.backbone.run_state import trained_weights
from palate.backbone.sharded_table import ShardedTable
from palate.backbone.training_config import TrainingConfig
from palate.errors import ConfigError, DataError

NUM_ITEMS, DIM = 7, 3


def test_alone_it_is_an_embedding() -> None:
    table = ShardedTable(NUM_ITEMS, DIM)
    items = torch.tensor([[3, 3, 0], [6, 1, 3]])
    assert torch.equal(table(items), table.rows[items])
    assert torch.equal(table.all(), table.rows)
    assert table(torch.zeros(0, dtype=torch.int64)).shape == (0, DIM)
    table(items).sum().backward()
    assert table.rows.grad is not None
    assert table.rows.grad[:, 0].tolist() == [1, 1, 0, 3, 0, 0, 1]
    with pytest.raises(DataError, match="items 2 to 7 of 7"):
        table(torch.tensor([2, 7]))
    with pytest.raises(ConfigError, match="0 items of length 3"):
        ShardedTable(0, 3)


def test_two_workers_share_a_table(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = TrainingConfig(num_epochs=2, learning_rate=0.05, warmup_steps=1, clip_norm=0.5)
    model = Pairs()
    train(model, PairSource(), config, seed=1)
    launch(f"{__file__}:work", {"folder": str(tmp_path)}, workers=2)
    for strategy in ("ddp", "fsdp"):
        found = trained_weights(tmp_path / strategy)
        assert found.keys() == model.state_dict().keys()
        for name, value in model.state_dict().items():
            torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5)
    # One worker goes on with what two have saved.
    resumed = Pairs()
    train(resumed, PairSource(), config, seed=1, folder=tmp_path / "ddp")
    assert torch.equal(resumed.table.rows, trained_weights(tmp_path / "ddp")["table.rows"])


class Batch(NamedTuple):
    left: Tensor
    right: Tensor

    def rows(self, start: int, stop: int) -> "Batch":
        return Batch(self.left[start:stop], self.right[start:stop])

    def num_targets(self) -> int:
        return len(self.left)


class PairSource:
    """Which of seven items comes after which."""

    def plan(self, seed: int, epoch: int) -> list[Any]:
        return [0, 1, 2]

    def load(self, plan: Any) -> Batch:
        left = torch.arange(plan, plan + 5) % NUM_ITEMS
        return Batch(left, (left + 1) % NUM_ITEMS)


class Loss(NamedTuple):
    total: Tensor
    parts: dict[str, Tensor]


class Pairs(nn.Module):
    """Scores the next item against the whole table."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table, self.turn = ShardedTable(NUM_ITEMS, DIM, std=1.0), nn.Linear(DIM, DIM)

    def forward(self, batch: Batch) -> Loss:
        scores = self.turn(self.table(batch.left)) @ self.table.all().T
        return Loss(nn.functional.cross_entropy(scores, batch.right, reduction="sum"), {})


def work(folder: str) -> None:
    """What each worker checks by itself: it has other items than its partner."""
    rank = dist.get_rank()
    torch.manual_seed(0)
    table, reference = ShardedTable(NUM_ITEMS, DIM), nn.Embedding(NUM_ITEMS, DIM)
    assert len(table.rows) == (4, 3)[rank]
    with torch.no_grad():
        reference.weight.copy_(table.all())
    torch.manual_seed(0)
    assert torch.equal(reference.weight, torch.randn(NUM_ITEMS, DIM) * 0.02)  # whatever the number of workers

    wanted = [torch.tensor([[5, 0, 5], [2, 2, 5]]), torch.tensor([1, 5])]
    for items in (wanted, [torch.tensor([], dtype=torch.int64), torch.tensor([4])]):
        factors = [
            torch.arange(1.0, 1 + own.numel() * DIM).view(*own.shape, DIM) * (who + 1) for who, own in enumerate(items)
        ]
        table.zero_grad()
        reference.zero_grad()
        vectors = table(items[rank])
        assert torch.equal(vectors, reference(items[rank]))
        (vectors * factors[rank]).sum().backward()
        for own, factor in zip(items, factors, strict=True):  # the sum over the workers, as the engine wants it
            (reference(own) * factor).sum().backward()
        assert table.rows.grad is not None
        assert reference.weight.grad is not None
        torch.testing.assert_close(table.rows.grad, reference.weight.grad[rank::2])
        torch.testing.assert_close(table.whole(table.rows.grad), reference.weight.grad)
    assert torch.equal(table.part(table.whole(table.rows.detach())), table.rows)

    for strategy in ("ddp", "fsdp"):
        config = TrainingConfig(num_epochs=2, learning_rate=0.05, warmup_steps=1, clip_norm=0.5, strategy=strategy)
        train(Pairs(), PairSource(), config, seed=1, folder=Path(folder) / strategy)
