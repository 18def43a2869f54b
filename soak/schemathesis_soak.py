"""Requests made up from the OpenAPI document, by the ten thousand: no server error, every answer as documented.

python soak/schemathesis_soak.py --cases 50000

Filters hold filters, and schemathesis follows some of them until memory is gone (17 GB were seen). So each route is
asked by a process of its own with a bound; one that runs into it is counted, and the round goes on with the next seed.
"""

import argparse
import json
import os
import resource
import sys
import time
import traceback
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "service"))

from fuzzing import Fuzzer

_MOST_BYTES = 4 << 30


def asked(fuzzer: Fuzzer, label: str, cases: int, seed: int) -> Counter[str] | None:
    """Ask a route in a forked process; None: making up the requests took too much memory."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            resource.setrlimit(resource.RLIMIT_AS, (_MOST_BYTES, _MOST_BYTES))
            seen = fuzzer.run(label, cases, seed)
            os.write(writer, json.dumps({f"{mode} {status}": count for (mode, status), count in seen.items()}).encode())
            code = 0
        except MemoryError:
            code = 2
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        told = pipe.read()
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code == 1:
        raise SystemExit(f"{label}, seed {seed}: see above")
    return Counter(json.loads(told)) if code == 0 else None


def main() -> None:
    """Go round the routes with new seeds until there were enough cases."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--cases", type=int, default=50_000)
    wanted = parser.parse_args().cases
    fuzzer = Fuzzer()
    seen: Counter[str] = Counter()
    start, seed, per_route, lost = time.monotonic(), 1, 100, 0
    while seen.total() < wanted:
        for label in fuzzer.operations:
            found = asked(fuzzer, label, per_route, seed)
            lost += found is None
            seen += found or Counter()
        seed += 1
        said = f"{seen.total():,} cases, {time.monotonic() - start:.0f} s, {lost} runs out of memory"
        print(f"{said}: {dict(sorted(seen.items()))}", flush=True)


if __name__ == "__main__":
    main()
