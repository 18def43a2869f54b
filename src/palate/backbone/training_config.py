"""How a large model is trained: the settings of the engine."""

from dataclasses import dataclass
from typing import Literal

from palate.backbone.parallel import STRATEGIES
from palate.backbone.schedule import Budget
from palate.errors import ConfigError

CHANGEABLE = frozenset(
    {"num_epochs", "max_steps", "max_seconds", "clock", "validate_every", "patience", "accumulate", "checkpoint_blocks"}
    | {"compile", "checkpoint_steps", "checkpoint_seconds", "strategy"}
)
"""The settings that a run may change when it goes on from a checkpoint: how long, how watched, in how much memory."""


@dataclass(frozen=True)
class TrainingConfig:
    """How a model is trained. The first budget that is reached ends the run."""

    num_epochs: int = 12
    """Passes over the data; 0: no such limit."""
    max_steps: int = 0
    """Optimiser steps; 0: no such limit."""
    max_seconds: float = 0.0
    """Seconds by `clock`, over all resumes; 0: no such limit."""
    clock: Literal["wall", "cpu"] = "wall"
    """Which seconds max_seconds means: those on the wall, or those of CPU time of all workers together."""
    learning_rate: float = 2e-3
    """Peak, after the warm-up."""
    warmup_steps: int = 50
    """Steps until the learning rate has its peak."""
    final_rate: float = 0.02
    """Learning rate at the end of the budget, as a share of the peak."""
    weight_decay: float = 0.01
    """Of AdamW, on tensors of two or more axes; biases and norms are not decayed."""
    betas: tuple[float, float] = (0.9, 0.98)
    """Decays of AdamW's first and second moment."""
    clip_norm: float = 1.0
    """Largest norm of a step's gradient."""
    accumulate: int = 1
    """Pieces in which a worker goes through its rows of a batch: more need less memory, and give the same step."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """What matrix products are computed in; weights and optimiser are float32 always."""
    compile: bool = False
    """Whether torch.compile makes the model's kernels. It needs a C++ compiler and a minute or more at the start."""
    checkpoint_blocks: bool = False
    """Whether a block's activations are computed again in the backward pass rather than kept: less memory, more time.
    The model must have set_activation_checkpointing(bool)."""
    ema: float = 0.0
    """Decay of the averaged weights, which are validated and returned; 0: no averaging."""
    validate_every: int = 1
    """Epochs from one validation to the next; the last epoch is always validated."""
    patience: int = 0
    """Validations without a better one that end the run; 0: it goes to the end of its budget. The best weights are
    returned in either case."""
    freeze: tuple[str, ...] = ()
    """Parameters that get no gradient: names, or the dotted beginnings of names."""
    checkpoint_steps: int = 0
    """Steps from one checkpoint to the next, beside the one after each epoch; 0: none."""
    checkpoint_seconds: float = 300.0
    """Wall seconds from one checkpoint to the next, beside the one after each epoch; 0: none."""
    strategy: str = "ddp"
    """How several workers hold the weights, a line of `parallel.STRATEGIES`: ddp (whole on each) or fsdp (in slices).
    One worker alone holds them whole under both."""

    def __post_init__(self) -> None:
        self.budget()
        lowest = {"warmup_steps": 0, "weight_decay": 0, "accumulate": 1, "validate_every": 1, "patience": 0}
        for name, low in {**lowest, "checkpoint_steps": 0, "checkpoint_seconds": 0}.items():
            if getattr(self, name) < low:
                raise ConfigError(f"training.{name} is {getattr(self, name)}; it must be at least {low}")
        for name in ("learning_rate", "clip_norm"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"training.{name} is {getattr(self, name)}; it must be above 0")
        for name, value in (
            ("final_rate", self.final_rate),
            ("ema", self.ema),
            ("betas", max(self.betas)),
            ("betas", min(self.betas)),
        ):
            if not 0 <= value <= 1 or (name != "final_rate" and value == 1):
                raise ConfigError(f"training.{name} is {getattr(self, name)}; it must be in [0, 1)")
        for name, choices in (
            ("clock", ("wall", "cpu")),
            ("precision", ("float32", "bfloat16")),
            ("strategy", tuple(STRATEGIES)),
        ):
            if getattr(self, name) not in choices:
                raise ConfigError(f"training.{name} is {getattr(self, name)!r}; choose one of: {', '.join(choices)}")

    def budget(self) -> Budget:
        """What the run may spend."""
        return Budget(self.num_epochs, self.max_steps, self.max_seconds)
