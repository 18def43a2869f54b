"""One person's fast weights at serving speed: adapt and score the catalogue, beside the sequence model alone.

A random model (d = 64, 2 layers) and two random tables over 3,416 items, float32, one thread, CPU time (the mean of
many calls, since the clock of a process is coarse). "adapt" adds up the whole support from cached surprises, "observe"
takes one more event into what was added up before, "compose" makes the fast weights of it.

    OMP_NUM_THREADS=1 python benchmarks/fast_weights.py [--json FILE]
"""

import argparse
import json
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when PyTorch loads its BLAS

import torch

from palate.backbone.batches import inputs
from palate.backbone.sequence_model import Catalogue, SequenceModel, SequenceModelConfig
from palate.data.event_log import from_sequences
from palate.meta.sequence_head import (
    SequenceItems,
    SequenceSupport,
    adapt,
    compose,
    gather,
    observe,
    score,
    start_params,
    surprises,
)

NUM_ITEMS, SIZES, NUM_CALLS = 3416, (1, 10, 100), 200


def measure(call: Callable[[], object]) -> float:
    """Mean CPU time of a call, in microseconds."""
    for _ in range(10):
        call()
    start = time.process_time()
    for _ in range(NUM_CALLS):
        call()
    return (time.process_time() - start) / NUM_CALLS * 1e6


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = SequenceModelConfig()
    model = SequenceModel(config, Catalogue(torch.ones(NUM_ITEMS, dtype=torch.int64))).eval()
    rows: dict[str, float] = {}
    with torch.no_grad():
        tables = 0.01 * torch.randn(2, NUM_ITEMS, NUM_ITEMS)
        items = SequenceItems(model.items.all().detach(), model.items.bias.detach(), tables)
        params = start_params(config.dim, [0.95, 0.95], 6)
        known = torch.randn(NUM_ITEMS)
        for size in SIZES:
            chosen, grades = torch.randperm(NUM_ITEMS)[:size], torch.randint(6, (size,))
            batch = inputs(from_sequences([chosen.numpy()]), config.max_events)
            states = model.states(batch)[0].float()
            rows_of = surprises(states[:-1], chosen, items)
            support = SequenceSupport(chosen, grades, rows_of, states[-1], torch.tensor(size), known)
            running = gather(params, items, support)
            fast = compose(params, running, support.state, known)
            calls: dict[str, Callable[[], object]] = {
                f"model alone, {size} events, states and scores": partial(model.scores, batch),
                f"surprises of {size} events from cached states": partial(surprises, states[:-1], chosen, items),
                f"adapt to {size} events": partial(adapt, params, items, support),
                f"observe one event after {size}": partial(
                    observe, params, items, running, chosen[0], grades[0], rows_of[0]
                ),
                f"compose after {size}": partial(compose, params, running, support.state, known),
                f"score {NUM_ITEMS:,} items after {size}": partial(score, fast, items),
            }
            rows |= {name: measure(call) for name, call in calls.items()}
    for name, value in rows.items():
        print(f"{name:44s} {value:9.0f} µs")
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
