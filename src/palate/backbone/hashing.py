"""Hash functions of item numbers: the mixing step of SplitMix64 (Steele et al., Fast Splittable Pseudorandom Number
Generators, 2014, doi 10.1145/2660193.2660195) after a key of the function's own is added.

Keys come from the seed alone, so nothing is stored: the same seed is the same function on every machine, and an item
keeps its buckets however many items come after it.
"""

from hashlib import blake2b

import torch
from jaxtyping import Int64
from torch import Tensor

FIRST, SECOND = 0xBF58476D1CE4E5B9 - 2**64, 0x94D049BB133111EB - 2**64  # as signed numbers of 64 bits


def hash_keys(num_hashes: int, seed: int) -> tuple[int, ...]:
    """A signed number of 64 bits for each hash function."""
    digests = (blake2b(f"{seed}:{place}".encode(), digest_size=8).digest() for place in range(num_hashes))
    return tuple(int.from_bytes(digest, "big", signed=True) for digest in digests)


def buckets_of(items: Int64[Tensor, "*shape"], keys: tuple[int, ...], num_buckets: int) -> Int64[Tensor, "*shape hash"]:
    """The bucket of each item under each hash function.

    Two items share k given buckets as often as independent draws would, with probability num_buckets^−k.
    """
    # NOTE: (a · x + b) mod p is not enough. Items are numbered in a row, and its collisions come in the same pairs
    # under several functions: four times as many shared pairs of buckets as by chance were measured.
    mixed = items[..., None] + torch.tensor(keys, dtype=torch.int64, device=items.device)
    mixed = (mixed ^ _shifted(mixed, 30)) * FIRST  # sums and products wrap around
    mixed = (mixed ^ _shifted(mixed, 27)) * SECOND
    buckets: Tensor = ((mixed ^ _shifted(mixed, 31)) & (2**63 - 1)) % num_buckets
    return buckets


def _shifted(numbers: Int64[Tensor, "*shape"], bits: int) -> Int64[Tensor, "*shape"]:
    """Shift to the right as unsigned numbers; PyTorch's own would repeat the sign."""
    shifted: Tensor = (numbers >> bits) & (2 ** (64 - bits) - 1)
    return shifted
