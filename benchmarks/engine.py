"""What the engine's switches cost: targets a second of CPU time for one process, and of wall time for two.

    OMP_NUM_THREADS=1 python benchmarks/engine.py [plain bfloat16 compile checkpoint_blocks accumulate ema workers]

MovieLens-1M's size: 3,416 items, histories of 20 to 200 events, drawn at random. One thread a process.
"""

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from palate.backbone.batches import BatchConfig, BatchSource
from palate.backbone.engine import train
from palate.backbone.launch import launch
from palate.backbone.sequence_model import Catalogue, SequenceModel, SequenceModelConfig
from palate.backbone.training_config import TrainingConfig
from palate.data.event_log import from_sequences

NUM_ITEMS, NUM_STEPS = 3416, 12
SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "bfloat16": {"precision": "bfloat16"},
    "compile": {"compile": True},
    "checkpoint_blocks": {"checkpoint_blocks": True},
    "accumulate": {"accumulate": 4},
    "ema": {"ema": 0.999},
}


def run(settings: dict[str, Any], out: str) -> None:
    """Warm up, train a few steps and write CPU and wall seconds and targets to `out`."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    model = SequenceModel(
        SequenceModelConfig(dim=64, num_layers=2), Catalogue(torch.ones(NUM_ITEMS, dtype=torch.int64))
    )
    sequences = [rng.integers(0, NUM_ITEMS, int(size)) for size in rng.integers(20, 200, 400)]
    source = BatchSource(from_sequences(sequences), BatchConfig(tokens=4096), 200)
    marks: list[tuple[float, float, float]] = []

    class Watched(BatchSource):
        def load(self, plan: Any) -> Any:
            marks.append((time.process_time(), time.perf_counter(), float(sum(t.stop - t.start for t in plan))))
            return super().load(plan)

    source.__class__ = Watched
    warm = 6 if settings.get("compile") else 3
    config = TrainingConfig(num_epochs=0, max_steps=warm + NUM_STEPS + 1, **settings)
    train(model, source, config, seed=0)
    cpu, wall = (marks[-1][clock] - marks[warm][clock] for clock in (0, 1))
    if not dist.is_initialized() or dist.get_rank() == 0:
        targets = sum(mark[2] for mark in marks[warm:-1])
        start = marks[warm][0] - marks[0][0]
        Path(out).write_text(json.dumps({"cpu": cpu, "wall": wall, "targets": targets, "start": start}))


def main() -> None:
    """Measure what is asked for, each in turn."""
    with tempfile.TemporaryDirectory() as folder:
        for name in sys.argv[1:] or [*SETTINGS, "workers"]:
            workers = 2 if name == "workers" else 1
            launch(f"{__file__}:run", {"settings": SETTINGS.get(name, {}), "out": f"{folder}/{name}"}, workers=workers)
            seen = json.loads(Path(f"{folder}/{name}").read_text())
            print(
                f"{name:18} {seen['targets'] / seen['cpu']:8.0f} targets a CPU second of worker 0, "
                f"{seen['targets'] / seen['wall']:8.0f} a wall second; first steps {seen['start']:.1f} CPU s",
                flush=True,
            )


if __name__ == "__main__":
    main()
