"""Requests made up from the OpenAPI document, by the ten thousand: no server error, every answer as documented.

python soak/schemathesis_soak.py --cases 50000
"""

import argparse
import sys
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "service"))

from fuzzing import Fuzzer


def main() -> None:
    """Go round the routes with new seeds until there were enough cases."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--cases", type=int, default=50_000)
    wanted = parser.parse_args().cases
    fuzzer = Fuzzer()
    seen: Counter[tuple[str, int]] = Counter()
    start, seed, per_route = time.monotonic(), 1, 500
    while sum(seen.values()) < wanted:
        for label in fuzzer.operations:
            seen += fuzzer.run(label, per_route, seed)
        seed += 1
        print(
            f"{sum(seen.values()):,} cases, {time.monotonic() - start:.0f} s: {dict(sorted(seen.items()))}", flush=True
        )


if __name__ == "__main__":
    main()
