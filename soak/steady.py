"""A real service under steady load for an hour: does its memory grow, do its descriptors, do its answers slow down?

    python soak/steady.py --model MODEL [--hours 1] [--pairs 25] [--people 1000000]

Events with lists after them come at Poisson moments from so many people, of whom the service holds 20,000 in memory.
The first third is the warm-up, in which that memory fills. Lines are fitted to the resident memory after it, and of the
last third, by least squares; reported are their slopes, the descriptors and threads at their fewest and most, and the
latencies of both halves.
"""

import argparse
import asyncio
import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
import uvloop

from palate.recommend import Recommender

sys.path.append(str(Path(__file__).parent.parent / "benchmarks"))

from service_kills import Service, make_home

from service import Pool, pairs

_EVERY = 10.0


async def watch(process: psutil.Process, samples: list[tuple[float, int, int, int]]) -> None:
    """Look at a process again and again."""
    while True:
        with process.oneshot():
            samples.append((time.monotonic(), process.memory_info().rss, process.num_fds(), process.num_threads()))
        await asyncio.sleep(_EVERY)


async def load(service: Service, key: str, model: Recommender, arguments: argparse.Namespace) -> dict[str, object]:
    """Send pairs, first and second half apart, and say how the process fared."""
    host, port = service.url.removeprefix("http://").split(":")
    pool = Pool(host, int(port), key)
    samples: list[tuple[float, int, int, int]] = []
    watching = asyncio.create_task(watch(psutil.Process(service.process.pid), samples))
    items = list(model.vocabulary.ids)
    seconds = 3600 * arguments.hours / 2
    halves = [await pairs(pool, items, arguments.pairs, seconds, arguments.people) for _ in range(2)]
    watching.cancel()
    times, memory, descriptors, threads = (np.array(column) for column in zip(*samples, strict=True))
    warm = times > times[0] + (times[-1] - times[0]) / 3
    late = times > times[0] + 2 * (times[-1] - times[0]) / 3
    slopes = [np.polyfit(times[some] / 3600, memory[some] / 2**20, 1)[0] for some in (warm, late)]
    return {
        "MB an hour after the warm-up, in the last third": [round(float(slope), 2) for slope in slopes],
        "MB at the start, after the warm-up, at the end": [
            round(float(value) / 2**20, 1) for value in (memory[0], memory[warm][0], memory[-1])
        ],
        "descriptors, fewest and most after the warm-up": [int(descriptors[warm].min()), int(descriptors[warm].max())],
        "threads": [int(threads[warm].min()), int(threads[warm].max())],
        "halves": halves,
    }


def main() -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--hours", type=float, default=1.0)
    parser.add_argument("--pairs", type=float, default=25.0)
    parser.add_argument("--people", type=int, default=1_000_000)
    arguments = parser.parse_args()
    model = Recommender.load(arguments.model)
    with tempfile.TemporaryDirectory() as folder:
        home, key = make_home(Path(folder) / "home", model)
        service = Service(home)
        try:
            print(json.dumps(uvloop.run(load(service, key, model, arguments)), indent=1))
        finally:
            service.stop()


if __name__ == "__main__":
    main()
