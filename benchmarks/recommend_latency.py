"""How long one person's list takes: adapt to 10 events and rank the catalogue, model warm, one thread, in-process.

Prints microseconds (median, 95th percentile) and the ratio to EASE fold-in, the cheapest personal peer, in the same
run: its closed-form scoring of the same supports, without adaptation, context or reasons.

    python benchmarks/recommend_latency.py [MODEL_FOLDER]      (default: the model that was trained last)
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from palate.baselines import NEWCOMER_BASELINES, EASEConfig
from palate.cli import find_model
from palate.data.event_log import from_sequences
from palate.metrics import top_k

NUM_EVENTS = 10
NUM_PEOPLE = 300


def measure(call: Callable[[int], object]) -> tuple[float, float]:
    """Median and 95th percentile of one call, in microseconds, over NUM_PEOPLE people after a warm-up."""
    for person in range(30):
        call(person)
    times = []
    for person in range(NUM_PEOPLE):
        start = time.perf_counter()
        call(person)
        times.append((time.perf_counter() - start) * 1e6)
    return float(np.median(times)), float(np.percentile(times, 95))


def main() -> None:
    torch.set_num_threads(1)
    model = find_model(Path(sys.argv[1]) if len(sys.argv) > 1 else None)
    people = [history for history in model.users.values() if len(history.items) >= NUM_EVENTS][:NUM_PEOPLE]
    supports = [history.items[:NUM_EVENTS] for history in people]
    ids = [[model.vocabulary.ids[item] for item in support] for support in supports]
    states = [model.adapt(events) for events in ids]
    ease = NEWCOMER_BASELINES["ease"].fit(model.users.chosen, model.num_trained, EASEConfig(), 1.0)

    def ease_list(person: int) -> object:
        scores = ease(from_sequences([supports[person % len(supports)]]))
        scores[0, supports[person % len(supports)]] = -np.inf
        return top_k(scores, 10)

    rows = {
        "recommend(events)": measure(lambda person: model.recommend(ids[person % len(ids)])),
        "adapt(events)": measure(lambda person: model.adapt(ids[person % len(ids)])),
        "recommend(state)": measure(lambda person: model.recommend(states[person % len(states)])),
        "EASE fold-in": measure(ease_list),
    }
    peer = rows["EASE fold-in"][0]
    print(f"{NUM_EVENTS} events, {len(model.vocabulary):,} items, one thread")
    for name, (median, slow) in rows.items():
        print(f"{name:<20} median {median:8.0f} µs   p95 {slow:8.0f} µs   × EASE {median / peer:6.2f}")
    print(json.dumps({name: {"median_us": median, "p95_us": slow} for name, (median, slow) in rows.items()}))


if __name__ == "__main__":
    main()
