"""What a training run may spend and how its learning rate falls: a warm-up, then a straight line down to the end.

The line is drawn over whatever budget is set. Under a time budget the rate follows the seconds used so far, so that a
run on a slow or shared machine is annealed to the end all the same (Budgeted Training: Rethinking Deep Neural Network
Training Under Resource Constraints, 2020, arXiv:1905.04753, where a linear schedule is the robust choice).
"""

from dataclasses import dataclass

from palate.errors import ConfigError


@dataclass(frozen=True)
class Budget:
    """The ends of a run; the first that is reached ends it. 0: no such limit."""

    num_epochs: int
    """Passes over the data."""
    max_steps: int
    """Optimiser steps."""
    max_seconds: float
    """Seconds, by the clock that the caller reads."""

    def __post_init__(self) -> None:
        limits = (self.num_epochs, self.max_steps, self.max_seconds)
        if min(limits) < 0 or max(limits) <= 0:
            raise ConfigError(
                f"training: num_epochs, max_steps and max_seconds are {self.num_epochs}, {self.max_steps} and "
                f"{self.max_seconds}; none may be negative and one at least must be above 0"
            )

    def progress(self, epochs: float, steps: int, seconds: float) -> float:
        """Share of the run that is over, in [0, 1]: that of the limit which is nearest to its end."""
        used = ((epochs, self.num_epochs), (steps, self.max_steps), (seconds, self.max_seconds))
        return min(1.0, max(spent / limit for spent, limit in used if limit > 0))

    def reached(self, epochs: int, steps: int, seconds: float) -> str | None:
        """Name the limit that ends the run, or None while there is something left."""
        used = {
            "num_epochs": (epochs, self.num_epochs),
            "max_steps": (steps, self.max_steps),
            "max_seconds": (seconds, self.max_seconds),
        }
        return next((name for name, (spent, limit) in used.items() if 0 < limit <= spent), None)


def learning_rate_at(step: int, progress: float, *, peak: float, warmup_steps: int, final_rate: float) -> float:
    """Learning rate of step `step` (from 0) when `progress` of the budget is used.

    It climbs to `peak` over the warm-up and falls in a straight line to `final_rate` · peak at the end of the budget.
    """
    warm = min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0
    return peak * warm * (1 - (1 - final_rate) * progress)
