"""What devices can do at their best: dense matrix products, memory, and how fast that is read.

Figures of the makers' data sheets for NVIDIA A100, H100 and H200 (SXM, no sparsity); a CPU is measured on the spot.
"""

import os
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Literal, NamedTuple

import torch

from palate.errors import ConfigError


class Device(NamedTuple):
    """One device."""

    name: str
    flops: float
    """Operations a second of dense matrix products, in `precision`."""
    memory: float
    """Bytes."""
    bandwidth: float
    """Bytes of memory read or written a second."""
    precision: Literal["float32", "bfloat16"]
    """What products are computed in."""
    accelerator: bool
    """Whether it has the fused kernels of a GPU."""


def measure_cpu(num_repeats: int = 5) -> Device:
    """This machine's CPU with PyTorch's present threads: the best of a few products and copies, in float32."""
    size = 1024
    left, right, out = torch.randn(size, size), torch.randn(size, size), torch.empty(size, size)
    source, copy = torch.randn(2**24), torch.empty(2**24)
    product = min(_seconds(lambda: torch.mm(left, right, out=out)) for _ in range(num_repeats))
    copied = min(_seconds(lambda: copy.copy_(source)) for _ in range(num_repeats))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Device("cpu", 2 * size**3 / product, memory, 2 * source.nbytes / copied, "float32", False)


def _seconds(run: Callable[[], object]) -> float:
    """CPU seconds for each thread, which other processes do not lengthen."""
    begin = time.process_time()
    run()
    return max(time.process_time() - begin, 1e-9) / torch.get_num_threads()


DEVICES: Mapping[str, Callable[[], Device]] = {
    "cpu": measure_cpu,
    "a100": partial(Device, "a100", 312e12, 80e9, 2.039e12, "bfloat16", True),
    "h100": partial(Device, "h100", 989e12, 80e9, 3.35e12, "bfloat16", True),
    "h200": partial(Device, "h200", 989e12, 141e9, 4.8e12, "bfloat16", True),
}


def find_device(name: str) -> Device:
    """Look a device up, or measure it.

    Raises:
        ConfigError: no such device.
    """
    if name not in DEVICES:
        raise ConfigError(f"device is {name!r}; choose one of: {', '.join(DEVICES)}")
    return DEVICES[name]()
