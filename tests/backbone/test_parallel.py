"""Two workers take one worker's steps, whichever way the weights lie, and go on from its checkpoints."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from palate.backbone.batches import BatchConfig, BatchSource
from palate.backbone.engine import train
from palate.backbone.launch import launch
from palate.backbone.parallel import Workers, clip_gradients, layouts_of, pieces_of, shares_of, worker_device
from palate.backbone.run_state import trained_weights
from palate.backbone.sequence_model import Catalogue, SequenceModel, SequenceModelConfig
from palate.backbone.training_config import TrainingConfig
from palate.data.event_log import from_sequences


class Rows(NamedTuple):
    counts: Tensor

    def rows(self, start: int, stop: int) -> "Rows":
        return Rows(self.counts[start:stop])

    def num_targets(self) -> int:
        return int(self.counts.sum())


@pytest.mark.parametrize("num_workers", [1, 2, 3, 7])
def test_shares_cover_all_rows_and_weigh_nearly_the_same(num_workers: int) -> None:
    generator = torch.Generator().manual_seed(0)
    for num_rows in (1, 2, 5, 40):
        counts = torch.randint(0, 9, (num_rows,), generator=generator)
        shares = shares_of(Rows(counts), num_workers)
        assert [row for start, stop in shares for row in range(start, stop)] == list(range(num_rows))
        sums = [int(counts[start:stop].sum()) for start, stop in shares]
        assert all(abs(total - int(counts.sum()) / num_workers) <= 9 for total in sums)


def test_all_workers_have_as_many_pieces_and_no_row_counts_twice() -> None:
    batch = Rows(torch.tensor([8, 1, 1, 1, 1, 1, 1, 1, 1]))  # worker 0 gets one row, worker 1 eight
    pieces = [pieces_of(batch, Workers(rank, 2, torch.device("cpu")), 3) for rank in range(2)]
    assert [len(own) for own in pieces] == [3, 3]
    counted = [piece.counts for own in pieces for piece, weight in own if weight]
    assert torch.equal(torch.cat(counted), batch.counts)
    assert [weight for _, weight in pieces[0]].count(1.0) == 1


def test_clipping_scales_to_the_largest_norm() -> None:
    model = nn.Linear(3, 2)
    for weight in model.parameters():
        weight.grad = torch.full_like(weight, 2.0)
    weights, alone = dict(model.named_parameters()), Workers(0, 1, torch.device("cpu"))
    assert clip_gradients(weights, layouts_of(model), alone, 1.0) == pytest.approx(32**0.5)
    assert clip_gradients(weights, layouts_of(model), alone, 1.0) == pytest.approx(1.0)


def test_a_worker_computes_where_it_can() -> None:
    assert worker_device() == ("cuda:0" if torch.cuda.is_available() else "cpu")


CONFIG = TrainingConfig(num_epochs=3, learning_rate=0.01, warmup_steps=5, ema=0.9, checkpoint_steps=4)


class Interrupted(Exception):
    pass


def run(folder: str, seed: int, interrupt: bool = False, **settings: Any) -> None:
    """Train a little in a folder, from starting weights of this seed, and note the losses there."""
    torch.manual_seed(seed)
    shape = SequenceModelConfig(dim=8, num_layers=2, num_heads=2, max_events=10, dropout=0.0)
    model = SequenceModel(shape, Catalogue(torch.ones(20, dtype=torch.int64)))
    sequences = [[(user + place) % 20 for place in range(3 + user % 8)] for user in range(50)]
    source = BatchSource(from_sequences(sequences), BatchConfig(tokens=90), 10)

    def validate(judged: nn.Module) -> float:
        assert isinstance(judged, SequenceModel)
        if interrupt:
            raise Interrupted
        batch = source.load(source.plan(0, 0)[0])
        return float(judged.scores(batch).detach().double().mean())  # not through forward: sliced weights must be whole

    config = TrainingConfig(**{**CONFIG.__dict__, **settings})
    try:
        result = train(model, source, config, seed=1, folder=Path(folder), validate=validate)
    except Interrupted:
        return
    note = {"loss": [r.loss for r in result.history], "validation": [r.validation for r in result.history]}
    (Path(folder) / "note.json").write_text(json.dumps(note))


def run_many(folder: str) -> None:
    """Several runs in one start of the workers; each worker begins with other weights, which must not matter."""
    rank = torch.distributed.get_rank()
    run(f"{folder}/ddp", seed=rank)
    run(f"{folder}/fsdp", seed=rank, strategy="fsdp", accumulate=2)
    run(f"{folder}/ddp-pieces", seed=rank, accumulate=3)
    run(f"{folder}/two-then-one", seed=rank, interrupt=True)
    run(f"{folder}/one-then-two", seed=rank, strategy="fsdp")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    run(str(folder / "one"), seed=0)
    run(str(folder / "one-then-two"), seed=0, interrupt=True)
    launch(f"{__file__}:run_many", {"folder": str(folder)}, workers=2)
    assert sorted(path.name for path in (folder / "two-then-one").iterdir()) == ["step-000000000004.safetensors"]
    run(str(folder / "two-then-one"), seed=5)
    return folder


def note(folder: Path) -> dict[str, list[float]]:
    read: dict[str, list[float]] = json.loads((folder / "note.json").read_text())
    return read


@pytest.mark.parametrize("name", ["ddp", "fsdp", "ddp-pieces", "two-then-one", "one-then-two"])
def test_two_workers_have_the_loss_curve_and_the_weights_of_one(runs: Path, name: str) -> None:
    for what in ("loss", "validation"):
        assert note(runs / name)[what] == pytest.approx(note(runs / "one")[what], abs=1e-4)
    for weight, value in trained_weights(runs / "one").items():
        torch.testing.assert_close(trained_weights(runs / name)[weight], value, rtol=1e-3, atol=1e-4)
