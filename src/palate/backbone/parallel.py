"""The workers of a training run: one process alone, or several that each take their rows of every batch.

Gradients are summed over the workers, never averaged: the engine divides each worker's loss by the target tokens of the
whole batch, so that one worker and eight take the same step. A line of `STRATEGIES` says where the weights live:
whole on every worker (PyTorch Distributed: Experiences on Accelerating Data Parallel Training, 2020, arXiv:2006.15704),
or in slices (PyTorch FSDP: Experiences on Scaling Fully Sharded Data Parallel, 2023, arXiv:2304.11277). A table whose
rows are sharded (sharded_table.py) keeps its slices under both.
"""

import bisect
import contextlib
import itertools
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from palate.backbone.sharded_table import ShardedTable
from palate.errors import ConfigError


class Workers(NamedTuple):
    """Who takes part; every worker calls every method, in the same order."""

    rank: int
    """This worker, from 0."""
    size: int
    """How many there are."""
    device: torch.device
    """Where this worker computes."""

    def total(self, values: Sequence[float]) -> list[float]:
        """Sum each number over the workers, in float64; all get the same result."""
        if self.size == 1:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(tensor)
        return tensor.tolist()

    def stack(self, tensor: Tensor) -> Tensor:
        """Tensors of one shape from all workers, stacked in the order of the workers, on the CPU."""
        if self.size == 1:
            return tensor[None]
        parts = [torch.empty_like(tensor, device=self.device) for _ in range(self.size)]
        dist.all_gather(parts, tensor.to(self.device))
        return torch.stack(parts).cpu()


def workers_here(device: str | torch.device) -> Workers:
    """Who takes part: the process group if one was started (see launch.py), else this process alone."""
    if dist.is_initialized():
        return Workers(dist.get_rank(), dist.get_world_size(), torch.device(device))
    return Workers(0, 1, torch.device(device))


def worker_device() -> str:
    """Where this worker should compute: its own GPU if the machine has any, else the CPU."""
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"


class Replica(NamedTuple):
    """A model as the workers run it together."""

    forward: Callable[[Any], Any]
    """Forward of this worker's rows."""
    last_piece: Callable[[bool], None]
    """Called before each forward: whether gradients are to be summed over the workers after it."""


def spread(model: nn.Module, workers: Workers, strategy: str) -> Replica:
    """Give all workers the weights of worker 0, and arrange that gradients are summed.

    Raises:
        ConfigError: the strategy is not in the table.
    """
    if strategy not in STRATEGIES:
        raise ConfigError(f"training.strategy is {strategy!r}; choose one of: {', '.join(STRATEGIES)}")
    if workers.size == 1:
        return Replica(model, lambda last: None)
    own = sharded_names(model)
    for name, tensor in model.state_dict().items():
        if name not in own:
            dist.broadcast(tensor, 0)
    return STRATEGIES[strategy](model, workers)


def _replicate(model: nn.Module, workers: Workers) -> Replica:
    # NOTE: private by name, but the only way to keep a table's rows out of the sums; TorchRec uses it too.
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(  # type: ignore[no-untyped-call]
        model, sorted(sharded_names(model))
    )
    # Parameters may be unused in a step (a tower without inputs); `no_sync` is this attribute.
    replica = DistributedDataParallel(model, forward_sync_buffers=False, find_unused_parameters=True)
    replica.register_comm_hook(None, _sum)

    def last_piece(last: bool) -> None:
        replica.require_backward_grad_sync = last

    return Replica(replica, last_piece)


def _sum(state: None, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    """Sum the gradients of a bucket; DDP's own hook divides by the number of workers."""
    work = dist.all_reduce(bucket.buffer(), async_op=True)
    assert work is not None
    summed: torch.futures.Future[Tensor] = work.get_future().then(lambda done: done.value()[0])
    return summed


def _slice(model: nn.Module, workers: Workers) -> Replica:
    """Each layer of a list of layers is gathered when it is needed; what is left is gathered at the start."""
    mesh = init_device_mesh(workers.device.type, (workers.size,))
    own = sharded_names(model)
    kept = {tensor for name, tensor in model.named_parameters() if name in own}
    layers = [layer for block in model.modules() if isinstance(block, nn.ModuleList) for layer in block]
    sliced = [fully_shard(module, mesh=mesh, ignored_params=kept) for module in [*layers, model]]
    for module in sliced:
        module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)

    def last_piece(last: bool) -> None:
        for module in sliced:
            module.set_requires_gradient_sync(last, recurse=False)

    return Replica(model, last_piece)


STRATEGIES: Mapping[str, Callable[[nn.Module, Workers], Replica]] = {"ddp": _replicate, "fsdp": _slice}


@contextlib.contextmanager
def gathered(model: nn.Module) -> Iterator[None]:
    """Within it, a sliced model has whole weights, so that methods other than forward work on it."""
    sliced = [module for module in model.modules() if isinstance(module, FSDPModule)]
    for module in sliced:
        module.unshard()
    yield
    for module in sliced:
        module.reshard()


class Layout(NamedTuple):
    """How a weight of the whole model lies on the workers."""

    whole: Callable[[Tensor], Tensor]
    """This worker's part -> the whole tensor."""
    part: Callable[[Tensor], Tensor]
    """The whole tensor -> this worker's part."""
    sliced: bool
    """Whether the workers have different parts."""


def layouts_of(model: nn.Module) -> dict[str, Layout]:
    """The layout of every entry of the model's state, by name."""
    tables = {id(module.rows): module for module in model.modules() if isinstance(module, ShardedTable)}
    layouts = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if isinstance(tensor, DTensor):
            mesh, places = tensor.device_mesh, tensor.placements
            layouts[name] = Layout(
                lambda part: part.full_tensor(),  # type: ignore[attr-defined]
                lambda whole, mesh=mesh, places=places: distribute_tensor(whole, mesh, places),  # type: ignore[misc]
                True,
            )
        elif id(tensor) in tables:
            layouts[name] = Layout(tables[id(tensor)].whole, tables[id(tensor)].part, True)
        else:
            layouts[name] = Layout(_same, _same, False)
    return layouts


def sharded_names(model: nn.Module) -> set[str]:
    """Names of the parameters that are rows of a sharded table."""
    tables = {id(module.rows) for module in model.modules() if isinstance(module, ShardedTable)}
    return {name for name, tensor in model.named_parameters() if id(tensor) in tables}


def clip_gradients(
    parameters: Mapping[str, nn.Parameter], layouts: Mapping[str, Layout], workers: Workers, largest: float
) -> float:
    """Scale all gradients so that their common norm over all workers is at most `largest`; return the norm before."""
    same: list[Tensor] = []
    own: list[Tensor] = []
    for name, parameter in parameters.items():
        if parameter.grad is not None:
            grad = parameter.grad
            (own if layouts[name].sliced else same).append(grad.to_local() if isinstance(grad, DTensor) else grad)
    norm = float(nn.utils.get_total_norm(same))
    if any(layout.sliced for layout in layouts.values()):
        norm = math.hypot(norm, math.sqrt(workers.total([float(nn.utils.get_total_norm(own)) ** 2])[0]))
    if norm > largest:
        for grad in [*same, *own]:
            grad.mul_(largest / norm)
    return norm


def shares_of(batch: Any, num_workers: int) -> list[tuple[int, int]]:
    """Rows (start, stop) of each worker: consecutive, with as nearly the same number of target tokens as rows allow."""
    num_rows = len(batch[0])
    if num_workers == 1:
        return [(0, num_rows)]
    targets = batch.num_targets()
    cuts = [0]
    for worker in range(1, num_workers):
        share = targets * worker / num_workers
        cuts.append(bisect.bisect_left(range(num_rows), share, cuts[-1], key=lambda k: batch.rows(0, k).num_targets()))
    return list(zip(cuts, [*cuts[1:], num_rows], strict=True))


def pieces_of(batch: Any, workers: Workers, num_pieces: int) -> list[tuple[Any, float]]:
    """This worker's rows in at most `num_pieces` pieces, each with the weight of its loss.

    All workers get the same number of pieces, since they meet in every forward and backward; a worker that has fewer
    rows than pieces reads one row with weight 0.
    """
    shares = shares_of(batch, workers.size)
    start, stop = shares[workers.rank]
    num_pieces = min(num_pieces, max(1, *(stop - start for start, stop in shares)))
    cuts = [start + (stop - start) * piece // num_pieces for piece in range(num_pieces + 1)]
    return [
        (batch.rows(first, last), 1.0) if last > first else (batch.rows(0, 1), 0.0)
        for first, last in itertools.pairwise(cuts)
    ]


def _same(tensor: Tensor) -> Tensor:
    return tensor
