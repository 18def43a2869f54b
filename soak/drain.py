"""Stop a server under load, many times, and ask that no connection is reset and no request lost.

    python soak/drain.py --stops 100

Half of the callers keep their connection, half open a new one for every request. Exit code 0 where nothing was lost.
"""

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "service"))

from asking import ServerProcess
from test_server import Caller


def main() -> None:
    """Stop after stop."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--stops", type=int, default=100)
    good, faults, longest = 0, [], 0.0
    for _ in range(parser.parse_args().stops):
        server = ServerProcess("--pause-ms", "2")
        callers = [Caller(server, keep=number % 2 == 0) for number in range(16)]
        for caller in callers:
            caller.start()
        time.sleep(0.3)
        start = time.monotonic()
        server.terminate()
        server.process.wait(60)
        longest = max(longest, time.monotonic() - start)
        for caller in callers:
            caller.join(30)
            good += caller.good
            faults += caller.faults
        server.close()
    print(f"{good:,} requests answered, {len(faults)} lost, longest stop {longest:.1f} s")
    for fault in faults[:10]:
        print(fault)
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
