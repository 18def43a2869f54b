"""A function runs alone, on several workers and on Ray; a killed worker costs time, never the result."""

import os
import signal
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from palate.backbone.batches import BatchConfig, BatchSource
from palate.backbone.engine import train
from palate.backbone.launch import launch
from palate.backbone.run_state import trained_weights
from palate.backbone.sequence_model import Catalogue, SequenceModel, SequenceModelConfig
from palate.backbone.training_config import TrainingConfig
from palate.data.event_log import from_sequences
from palate.errors import ConfigError, DataError, PalateError


class DyingSource(BatchSource):
    """At the seventh batch worker 1 kills itself, as often as `lives` says over all starts."""

    def load(self, plan):  # type: ignore[no-untyped-def]
        self.loads = getattr(self, "loads", 0) + 1
        if self.loads == 7 and dist.is_initialized() and dist.get_rank() == 1 and len(self.deaths()) < self.lives:
            (self.folder / f"death-{len(self.deaths())}").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().load(plan)

    def deaths(self) -> list[Path]:
        return list(self.folder.glob("death-*"))


def run(folder: str, lives: int = 0) -> None:
    """Train a little, with dropout, averaging and bfloat16."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    shape = SequenceModelConfig(dim=8, num_layers=1, num_heads=2, max_events=10, dropout=0.1)
    model = SequenceModel(shape, Catalogue(torch.ones(20, dtype=torch.int64)))
    sequences = [[(user + place) % 20 for place in range(3 + user % 8)] for user in range(50)]
    source = DyingSource(from_sequences(sequences), BatchConfig(tokens=90), 10)
    source.folder, source.lives = Path(folder), lives
    config = TrainingConfig(num_epochs=3, warmup_steps=5, ema=0.9, precision="bfloat16", checkpoint_steps=2)
    train(model, source, config, seed=1, folder=Path(folder))


def run_both(folder: str) -> None:
    """One run that is left alone, and one in which a worker is killed once."""
    run(f"{folder}/undisturbed")
    run(f"{folder}/killed", lives=1)


def assert_same_run(folder: Path) -> None:
    assert len(list((folder / "killed").glob("death-*"))) == 1
    expected, found = trained_weights(folder / "undisturbed"), trained_weights(folder / "killed")
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


def complain(rank: int) -> None:
    """Raise on one worker; the other waits for it for ever."""
    if dist.get_rank() == rank:
        raise DataError("this row is wrong")
    dist.barrier()


def stumble() -> None:
    """Fail as a program with a mistake does."""
    raise ValueError("first line\nsecond line")


def note_world(folder: str) -> None:
    """Write down who takes part."""
    world = f"{dist.get_rank()} of {dist.get_world_size()}" if dist.is_initialized() else "alone"
    (Path(folder) / "world").write_text(world)


def test_one_worker_is_this_process(tmp_path: Path) -> None:
    launch(f"{__file__}:note_world", {"folder": str(tmp_path)})
    assert (tmp_path / "world").read_text() == "alone"


def test_a_killed_worker_costs_time_and_not_the_result(tmp_path: Path) -> None:
    launch(f"{__file__}:run_both", {"folder": str(tmp_path)}, workers=2)
    assert_same_run(tmp_path)
    with pytest.raises(PalateError, match=r"worker 1 was killed by SIGKILL, 2 times in all; .* checkpoint is whole"):
        launch(f"{__file__}:run", {"folder": str(tmp_path / "mortal"), "lives": 9}, workers=2, restarts=1)
    assert len(list((tmp_path / "mortal").glob("death-*"))) == 2
    assert trained_weights(tmp_path / "mortal")


def test_errors_of_a_worker_are_those_of_the_caller() -> None:
    with pytest.raises(DataError, match=r"^this row is wrong$"):
        launch(f"{__file__}:complain", {"rank": 1}, workers=2)
    with pytest.raises(PalateError, match=r"failed: ValueError: first line; its trace is above$"):
        launch(f"{__file__}:stumble", {}, workers=2)


def test_under_torchrun_it_just_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="RANK and WORLD_SIZE are not set"):
        launch(f"{__file__}:note_world", {"folder": str(tmp_path)}, on="torchrun")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "0")
    for on in ("torchrun", "local"):
        launch(f"{__file__}:note_world", {"folder": str(tmp_path)}, on=on)
        assert (tmp_path / "world").read_text() == "0 of 1"
        assert not dist.is_initialized()
    with pytest.raises(ConfigError, match="3 workers, and torchrun started 1"):
        launch(f"{__file__}:note_world", {"folder": str(tmp_path)}, workers=3)


def test_wrong_wishes_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    here = f"{__file__}:run"
    with pytest.raises(ConfigError, match="on is 'moon'; choose one of: local, torchrun, ray, or ray://host:port"):
        launch(here, {}, on="moon")
    with pytest.raises(ConfigError, match="0 workers and 3 restarts"):
        launch(here, {}, workers=0)
    with pytest.raises(ConfigError, match="storage is for Ray"):
        launch(here, {}, storage=tmp_path)
    for name in (f"{__file__}:nothing", "palate.nowhere:run", "nothing", str(tmp_path / "none.py") + ":run"):
        with pytest.raises(ConfigError, match="no function"):
            launch(name, {})
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"Ray is not installed; pip install 'palate\[ray\]'"):
        launch(here, {}, on="ray")


@pytest.mark.filterwarnings("ignore")  # Ray's own
def test_on_ray_a_killed_worker_costs_time_and_not_the_result(tmp_path: Path) -> None:
    ray = pytest.importorskip("ray")
    ray.init(num_cpus=2, include_dashboard=False, logging_level="error", log_to_driver=False)
    try:
        args = {"folder": str(tmp_path)}
        launch(f"{__file__}:run_both", args, on="ray", workers=2, restarts=3, storage=tmp_path / "ray")
    finally:
        ray.shutdown()
    assert_same_run(tmp_path)
