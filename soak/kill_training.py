"""Kill a training at random moments, many times, and ask that it ends with the weights of one that was left alone.

    python soak/kill_training.py --kills 200

Half of the kills come from outside, at a random time; half strike inside a save, at a random one of its steps: while
the file is being written, before or after it is synced, before or after it is renamed. bfloat16, averaging,
accumulation, dropout and early stopping are all on. Exit code 0 where every run ended bit-identical.
"""

import argparse
import hashlib
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from palate.backbone import run_state
from palate.backbone.batches import BatchConfig, BatchSource
from palate.backbone.engine import train
from palate.backbone.sequence_model import Catalogue, SequenceModel, SequenceModelConfig
from palate.backbone.training_config import TrainingConfig
from palate.data.event_log import from_sequences

CONFIG = TrainingConfig(
    num_epochs=30,
    learning_rate=0.02,
    warmup_steps=5,
    accumulate=2,
    precision="bfloat16",
    ema=0.9,
    patience=2,
    checkpoint_steps=2,
)
MOMENTS = ("write", "before fsync", "after fsync", "before replace", "after replace")


def run_once(folder: Path) -> str:
    """Train to the end, or from where the folder is; the digest of the weights and of the record of every epoch."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    shape = SequenceModelConfig(dim=8, num_layers=1, num_heads=2, max_events=10, dropout=0.1)
    model = SequenceModel(shape, Catalogue(torch.ones(20, dtype=torch.int64)))
    sequences = [[(user + place) % 20 for place in range(4 + user % 7)] for user in range(60)]
    source = BatchSource(from_sequences(sequences), BatchConfig(tokens=60), 10)

    def validate(model: Any) -> float:
        batch = source.load(source.plan(0, 0)[0])
        return round(-float(model(batch).total.detach()) / batch.num_targets(), 1)  # rounded, so that it stops early

    result = train(model, source, CONFIG, seed=3, folder=folder, validate=validate)
    assert result.ended_by == "patience", result.ended_by
    digest = hashlib.sha256(repr([(r.loss, r.validation, r.learning_rate) for r in result.history]).encode())
    for name, value in model.state_dict().items():
        digest.update(name.encode() + value.numpy().tobytes())
    return digest.hexdigest()


def strike(moment: str, at: int) -> None:
    """Arrange that this process kills itself at that moment of its `at`-th save."""
    saves = [0]

    def wrap(owner: Any, name: str, before: str, after: str) -> None:
        original: Callable[..., Any] = getattr(owner, name)

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            if saves[0] == at and moment == before:
                os.kill(os.getpid(), signal.SIGKILL)
            result = original(*args, **kwargs)
            if saves[0] == at and moment == after:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        setattr(owner, name, wrapped)

    original_write = run_state._write_tensors

    def write(path: Path, tensors: Mapping[str, torch.Tensor], text: str) -> None:
        saves[0] += 1
        written[0] = -len(tensors)
        original_write(path, tensors, text)

    written, original_bytes = [0], run_state._bytes_of

    def bytes_of(tensor: torch.Tensor) -> memoryview:
        # Each tensor is read twice, for the checksum and then for the file: die between two tensors of the file.
        written[0] += 1
        if saves[0] == at and moment == "write" and written[0] == 50:
            os.kill(os.getpid(), signal.SIGKILL)
        return original_bytes(tensor)

    run_state._write_tensors = write
    run_state._bytes_of = bytes_of
    wrap(os, "fsync", "before fsync", "after fsync")
    wrap(os, "replace", "before replace", "after replace")


def in_child(folder: Path, arrange: Callable[[], None]) -> tuple[int, int]:
    """Fork a process that trains in `folder`; its id and the pipe that it writes its digest to."""
    reading, writing = os.pipe()
    process = os.fork()
    if process == 0:
        os.close(reading)
        arrange()
        os.write(writing, run_once(folder).encode())
        os._exit(0)
    os.close(writing)
    return process, reading


def outcome(process: int, reading: int) -> str | None:
    """The digest of a child that came to its end; None where it was killed.

    Raises:
        RuntimeError: the child failed by itself.
    """
    with os.fdopen(reading) as pipe:
        said = pipe.read()
    _, status = os.waitpid(process, 0)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
        return None
    if os.waitstatus_to_exitcode(status) != 0 or not said:
        raise RuntimeError(f"a resumed training failed by itself: exit {os.waitstatus_to_exitcode(status)}")
    return said


def main() -> None:
    """Kill, resume, compare."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng = random.Random(options.seed)
    done: Counter[str] = Counter()
    rounds, torn = 0, 0
    with tempfile.TemporaryDirectory() as scratch:
        started = time.monotonic()
        expected = outcome(*in_child(Path(scratch) / "undisturbed", lambda: None))
        duration = time.monotonic() - started
        folder = Path(scratch) / "killed"
        while done.total() < options.kills:
            if rng.random() < 0.5:
                kind, moment, at = "outside", "", 0
            else:
                kind = moment = rng.choice(MOMENTS)
                at = rng.randint(1, 4)
            process, reading = in_child(folder, lambda moment=moment, at=at: strike(moment, at) if at else None)
            if kind == "outside":
                time.sleep(rng.uniform(0.05, 0.4) * duration)
                os.kill(process, signal.SIGKILL)
            digest = outcome(process, reading)
            done[kind] += digest is None
            torn += any(folder.glob(".*.tmp"))
            if digest is not None:  # it came to its end before it was struck: compare, and start over
                rounds += 1
                compare(digest, expected, rounds)
                shutil.rmtree(folder)
        rounds += 1
        compare(outcome(*in_child(folder, lambda: None)), expected, rounds)
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(done.items()))
    print(f"{done.total()} kills ({kinds}), {torn} left a half-written file; {rounds} runs, all bit-identical")


def compare(digest: str | None, expected: str | None, rounds: int) -> None:
    """End with an error where a run that was killed has other weights."""
    if digest != expected or expected is None:
        sys.exit(f"run {rounds} ended with other weights than the undisturbed one: {digest} for {expected}")


if __name__ == "__main__":
    main()
