"""Experiments: who gets which variant, and whether the groups came out as large as they should.

A person's variant is a function of a keyed hash of their id, so it needs no storage, is the same on every worker and
tells nothing about the person. Among variants of weight w_v, each with its own hash u_v in (0, 1), a person belongs to

    argmin_v  −log(u_v) / w_v

(the logarithmic method of Schindelhauer & Schomaker, Weighted Distributed Hash Tables, 2005, doi
10.1145/1073970.1074008, on the rendezvous hashing of Thaler & Ravishankar, 1998): the first of independent exponential
clocks of rates w_v rings, which is v with probability w_v / Σ w. Raising one weight makes one clock faster and no other
slower, so people come to that variant and nobody leaves it, and nobody moves between two others.

A sample ratio mismatch, groups of other sizes than the shares say, is the symptom of most broken experiments: lost
events, bots, redirects (Fabijan et al., Diagnosing Sample Ratio Mismatch in Online Controlled Experiments, 2019, doi
10.1145/3292500.3330722). The check is Pearson's chi-square test (1900, doi 10.1080/14786440009463897).
"""

import math
from collections.abc import Mapping
from hashlib import blake2b
from typing import NamedTuple

from scipy.stats import chi2  # type: ignore[import-untyped]

from palate.errors import ConfigError, DataError

_KEY_BYTES = 64
_SMALLEST_EXPECTED = 5.0
"""Below so many expected people in a group the chi-square approximation is not to be trusted."""


class ShareCheck(NamedTuple):
    """Whether groups are as large as their shares say."""

    chi_square: float
    p_value: float
    """Probability of sizes at least as far off by chance."""
    mismatch: bool
    """The p-value is below the threshold: the experiment is broken and its figures mean nothing."""
    expected: dict[str, float]
    """People that each variant should have had."""


def assign(user_id: str, shares: Mapping[str, float], key: bytes) -> str:
    """Give the variant of a person.

    Args:
        user_id: whose variant; any text.
        shares: weight of each variant, in any unit; a variant of weight 0 gets nobody.
        key: names the experiment, and keeps outsiders from finding out who is in which group. Another key mixes
            people anew; a key longer than 64 bytes is refused.

    Raises:
        ConfigError: no variant has a weight above 0, a weight is negative or not finite, or the key is too long.
    """
    _check_shares(shares)
    if len(key) > _KEY_BYTES:
        raise ConfigError(f"key: {len(key)} bytes; expected at most {_KEY_BYTES}")
    waits = {name: -math.log(_uniform(user_id, name, key)) / weight for name, weight in shares.items() if weight > 0}
    return min(waits, key=lambda name: (waits[name], name))


def check_shares(counts: Mapping[str, int], shares: Mapping[str, float], *, threshold: float = 1e-3) -> ShareCheck:
    """Test whether the numbers of people (not of their visits) in each variant fit the shares.

    A fixed-sample test: look once, or lower the threshold by the number of looks. 0.001 is the custom, as a mismatch
    should never happen.

    Raises:
        ConfigError: shares as in `assign`, or a threshold outside (0, 1).
        DataError: a count of an unknown variant or below 0, or too few people for the test.
    """
    _check_shares(shares)
    if not 0 < threshold < 1:
        raise ConfigError(f"threshold is {threshold}; expected a number between 0 and 1, such as 0.001")
    unknown = sorted(name for name in counts if not shares.get(name, 0.0) > 0)
    if any(counts[name] for name in unknown):
        raise DataError(f"counts: variant {unknown[0]!r} has people, but no share of them")
    live = {name: weight for name, weight in shares.items() if weight > 0}
    seen = {name: counts.get(name, 0) for name in live}
    if min(seen.values()) < 0:
        raise DataError(f"counts: a count is {min(seen.values())}; expected none below 0")
    total, weights = sum(seen.values()), sum(live.values())
    expected = {name: total * weight / weights for name, weight in live.items()}
    if min(expected.values()) < _SMALLEST_EXPECTED:
        raise DataError(
            f"counts: {total} people in all; the smallest variant should have at least {_SMALLEST_EXPECTED:.0f} to test"
        )
    statistic = math.fsum((seen[name] - expected[name]) ** 2 / expected[name] for name in live)
    p_value = float(chi2.sf(statistic, len(live) - 1)) if len(live) > 1 else 1.0
    return ShareCheck(statistic, p_value, p_value < threshold, expected)


def _uniform(user_id: str, variant: str, key: bytes) -> float:
    """A number in (0, 1) that looks drawn at random; the length keeps ("ab", "c") and ("a", "bc") apart."""
    name = variant.encode()
    text = len(name).to_bytes(8, "big") + name + user_id.encode("utf-8", "surrogatepass")
    # 53 bits are what a float holds exactly; half a step keeps 0 out.
    return ((int.from_bytes(blake2b(text, digest_size=8, key=key).digest(), "big") >> 11) + 0.5) / 2**53


def _check_shares(shares: Mapping[str, float]) -> None:
    for name, weight in shares.items():
        if not (math.isfinite(weight) and weight >= 0):
            raise ConfigError(f"share of variant {name!r} is {weight}; expected a number of at least 0")
    if not any(weight > 0 for weight in shares.values()):
        raise ConfigError("shares: no variant has a share above 0; expected at least one")
