"""Checkpoints are whole or not there: after kills, a full disk and damaged bytes a run goes on to the same weights."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from palate.backbone import run_state
from palate.backbone.batches import Batch, BatchConfig, BatchSource, Tile
from palate.backbone.engine import train
from palate.backbone.run_state import EpochRecord, RunState, load_run, save_run, tidy_run, trained_weights
from palate.backbone.sequence_model import Catalogue, SequenceModel, SequenceModelConfig
from palate.backbone.training_config import TrainingConfig
from palate.data.event_log import from_sequences, open_events, write_events
from palate.errors import ModelError

TENSORS = {
    "model.b": torch.arange(6.0).view(2, 3),
    "model.a": torch.tensor(3.5, dtype=torch.float64),
    "model.empty": torch.zeros(0, 4),
    "model.half": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
    "model.turned": torch.arange(6).view(2, 3).T,
    "model.yes": torch.tensor([True, False]),
    "random": torch.get_rng_state()[None],
}
RECORD = EpochRecord(1, 12, 0.1 + 0.2, {"next_item": 1 / 3}, 1e-3, 2.5, 2.4, None)


def at_step(step: int) -> RunState:
    return RunState({"seed": "3"}, epoch=1, step=step, sums={"loss": 0.7}, best=-1e-17, history=[RECORD])


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def test_what_is_saved_is_read_back_bit_for_bit(tmp_path: Path) -> None:
    assert load_run(tmp_path / "run") is None
    save_run(tmp_path / "run", TENSORS, at_step(7))
    found = load_run(tmp_path / "run")
    assert found is not None
    tensors, state = found
    assert state == at_step(7)
    assert tensors.keys() == TENSORS.keys()
    for name, value in TENSORS.items():
        assert tensors[name].dtype == value.dtype
        assert torch.equal(tensors[name], value)
    assert names(tmp_path / "run") == ["step-000000000007.safetensors"]
    by_library = load_file(tmp_path / "run" / "step-000000000007.safetensors")
    assert torch.equal(by_library["model.turned"], TENSORS["model.turned"])


def test_the_last_two_are_kept_and_half_written_files_are_swept_up(tmp_path: Path) -> None:
    for step in (5, 10, 15):
        save_run(tmp_path, TENSORS, at_step(step))
    (tmp_path / ".step-000000000020.safetensors.tmp").write_bytes(b"half")
    (tmp_path / "notes.txt").write_text("mine")
    tidy_run(tmp_path, 10)
    assert names(tmp_path) == ["notes.txt", "step-000000000010.safetensors"]


@pytest.mark.parametrize("place", [3, 60, -1], ids=["length", "header", "data"])
def test_a_damaged_file_is_passed_over_aloud(tmp_path: Path, place: int) -> None:
    save_run(tmp_path, TENSORS, at_step(5))
    save_run(tmp_path, TENSORS, at_step(10))
    flip(tmp_path / "step-000000000010.safetensors", place)
    with pytest.warns(UserWarning, match=r"damaged: step-000000000010.* going on from step-000000000005"):
        found = load_run(tmp_path)
    assert found is not None
    assert found[1].step == 5
    (tmp_path / "step-000000000005.safetensors").write_bytes(b"")
    with pytest.raises(ModelError, match=r"no checkpoint is whole: .*; delete the folder to start over"):
        load_run(tmp_path)


def test_every_single_damaged_byte_is_noticed(tmp_path: Path) -> None:
    small: dict[str, Tensor] = {"model.a": torch.arange(4.0)}
    save_run(tmp_path, small, RunState({}))
    path = tmp_path / "step-000000000000.safetensors"
    whole = path.read_bytes()
    unnoticed = []
    for place in range(len(whole)):
        flip(path, place)
        try:
            found = load_run(tmp_path)
        except ModelError:
            pass
        else:
            # JSON that says the same, such as another kind of space, is the only thing that may differ.
            unnoticed += [] if found is not None and found[1] == RunState({}) and _equal(found[0], small) else [place]
        path.write_bytes(whole)
    assert unnoticed == []


def _equal(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(value, right[name]) for name, value in left.items())


def test_trained_weights_are_the_best_else_the_averaged_else_the_last(tmp_path: Path) -> None:
    last, mean, best = torch.zeros(2), torch.ones(2), torch.full((2,), 2.0)
    groups = {"model.w": last, "model.count": torch.tensor(3)}
    save_run(tmp_path, groups, at_step(1))
    assert torch.equal(trained_weights(tmp_path)["w"], last)
    save_run(tmp_path, groups | {"average.w": mean}, at_step(2))
    assert torch.equal(trained_weights(tmp_path)["w"], mean)
    assert trained_weights(tmp_path)["count"] == 3
    save_run(tmp_path, groups | {"average.w": mean, "best.w": best, "best.count": torch.tensor(3)}, at_step(3))
    assert torch.equal(trained_weights(tmp_path)["w"], best)
    with pytest.raises(ModelError, match="there is no checkpoint here"):
        trained_weights(tmp_path / "none")


def test_the_file_is_synced_before_its_name_and_its_name_before_going_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    fsync, replace = os.fsync, os.replace

    def watched_fsync(descriptor: int) -> None:
        order.append(f"sync {Path(os.readlink(f'/proc/self/fd/{descriptor}')).name}")
        fsync(descriptor)

    def watched_replace(source: Path, target: Path) -> None:
        order.append("rename")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", watched_fsync)
    monkeypatch.setattr(os, "replace", watched_replace)
    save_run(tmp_path / "run", TENSORS, at_step(7))
    assert order == ["sync .step-000000000007.safetensors.tmp", "rename", "sync run"]


def build(seed: int = 0) -> SequenceModel:
    torch.manual_seed(seed)
    shape = SequenceModelConfig(dim=8, num_layers=1, num_heads=2, max_events=10, dropout=0.1)
    return SequenceModel(shape, Catalogue(torch.ones(20, dtype=torch.int64)))


def source() -> BatchSource:
    sequences = [[(user + place) % 20 for place in range(4 + user % 7)] for user in range(60)]
    return BatchSource(from_sequences(sequences), BatchConfig(tokens=60), 10)


CONFIG = TrainingConfig(num_epochs=3, checkpoint_steps=3, ema=0.9)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's full device")
def test_a_full_disk_is_one_line_and_the_run_goes_on_from_the_last_checkpoint(tmp_path: Path) -> None:
    undisturbed, resumed = build(), build(seed=9)
    train(undisturbed, source(), CONFIG, seed=1)
    filling = source()
    load = filling.load

    def fill_and_load(plan: list[Tile]) -> Batch:
        if names(tmp_path) == ["step-000000000003.safetensors"]:  # each write to the next one says: no space
            (tmp_path / ".step-000000000006.safetensors.tmp").symlink_to("/dev/full")
        return load(plan)

    filling.load = fill_and_load  # type: ignore[method-assign]
    with pytest.raises(ModelError, match=r"cannot be written .No space left on device.; free space") as caught:
        train(build(), filling, CONFIG, seed=1, folder=tmp_path)
    assert "\n" not in str(caught.value)
    cause = caught.value.__cause__
    assert isinstance(cause, OSError)
    assert cause.errno == errno.ENOSPC
    assert names(tmp_path) == ["step-000000000003.safetensors"]
    train(resumed, source(), CONFIG, seed=1, folder=tmp_path)
    assert _equal(undisturbed.state_dict(), resumed.state_dict())


@pytest.mark.filterwarnings("ignore:.*going on from")
def test_a_run_goes_on_from_the_checkpoint_before_a_damaged_one(tmp_path: Path) -> None:
    undisturbed, resumed = build(), build(seed=9)
    train(undisturbed, source(), CONFIG, seed=1, folder=tmp_path)
    flip(max(tmp_path.glob("step-*")), -1)
    train(resumed, source(), CONFIG, seed=1, folder=tmp_path)
    assert _equal(undisturbed.state_dict(), resumed.state_dict())
    assert load_run(tmp_path) is not None


def test_events_mapped_from_the_disk_train_to_the_same_weights(tmp_path: Path) -> None:
    in_memory, mapped = build(), build()
    train(in_memory, source(), CONFIG, seed=1)
    write_events(source().log, tmp_path / "events")
    from_disk = BatchSource(open_events(tmp_path / "events"), BatchConfig(tokens=60), 10)
    train(mapped, from_disk, CONFIG, seed=1)
    assert _equal(in_memory.state_dict(), mapped.state_dict())


def test_a_run_killed_five_times_inside_saves_and_out_ends_bit_identical() -> None:
    script = Path(run_state.__file__).parents[3] / "soak" / "kill_training.py"
    done = subprocess.run(
        [sys.executable, str(script), "--kills", "5"],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert "5 kills" in done.stdout
    assert "all bit-identical" in done.stdout
