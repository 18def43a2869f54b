"""Confidence sequences: intervals that hold at every look at once, so that a live comparison may be watched.

A 95 % interval is right in 95 of 100 looks; someone who looks after every outcome and stops when it pleases them will
nearly always find something. A confidence sequence C_1, C_2, … at level 1 − α contains the truth at all times
simultaneously with probability 1 − α, so one may stop whenever one likes (Darling & Robbins, 1967; Howard et al.,
Time-uniform, Nonparametric, Nonasymptotic Confidence Sequences, 2021, arXiv:1810.08240). Two are here:

`BoundedMean`, for outcomes in a known range, with no approximation: the predictable plug-in empirical Bernstein
sequence of Waudby-Smith & Ramdas, Estimating Means of Bounded Random Variables by Betting, 2024, arXiv:2010.09686,
theorem 2. For x in [0, 1], with bets λ_i that know only the outcomes before i,

    Σ λ_i x_i / Σ λ_i  ±  (log(2/α) + Σ 4 (x_i − μ_{i−1})² ψ(λ_i)) / Σ λ_i,     ψ(λ) = (−log(1 − λ) − λ) / 4
    λ_i = min(½, √(2 log(2/α) / (σ²_{i−1} i log(1 + i))))
    μ_i = (½ + Σ x) / (i + 1),   σ²_i = (¼ + Σ (x − μ)²) / (i + 1)

`AsymptoticMean`, for outcomes of any finite variance and narrower, but only nearly right, and only when there are many:
Waudby-Smith et al., Time-uniform Central Limit Theory and Asymptotic Confidence Sequences, 2021, arXiv:2103.06476,
theorem 2.2, with ρ by its equation for the time at which the interval is to be tightest:

    mean ± deviation · √( 2 (tρ² + 1) / (t²ρ²) · log(√(tρ² + 1) / α) ),   ρ² = (−2 log α + log(1 − 2 log α)) / t*

"Many" must not be counted in outcomes. Where a canary gets 5 % of the people and 2 % of them click, its thousandth
outcome has brought one click, which makes nearly all of the variance there will be; before it the interval is far too
narrow, and watching it from the hundredth outcome on raised a false alarm in more than half of the streams. So nothing
is said until (outcomes / kurtosis) reaches `enough`: for rare events that is about the number of events, for weighted
ones the number of those that weigh.

`Comparison` puts the difference of two arms under either. Where an outcome was to be treated with known probability p,

    z = m₁ − m₀ + [treated] (x − m₁) / p − [not treated] (x − m₀) / (1 − p)

has the difference of the arms' means as its expectation whatever the running means m₀, m₁ of the outcomes before are
(augmented inverse propensity weighting, section 3 of the same paper), and |z| ≤ range / min(p, 1 − p).

All of it is for outcomes that are independent of each other and assigned independently. People are assigned once and
come back, so count each person once (such as: did one of the lists of the first day lead to a click), not each list.
"""

import math
from dataclasses import dataclass, replace
from typing import Literal, Protocol, runtime_checkable

from palate.errors import ConfigError, NumericalError
from palate.significance import Interval

Decision = Literal["better", "worse", "undecided"]

_LARGEST_BET = 0.5


@runtime_checkable
class MeanSequence(Protocol):
    """The running state of a confidence sequence for a mean; `observe` returns the next one."""

    def observe(self, value: float) -> "MeanSequence":
        """Take in one more outcome."""
        ...

    def interval(self) -> Interval:
        """The estimate and its bounds after the outcomes so far."""
        ...


@dataclass(frozen=True)
class BoundedMean:
    """Empirical Bernstein confidence sequence of outcomes in a known range."""

    lowest: float = 0.0
    """Least value that an outcome can have."""
    highest: float = 1.0
    """Greatest value that an outcome can have."""
    level: float = 0.95
    """Probability with which every interval of the sequence holds the mean."""
    count: int = 0
    """Outcomes so far; this and what follows is the running state."""
    total: float = 0.0
    """Sum of outcomes, scaled to [0, 1] like all below."""
    squares: float = 0.0
    """Sum of squared distances of each outcome from the mean that counts it in."""
    bets: float = 0.0
    """Sum of bets."""
    weighted: float = 0.0
    """Sum of bet times outcome."""
    paid: float = 0.0
    """Sum of what the bets cost: 4 (x − μ)² ψ(λ)."""

    def __post_init__(self) -> None:
        _check_level(self.level)
        if not (math.isfinite(self.highest - self.lowest) and self.lowest < self.highest):
            raise ConfigError(f"outcomes range from {self.lowest} to {self.highest}; expected a finite, growing range")

    def observe(self, value: float) -> "BoundedMean":
        """Take in one more outcome.

        Raises:
            NumericalError: it is not inside the range: the interval would mean nothing.
        """
        if not self.lowest <= value <= self.highest:
            raise NumericalError(f"outcome is {value}; expected one from {self.lowest} to {self.highest}")
        x = (value - self.lowest) / (self.highest - self.lowest)
        step = self.count + 1
        mean, variance = (0.5 + self.total) / step, (0.25 + self.squares) / step
        log_error = math.log(2 / (1 - self.level))
        bet = min(_LARGEST_BET, math.sqrt(2 * log_error / (variance * step * math.log1p(step))))
        total = self.total + x
        return replace(
            self,
            count=step,
            total=total,
            squares=self.squares + (x - (0.5 + total) / (step + 1)) ** 2,
            bets=self.bets + bet,
            weighted=self.weighted + bet * x,
            paid=self.paid + (x - mean) ** 2 * (-math.log1p(-bet) - bet),
        )

    def interval(self) -> Interval:
        """The mean and its bounds; the whole range before the first outcome."""
        if self.count == 0:
            return Interval((self.lowest + self.highest) / 2, self.lowest, self.highest)
        width = self.highest - self.lowest
        centre = self.weighted / self.bets
        half = (math.log(2 / (1 - self.level)) + self.paid) / self.bets
        return Interval(
            self.lowest + width * self.total / self.count,
            max(self.lowest, self.lowest + width * (centre - half)),
            min(self.highest, self.lowest + width * (centre + half)),
        )


@dataclass(frozen=True)
class AsymptoticMean:
    """Asymptotic confidence sequence of outcomes of any finite variance."""

    level: float = 0.95
    """Probability with which every interval of the sequence holds the mean, where outcomes are many."""
    tightest_at: int = 1000
    """Number of outcomes for which the interval is made as narrow as it can be."""
    enough: int = 100
    """Outcomes, divided by their kurtosis, before which nothing is said; see the module's docstring."""
    count: int = 0
    """Outcomes so far; this and what follows is the running state."""
    mean: float = 0.0
    """Of the outcomes."""
    squares: float = 0.0
    """Sum of squared distances from the mean."""
    cubes: float = 0.0
    """Sum of cubed distances from the mean."""
    fourths: float = 0.0
    """Sum of fourth powers of the distances from the mean."""

    def __post_init__(self) -> None:
        _check_level(self.level)
        for name in ("tightest_at", "enough"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; expected at least 1")

    def observe(self, value: float) -> "AsymptoticMean":
        """Take in one more outcome.

        The moments are updated in place of a second pass: Pébay, Formulas for Robust, One-Pass Parallel Computation
        of Covariances and Arbitrary-Order Statistical Moments, 2008, eq. 2.1 with one value.

        Raises:
            NumericalError: it is NaN or infinite.
        """
        if not math.isfinite(value):
            raise NumericalError(f"outcome is {value}; expected a finite number")
        before, count = self.count, self.count + 1
        away = value - self.mean
        step = away / count
        square = away * step * before
        return replace(
            self,
            count=count,
            mean=self.mean + step,
            squares=self.squares + square,
            cubes=self.cubes + square * step * (count - 2) - 3 * step * self.squares,
            fourths=self.fourths
            + square * step**2 * (count**2 - 3 * count + 3)
            + 6 * step**2 * self.squares
            - 4 * step * self.cubes,
        )

    def interval(self) -> Interval:
        """The mean and its bounds; no bounds before there are enough outcomes."""
        if not self.squares > 0 or self.squares**2 < self.enough * self.fourths:
            return Interval(self.mean, -math.inf, math.inf)
        error = 1 - self.level
        rho = (-2 * math.log(error) + math.log1p(-2 * math.log(error))) / self.tightest_at
        grown = self.count * rho + 1
        half = math.sqrt(2 * grown / (self.count**2 * rho) * math.log(math.sqrt(grown) / error))
        half *= math.sqrt(self.squares / self.count)
        return Interval(self.mean, self.mean - half, self.mean + half)


@dataclass(frozen=True)
class Comparison:
    """How far the treated arm lies above the other one, under a confidence sequence; see `compare_bounded`."""

    difference: MeanSequence
    """Of the z of the module's docstring."""
    counts: tuple[int, int] = (0, 0)
    """Outcomes of (untreated, treated)."""
    totals: tuple[float, float] = (0.0, 0.0)
    """Sums of their outcomes."""

    def observe(self, treated: bool, value: float, share: float = 0.5) -> "Comparison":
        """Take in one more outcome.

        Args:
            treated: which arm it is of.
            value: the outcome, the more the better.
            share: the probability with which it was to be treated; it may change as long as it is known beforehand.

        Raises:
            ConfigError: the share is not inside (0, 1).
            NumericalError: as the sequence; for `BoundedMean` also where the share is more extreme than it was told.
        """
        if not 0 < share < 1:
            raise ConfigError(f"share is {share}; expected a probability between 0 and 1")
        if not math.isfinite(value):
            raise NumericalError(f"outcome is {value}; expected a finite number")
        # An arm without outcomes borrows the other's mean; any number known beforehand keeps z unbiased.
        overall = sum(self.totals) / max(1, sum(self.counts))
        before = [total / count if count else overall for total, count in zip(self.totals, self.counts, strict=True)]
        surprise = (value - before[1]) / share if treated else (before[0] - value) / (1 - share)
        counts = (self.counts[0] + (not treated), self.counts[1] + treated)
        totals = (self.totals[0] + (0.0 if treated else value), self.totals[1] + (value if treated else 0.0))
        return Comparison(self.difference.observe(before[1] - before[0] + surprise), counts, totals)

    def interval(self) -> Interval:
        """The difference, treated minus untreated, and its bounds, in the unit of outcomes."""
        return self.difference.interval()

    def decision(self, margin: float = 0.0) -> Decision:
        """Say which arm is better, as soon as differences within ±`margin` are ruled out.

        Raises:
            ConfigError: the margin is below 0 or not finite.
        """
        if not (math.isfinite(margin) and margin >= 0):
            raise ConfigError(f"margin is {margin}; expected a number of at least 0, in the unit of outcomes")
        _, low, high = self.interval()
        if low > margin:
            return "better"
        return "worse" if high < -margin else "undecided"


def compare_bounded(
    *, level: float = 0.95, smallest_share: float = 0.5, lowest: float = 0.0, highest: float = 1.0
) -> Comparison:
    """Compare arms whose outcomes have a known range: no approximation.

    Args:
        level: probability with which every interval holds the difference.
        smallest_share: what no arm's share will ever be below.
        lowest: least value of an outcome.
        highest: greatest value of an outcome.

    Raises:
        ConfigError: a level or share out of range.
    """
    if not 0 < smallest_share <= 0.5:
        raise ConfigError(f"smallest_share is {smallest_share}; expected a share above 0 and at most one half")
    if not (lowest <= 0 <= highest):
        # Running means begin at 0, which must be a possible outcome for the bound on z to hold.
        raise ConfigError(f"outcomes range from {lowest} to {highest}; shift them so that 0 is among them")
    # A rounding in z must not count as out of range.
    most = (highest - lowest) / smallest_share * (1 + 1e-9)
    return Comparison(BoundedMean(-most, most, level))


def compare_asymptotic(*, level: float = 0.95, tightest_at: int = 1000, enough: int = 100) -> Comparison:
    """Compare arms by the asymptotic sequence: narrower, and nearly right once there are many outcomes.

    Raises:
        ConfigError: a setting out of range.
    """
    return Comparison(AsymptoticMean(level, tightest_at, enough))


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise ConfigError(f"level: the confidence level is {level}; expected a share between 0 and 1, such as 0.95")
