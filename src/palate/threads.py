"""How many threads computing takes: one, unless a caller says otherwise.

PyTorch, NumPy and SciPy each keep a pool of threads of their own. Between small products its idle threads spin, which
takes the core from whoever could use it: beside other jobs the baselines of `palate demo` took 26 minutes, and with one
thread 100 seconds of the CPU (LOG.md). Sums that threads share are also not the same from run to run. What is to use
several cores starts several processes.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from threadpoolctl import threadpool_limits


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute with one thread for a while, then put every pool back to what it was.

    NOTE: only pools of libraries that are loaded by now are held; import what a block computes with before it.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1):
            yield
    finally:
        torch.set_num_threads(before)


def keep_to_one_thread() -> None:
    """Let what the calling thread computes stay on it for good: for a process that does nothing else.

    Only pools of libraries that are loaded by now are held: call it again after loading more.
    """
    torch.set_num_threads(1)
    threadpool_limits(1)
