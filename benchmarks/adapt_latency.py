"""One person's regression head at serving speed: fit ten events and score 1,000 candidates, then one event at a time.

One thread, in-process, candidates' features cached (float32). An update is compared with a fit of the same events from
scratch, at the support size where the update happens, and beside an O(d²) covariance update (Sherman–Morrison).

    OMP_NUM_THREADS=1 python benchmarks/adapt_latency.py [--json FILE]
"""

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when NumPy loads its BLAS

import numpy as np
from scipy.linalg.blas import dsymv, dsyr

from palate.meta.online import Prior

NUM_EVENTS, NUM_ITEMS, NUM_DRAWS, NUM_CALLS = 10, 1000, 64, 3000
WIDTHS = (64, 600)
AFTER = (10, 50, 200)


def measure(call: Callable[[int], object], prepare: Callable[[int], None] = lambda _: None) -> dict[str, float]:
    """Median and 95th percentile of one call in microseconds; `prepare` is not timed."""
    times = []
    for number in range(-100, NUM_CALLS):
        prepare(number)
        start = time.perf_counter_ns()
        call(number)
        times.append((time.perf_counter_ns() - start) / 1e3)
    return {"median_us": float(np.median(times[100:])), "p95_us": float(np.percentile(times[100:], 95))}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    rows: dict[str, dict[str, float]] = {}
    for width in WIDTHS:
        rng = np.random.default_rng(width)
        prior = Prior(rng.normal(size=width), rng.uniform(0.1, 1, width), 0.5)
        features = rng.normal(size=(300, width))
        target, weight = rng.normal(size=300), rng.uniform(0.5, 2, 300)
        items = rng.normal(size=(NUM_ITEMS, width)).astype(np.float32)
        first = slice(NUM_EVENTS)

        def fit_and_score(_: int, prior=prior, part=(features[first], target[first], weight[first]), items=items):
            return prior.fit(*part).score(items)

        posterior = prior.fit(features[first], target[first], weight[first])
        name = f"d={width}"
        rows[f"{name} fit {NUM_EVENTS} + score {NUM_ITEMS:,}"] = measure(fit_and_score)
        rows[f"{name} fit {NUM_EVENTS} + draw {NUM_DRAWS}"] = measure(
            lambda _, prior=prior, part=(features[first], target[first], weight[first]): prior.fit(*part).draw(
                NUM_DRAWS, np.random.default_rng(0)
            )
        )
        rows[f"{name} score {NUM_ITEMS:,}"] = measure(
            lambda _, posterior=posterior, items=items: posterior.score(items)
        )
        rows[f"{name} variance {NUM_ITEMS:,}"] = measure(
            lambda _, posterior=posterior, items=items: posterior.variance(items)
        )
        for count in AFTER:
            known, event = (features[:count], target[:count], weight[:count]), features[count]
            more = features[: count + 1], target[: count + 1], weight[: count + 1]
            state = {"posterior": prior.fit(*known)}

            def fresh(_: int, state=state, known=known, prior=prior):
                # As it stands between events: fitted once, then updated, with room in the buffer.
                posterior = prior.fit(known[0][:-1], known[1][:-1], known[2][:-1])
                posterior.update(known[0][-1], float(known[1][-1]), float(known[2][-1]))
                state["posterior"] = posterior

            rows[f"{name} update after {count}"] = measure(
                lambda _, state=state, event=event: state["posterior"].update(event, 0.5, 1.5), fresh
            )
            rows[f"{name} refit of {count + 1}"] = measure(lambda _, prior=prior, more=more: prior.fit(*more))
        covariance, mean = np.asfortranarray(np.diag(prior.variance)), prior.mean.copy()

        def dense(number: int, covariance=covariance, mean=mean, features=features):
            row = features[number % 300]
            gain = dsymv(1.0, covariance, row, lower=1)
            spread = float(row @ gain) + 0.5
            np.add(mean, gain * ((0.5 - float(row @ mean)) / spread), out=mean)
            dsyr(-1 / spread, gain, lower=1, a=covariance, overwrite_a=1)

        rows[f"{name} covariance update (peer)"] = measure(dense)
    print(f"{NUM_CALLS:,} calls each, one thread, NumPy {np.__version__}")
    for name, row in rows.items():
        print(f"{name:<32} median {row['median_us']:8.1f} µs   p95 {row['p95_us']:8.1f} µs")
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
