"""What a training run carries from step to step, how it is put into a checkpoint, and how it is taken out again.

Checkpoints hold whole tensors, whatever the workers' number and strategy: a run may go on with others than before.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from palate.backbone.parallel import Layout, Replica, Workers, layouts_of, spread
from palate.backbone.run_state import RunState, load_run, save_run, tidy_run
from palate.backbone.training_config import CHANGEABLE, TrainingConfig
from palate.errors import ConfigError, ModelError


@dataclass
class Run:
    """A run under way: its model, and all that the next step depends on."""

    model: nn.Module
    replica: Replica
    workers: Workers
    layouts: Mapping[str, Layout]
    weights: Mapping[str, nn.Parameter]
    """Those that are trained."""
    optimiser: torch.optim.Optimizer
    average: dict[str, Tensor]
    """The averaged weights; empty without averaging."""
    state: RunState
    best: dict[str, Tensor] = field(default_factory=dict)
    """The model's state at its best validation."""

    def save(self, folder: Path) -> None:
        """Put the workers' parts together, on all workers, and let worker 0 write them.

        Raises:
            ModelError: the file cannot be written.
        """
        groups = {"model": self.model.state_dict(), "average": self.average, "best": self.best}
        for name, weight in self.weights.items():
            for slot, value in self.optimiser.state[weight].items():
                groups.setdefault(f"optimiser-{slot}", {})[name] = value
        tensors = {}
        for group, values in groups.items():
            for name, value in values.items():
                whole = self.layouts[name].whole(value.detach()) if value.ndim else value
                if self.workers.rank == 0:
                    tensors[f"{group}.{name}"] = whole.cpu()
        tensors["random"] = self.workers.stack(torch.get_rng_state())
        if self.workers.device.type == "cuda":
            tensors["random-cuda"] = self.workers.stack(torch.cuda.get_rng_state(self.workers.device))
        if self.workers.rank == 0:
            save_run(folder, tensors, self.state)

    def restore(self, tensors: Mapping[str, Tensor], state: RunState, source: Path) -> None:
        """Put the run where a checkpoint was; `source` names it in errors.

        Raises:
            ModelError: it is of a model with other weights, or of a run with other settings.
        """
        for name, wanted in self.state.settings.items():
            if state.settings.get(name) != wanted:
                raise ModelError(
                    f"{source}: a run with {name} = {state.settings.get(name)}, not {wanted}; set it back, or choose "
                    "another folder"
                )
        groups: dict[str, dict[str, Tensor]] = {"model": {}, "average": {}, "best": {}}
        for entry, value in tensors.items():
            group, _, name = entry.partition(".")
            groups.setdefault(group, {})[name] = value
        expected = self.model.state_dict()
        for name in sorted({*expected, *groups["model"]}):
            mine = self.layouts[name].whole(expected[name]).shape if name in expected else None
            saved = groups["model"][name].shape if name in groups["model"] else None
            if mine != saved:
                shapes = [tuple(shape) if shape is not None else "no such weight" for shape in (mine, saved)]
                raise ModelError(
                    f"{source}: a run of another model: {name} is {shapes[1]} there and {shapes[0]} here; choose "
                    "another folder, or start from its weights with warm_start"
                )
        parts = {
            group: {
                name: self.layouts[name].part(value).to(self.workers.device) if value.ndim else value
                for name, value in values.items()
            }
            for group, values in groups.items()
            if not group.startswith("random")
        }
        copy_into(parts["model"], self.model)
        self.average, self.best, self.state = parts["average"], parts["best"], state
        for name, weight in self.weights.items():
            slots = {group.partition("-")[2]: values[name] for group, values in parts.items() if name in values}
            self.optimiser.state[weight] = {slot: value for slot, value in slots.items() if slot}


def start_run(model: nn.Module, config: TrainingConfig, seed: int, workers: Workers, folder: Path | None) -> Run:
    """Make the optimiser and what goes with it, or read them from the last checkpoint."""
    if config.checkpoint_blocks:
        switch = getattr(model, "set_activation_checkpointing", None)
        if switch is None:
            raise ConfigError("training.checkpoint_blocks: this model has no blocks to checkpoint; set it to false")
        switch(True)
    replica = spread(model, workers, config.strategy)
    if config.compile:
        replica = replica._replace(forward=torch.compile(replica.forward))
    weights = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    if not weights:
        raise ConfigError("training.freeze: no weight is left to train; freeze less")
    decayed = [weight for weight in weights.values() if weight.ndim > 1]
    plain = [weight for weight in weights.values() if weight.ndim < 2]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas)
    average = {name: weight.detach().clone() for name, weight in weights.items()} if config.ema else {}
    settings = {name: repr(value) for name, value in asdict(config).items() if name not in CHANGEABLE}
    state = RunState(settings | {"seed": repr(seed)})
    run = Run(model, replica, workers, layouts_of(model), weights, optimiser, average, state)
    found = load_run(folder) if folder is not None else None
    step = found[1].step if found is not None else -1
    if min(steps := workers.stack(torch.tensor(step)).tolist()) < max(steps):
        raise ModelError(
            f"{folder}: the workers see different checkpoints there; give a folder that all machines share"
        )
    if folder is not None and found is not None:
        run.restore(*found, folder)
    if folder is not None and workers.rank == 0:
        tidy_run(folder, step)
    _set_random(found[0] if found is not None else {}, workers, seed, step)
    return run


def copy_into(values: Mapping[str, Tensor], model: nn.Module) -> None:
    """Set the named entries of a model's state."""
    state = model.state_dict()
    with torch.no_grad():
        for name, value in values.items():
            state[name].copy_(value)


def _set_random(saved: Mapping[str, Tensor], workers: Workers, seed: int, step: int) -> None:
    """Set PyTorch's generators as they were; a worker that was not there then starts one of its own."""
    generators = np.random.SeedSequence([seed, workers.rank, step + 1])
    torch.manual_seed(int(generators.generate_state(1, np.uint64)[0]))
    if workers.rank < len(saved.get("random", ())):
        # NOTE: PyTorch misreads a row that is a view of the matrix, or crashes; it must have storage of its own.
        torch.set_rng_state(saved["random"][workers.rank].clone())
    if workers.device.type == "cuda" and workers.rank < len(saved.get("random-cuda", ())):
        torch.cuda.set_rng_state(saved["random-cuda"][workers.rank].clone(), workers.device)
