"""Requests made up from the OpenAPI document, by the ten thousand: no server error, every answer as documented.

python soak/schemathesis_soak.py --cases 50000 [--processes 2]

Filters hold filters, and schemathesis follows some of them until memory is gone (17 GB were seen). So processes with a
bound ask the routes, and a run that goes beyond it is counted.
"""

import argparse
import multiprocessing
import resource
import sys
import time
from collections import Counter
from concurrent.futures import Future, ProcessPoolExecutor
from functools import cache
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "service"))

from fuzzing import Fuzzer

_MOST_BYTES = 4 << 30


def bound() -> None:
    """Let this process have so much memory and no more."""
    resource.setrlimit(resource.RLIMIT_AS, (_MOST_BYTES, _MOST_BYTES))


@cache
def own_fuzzer() -> Fuzzer:
    """This process's application, which goes on from run to run."""
    return Fuzzer()


def ask(label: str, cases: int, seed: int) -> Counter[tuple[str, int]]:
    """Ask a route; how often each (mode, status) came back."""
    return own_fuzzer().run(label, cases, seed)


def ask_round(labels: list[str], cases: int, seed: int, processes: int) -> tuple[Counter[str], int]:
    """Ask every route, in processes of this round; what came back, and how many runs took too much memory."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, spawn, initializer=bound) as pool:
        found = [outcome(future) for future in [pool.submit(ask, label, cases, seed) for label in labels]]
    return sum((one for one in found if one is not None), Counter()), found.count(None)


def outcome(future: "Future[Counter[tuple[str, int]]]") -> Counter[str] | None:
    """What a run saw; None: making up the requests took too much memory."""
    try:
        return Counter({f"{mode} {status}": count for (mode, status), count in future.result().items()})
    except MemoryError:
        return None


def main() -> None:
    """Go round the routes with new seeds until there were enough cases."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--cases", type=int, default=50_000)
    parser.add_argument("--processes", type=int, default=2)
    arguments = parser.parse_args()
    labels = list(Fuzzer().operations)
    seen: Counter[str] = Counter()
    start, seed, per_route, lost = time.monotonic(), 1, 400, 0
    while seen.total() < arguments.cases:
        found, missed = ask_round(labels, per_route, seed, arguments.processes)
        seen, lost, seed = seen + found, lost + missed, seed + 1
        said = f"{seen.total():,} cases, {time.monotonic() - start:.0f} s, {lost} runs out of memory"
        print(f"{said}: {dict(sorted(seen.items()))}", flush=True)


if __name__ == "__main__":
    main()
