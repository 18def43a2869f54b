"""A training step of the real model on tensors without data: what it computes and what it holds, at any size.

The model's own forward, backward and optimiser run on fake tensors, which have shapes and no memory, while every
operation is watched: matrix products are counted by PyTorch's own formulas, and storages from birth to death. The same
watch over a real step gives the same figures, which is how the tests hold it.

Watching the storages of a dispatched program: Purandare et al., Estimating GPU Memory Usage of PyTorch Programs, as
torch.distributed's memory tracker, 2024; fake tensors: PyTorch 2, Ansel et al., 2024, doi 10.1145/3620665.3640366.
"""

import weakref
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from palate.backbone.attention import AttentionBlock
from palate.backbone.batches import Batch
from palate.backbone.blocks import Pairs
from palate.backbone.dropout import Dropout
from palate.backbone.item_tables import ITEM_TABLES
from palate.backbone.semantic_ids import Codes
from palate.backbone.sequence_model import Catalogue, SequenceModel, SequenceModelConfig
from palate.errors import ConfigError

CODES = (256, 256, 256, 64)
"""Sizes of the codes that a semantic table is planned with."""
_aten = torch.ops.aten


@dataclass(frozen=True)
class StepShape:
    """What one device does in one step."""

    num_items: int
    """Items of the catalogue."""
    num_rows: int
    """Sequences."""
    num_events: int
    """Events of each sequence, one token each, and one token more for the person."""
    num_content: int = 0
    """Content features of an item; 0 for none."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """What matrix products are computed in; weights and optimiser are float32 always."""
    checkpointing: bool = False
    """Whether blocks are computed again in the backward pass instead of kept."""
    ema: bool = False
    """Whether averaged weights are kept beside the weights."""

    def __post_init__(self) -> None:
        for name, low in (("num_items", 1), ("num_rows", 1), ("num_events", 1), ("num_content", 0)):
            if getattr(self, name) < low:
                raise ConfigError(f"step.{name} is {getattr(self, name)}; it must be at least {low}")

    @property
    def num_tokens(self) -> int:
        """Tokens of a step; all but padding bear loss."""
        return self.num_rows * (self.num_events + 1)


class Rehearsal(NamedTuple):
    """What a step computes (floating-point operations of matrix products) and holds (bytes)."""

    sequence_flops: float
    """Item vectors, blocks and heads, forward and backward."""
    output_flops: float
    """Scores of the items and their gradients."""
    weights: int
    gradients: int
    optimiser: int
    ema: int
    buffers: int
    """Catalogue: how often items occur, their content, their codes; and the batch."""
    activations: int
    """Held for the backward pass when the states are known."""
    output: int
    """What scoring the items holds beyond that, at its most."""
    working: int
    """The most that is held beside weights, gradients, optimiser, ema and buffers: of activations, output and
    gradients that are still being summed."""
    peak: int
    """The most that is held in all. Less than the sum: gradients come while activations go."""


def rehearse(
    config: SequenceModelConfig, shape: StepShape, *, accelerator: bool = False, real: bool = False
) -> Rehearsal:
    """Go through two steps of training and report the second, for which the optimiser's state exists.

    Args:
        config: of the model; its id table is whole.
        shape: of the step.
        accelerator: attention and dropout are the fused kernels of a GPU, which the model takes there.
        real: compute with data, on the CPU, to check a rehearsal.

    Raises:
        ConfigError: the model cannot be built so.
    """
    if real and accelerator:
        raise ConfigError("rehearse: a real step runs on the CPU and has no fused kernels; leave one of the two out")
    if config.loss.distinct:
        raise ConfigError(
            "rehearse: loss.distinct depends on the data and cannot be rehearsed; plan with it set to false"
        )
    watch = _Watch()
    with nullcontext() if real else FakeTensorMode(), watch:
        model = build(config, shape)
        if accelerator:
            _use_fused(model)
        model.set_activation_checkpointing(shape.checkpointing)
        model.train()
        parameters = list(model.parameters())
        batch = full_batch(config, shape)
        weights = watch.keep(parameters)
        buffers = watch.keep([*model.buffers(), *(column for column in batch if column is not None)])
        average = [weight.detach().clone() for weight in parameters] if shape.ema else []
        ema = watch.keep(average)
        optimiser = torch.optim.AdamW(parameters, foreach=accelerator)
        for parameter in parameters:
            parameter.register_post_accumulate_grad_hook(watch.keep_gradient)  # type: ignore[no-untyped-call]
        model.norm.register_forward_hook(lambda module, given, states: watch.reach_output(states))
        for _ in range(2):
            watch.start_step()
            optimiser.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=shape.precision == "bfloat16"):
                loss = model(batch)
            (loss.total / shape.num_tokens).backward()
            del loss
            gradients = [weight.grad for weight in parameters if weight.grad is not None]
            norm = nn.utils.get_total_norm(gradients, foreach=accelerator)
            for gradient in gradients:
                gradient.mul_(1 / (1 + norm))
            optimiser.step()
            states = [value for state in optimiser.state.values() for value in state.values()]
            moments = watch.keep(states)
            for averaged, weight in zip(average, parameters, strict=False):
                averaged.lerp_(weight.detach(), 0.001)
        held = sum(gradient.nbytes for gradient in gradients)
    return Rehearsal(
        watch.flops[False],
        watch.flops[True],
        weights,
        held,
        moments,
        ema,
        buffers,
        watch.activations,
        watch.output,
        watch.working,
        watch.peak,
    )


def build(config: SequenceModelConfig, shape: StepShape) -> SequenceModel:
    """The real model, with a catalogue of the shape's size and nothing in it: under `torch.device("meta")` or a fake
    tensor mode nothing is allocated."""
    content = torch.zeros(shape.num_items, shape.num_content) if shape.num_content else None
    codes = None
    if ITEM_TABLES[config.item_table.kind].reads_codes:
        codes = Codes(torch.zeros(shape.num_items, len(CODES), dtype=torch.int64), CODES)
    with _Unchecked():
        return SequenceModel(config, Catalogue(torch.ones(shape.num_items, dtype=torch.int64), content, codes))


def full_batch(config: SequenceModelConfig, shape: StepShape) -> Batch:
    """Sequences without padding, of random items, with every column that the model may read."""
    rows, events = shape.num_rows, shape.num_events
    times = torch.arange(events + 1, dtype=torch.float64).expand(rows, -1) * 3600
    kinds = torch.zeros(rows, events + 1, dtype=torch.int64)
    values = torch.zeros(rows, events + 1)
    timed = config.timed or config.calendar or "dwell" in config.heads
    return Batch(
        torch.randint(shape.num_items, (rows, events)),
        torch.ones(rows, events, dtype=torch.bool),
        torch.ones(rows, dtype=torch.bool),
        torch.arange(rows),
        torch.randint(shape.num_items, (rows, events + 1, 1)),
        torch.ones(rows, events + 1, 1),
        times[:, :-1] if timed else None,
        kinds[:, :-1] if config.num_kinds else None,
        values[:, :-1] if config.rated else None,
        times if timed else None,
        kinds if config.num_kinds else None,
        values if config.rated or "value" in config.heads else None,
    )


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees every operation: counts its matrix products, and the bytes of storages that are alive.

    What depends on the data is answered as in training: every position counts, numbers are 1.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._alive: dict[int, int] = {}
        self._kept: set[int] = set()
        self._live = self._live_kept = self._at_output = 0
        self.start_step()

    def start_step(self) -> None:
        """Forget the peaks and counts of the step before."""
        self.flops = {False: 0.0, True: 0.0}
        self._scoring = False
        self.activations = self.output = self.working = 0
        self.peak = self._live

    def keep(self, tensors: Iterable[Tensor]) -> int:
        """Count these as held from step to step; return their bytes."""
        total = 0
        for tensor in tensors:
            total += tensor.untyped_storage().nbytes()
            self._see(tensor)
            place = tensor.untyped_storage()._cdata
            if place not in self._kept:
                self._kept.add(place)
                self._live_kept += self._alive[place]
        return total

    def keep_gradient(self, parameter: Tensor) -> None:
        """Called when a parameter's gradient is complete."""
        assert parameter.grad is not None
        self.keep([parameter.grad])

    def reach_output(self, states: Tensor) -> None:
        """Called with the states: what follows is scoring, until their gradient is known."""
        self._scoring = True
        self.activations = self._at_output = self._live - self._live_kept

        def leave(gradient: Tensor) -> None:
            self._scoring = False

        states.register_hook(leave)  # type: ignore[no-untyped-call]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is _aten._local_scalar_dense.default and isinstance(args[0], FakeTensor):
            return 1.0 if args[0].is_floating_point() else 1
        if func is _aten.index.Tensor and _is_fake_mask(args[1][0]):
            mask = args[1][0]
            args = (args[0], [torch.zeros(mask.numel(), dtype=torch.int64, device=mask.device)] * mask.ndim)
        result = func(*args, **kwargs)
        if (formula := flop_registry.get(func.overloadpacket)) is not None:
            self.flops[self._scoring] += formula(*args, **kwargs, out_val=result)
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._see(leaf)
        working = self._live - self._live_kept
        self.peak, self.working = max(self.peak, self._live), max(self.working, working)
        if self._scoring:
            self.output = max(self.output, working - self._at_output)
        return result

    def _see(self, tensor: Tensor) -> None:
        """Count a storage that is new, until it dies."""
        storage, place = tensor.untyped_storage(), tensor.untyped_storage()._cdata
        if place not in self._alive:
            self._alive[place] = storage.nbytes()
            self._live += storage.nbytes()
            weakref.finalize(storage, self._forget, place).atexit = False

    def _forget(self, place: int) -> None:
        self._live -= (size := self._alive.pop(place))
        if place in self._kept:
            self._kept.remove(place)
            self._live_kept -= size


def _is_fake_mask(index: Tensor | None) -> bool:
    return isinstance(index, FakeTensor) and index.dtype == torch.bool


class _Unchecked(TorchFunctionMode):
    """Tensors without data pass the checks of their values."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.__bool__ and (args[0].is_meta or isinstance(args[0], FakeTensor)):
            return False
        return func(*args, **(kwargs or {}))


def _use_fused(model: nn.Module) -> None:
    """Let the modules that ask for the device do what they do on an accelerator."""
    for module in list(model.modules()):
        for name, stand_in in _ON_ACCELERATOR.get(type(module), {}).items():
            setattr(module, name, partial(stand_in, module))


def _fused_dropout(module: Dropout, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """One kernel, which keeps a byte for each element."""
    if not module.training or module.rate == 0:
        return x
    return torch.native_dropout(x, module.rate, True)[0]


def _fused_attention(
    module: AttentionBlock, x: Float[Tensor, "row position dim"], pairs: Pairs
) -> Float[Tensor, "row position dim"]:
    """The memory-efficient kernel, which takes a mask and keeps no weights."""
    rows, width, dim = x.shape
    heads, size = module.num_heads, dim // module.num_heads
    query, key, value = module.query_key_value(x).view(rows, width, 3, heads, size).permute(2, 0, 3, 1, 4).unbind(0)
    bias = torch.zeros(width, width, dtype=query.dtype)
    if (learned := module.bias(pairs)) is not None:
        bias = bias + learned.to(query.dtype)
    rate = module.dropout.rate if module.training else 0.0
    mixed = _aten._scaled_dot_product_efficient_attention(
        query, key, value, bias.expand(rows, heads, width, width), True, rate
    )[0]
    attended: Tensor = mixed.transpose(1, 2).reshape(rows, width, dim)
    return attended


def _float_norm(module: nn.LayerNorm, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Autocast computes norms in float32 on an accelerator, and does not on a CPU."""
    wide = x.float() if torch.is_autocast_enabled("cpu") else x
    return F.layer_norm(wide, module.normalized_shape, module.weight, module.bias, module.eps)


_ON_ACCELERATOR: Mapping[type[nn.Module], Mapping[str, Callable[..., Tensor]]] = {
    Dropout: {"forward": _fused_dropout},
    AttentionBlock: {"attend": _fused_attention},
    nn.LayerNorm: {"forward": _float_norm},
}
