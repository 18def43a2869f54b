"""Fine-tune the text encoder with LoRA on pairs of items that people chose one after the other.

Papers: LoRA (2021, arXiv:2106.09685), through the peft library; the softmax over the other targets in the batch,
corrected for how often each stands there (logQ): "Sampling-bias-corrected neural modeling for large corpus item
recommendations" (2019, doi 10.1145/3298689.3346996).

The language model stays frozen; a low-rank change of a few of its layers is trained through it, end to end. What was
learned is a small adapter file, and `TextConfig(adapter=…)` encodes a catalogue with it at full speed.
"""

import contextlib
import importlib
import importlib.util
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, Int64
from torch import Tensor, nn

from palate.encoders.text import TextConfig, batches_by_length, model_key, pool, tokenise
from palate.encoders.text_adapters import Adapter, LowRank, load_adapter, save_adapter
from palate.encoders.text_models import file_hashes, find_folder, first_line, load_model
from palate.errors import ConfigError, DataError
from palate.steps import take_step

_PRECISIONS: Mapping[str, Callable[[], AbstractContextManager[Any]]] = {
    "float32": contextlib.nullcontext,
    "bfloat16": lambda: torch.autocast("cpu", torch.bfloat16),
}


@dataclass(frozen=True)
class LoraConfig:
    """Which layers of the language model are adapted, and how freely."""

    rank: int = 8
    """Rank of the change of each layer."""
    alpha: float = 16.0
    """The change is multiplied by alpha / rank."""
    layers: tuple[str, ...] = ("query", "value")
    """Last parts of the names of the linear layers that are adapted."""
    dropout: float = 0.0
    """On what enters the low-rank change, in training."""

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ConfigError(f"lora rank is {self.rank}; it must be at least 1")
        if not self.alpha > 0:
            raise ConfigError(f"lora alpha is {self.alpha}; it must be above 0")
        if not self.layers:
            raise ConfigError('lora layers is empty; name some, such as ("query", "value")')
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"lora dropout is {self.dropout}; it must be from 0 to below 1")


@dataclass(frozen=True)
class FineTuneConfig:
    """How the adapters are trained."""

    num_steps: int = 300
    """Steps of AdamW."""
    batch_size: int = 128
    """Pairs a step; the targets of the batch are each other's wrong answers."""
    learning_rate: float = 5e-4
    """Peak; warmed up over the first tenth, then linear down to 0."""
    temperature: float = 0.05
    """Cosines are divided by it."""
    log_q: float = 1.0
    """Share of the correction for the popularity of targets: 1 learns who chooses what, 0 also prefers rare items."""
    clip_norm: float = 1.0
    """Largest norm of a step's gradient."""

    def __post_init__(self) -> None:
        for name, least in (("num_steps", 1), ("batch_size", 2)):
            if getattr(self, name) < least:
                raise ConfigError(f"fine-tuning {name} is {getattr(self, name)}; it must be at least {least}")
        for name in ("learning_rate", "temperature", "clip_norm"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"fine-tuning {name} is {getattr(self, name)}; it must be above 0")
        if not 0 <= self.log_q <= 1:
            raise ConfigError(f"fine-tuning log_q is {self.log_q}; it must be from 0 to 1")


class LoraTextEncoder(nn.Module):
    """A frozen language model with low-rank changes that take gradients: token ids to vectors.

    Only the changes are parameters that require a gradient. A new encoder gives the vectors of the bare model.

    Raises:
        ConfigError: peft is missing, no layer has one of the names, precision is "int8", or an adapter is named.
        ModelError: the model cannot be used, as `encode_texts`.
    """

    def __init__(self, config: TextConfig, lora: LoraConfig | None = None, *, seed: int = 0) -> None:
        super().__init__()
        if importlib.util.find_spec("peft") is None:
            raise ConfigError("fine-tuning text needs the package peft, which is not installed; run: pip install peft")
        if config.precision not in _PRECISIONS:
            raise ConfigError(
                f"text precision {config.precision!r} has no gradients; fine-tune in {' or '.join(_PRECISIONS)}, then "
                "encode with the adapter in any precision"
            )
        if config.adapter is not None:
            raise ConfigError(f"text adapter is {config.adapter}; open it with LoraTextEncoder.load to train it on")
        lora = lora or LoraConfig()
        folder = find_folder(config.model, config.revision)
        self.config = config
        self.lora = lora
        self.base = model_key(file_hashes(folder, config.model))
        self._tokenizer, model = load_model(folder, config.model)
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
            warnings.simplefilter("ignore")
            peft: Any = importlib.import_module("peft")
            torch.manual_seed(seed)
            settings = peft.LoraConfig(
                r=lora.rank, lora_alpha=lora.alpha, target_modules=list(lora.layers), lora_dropout=lora.dropout
            )
            try:
                self.model = peft.get_peft_model(model, settings)
            except ValueError as error:
                raise ConfigError(
                    f"lora layers {lora.layers}: not linear layers of {config.model!r} ({first_line(error)})"
                ) from error
        self.eval()

    @classmethod
    def load(cls, path: str | Path, config: TextConfig, *, dropout: float = 0.0) -> "LoraTextEncoder":
        """Open an adapter file on the model that it was trained on, to train it on or to encode with gradients.

        Raises:
            ModelError: the file is no adapter, is damaged, or belongs to another model.
            ConfigError: as the constructor.
        """
        folder = find_folder(config.model, config.revision)
        adapter = load_adapter(Path(path), model_key(file_hashes(folder, config.model)))
        rank = len(next(iter(adapter.layers.values())).down)
        encoder = cls(config, LoraConfig(rank, adapter.alpha, tuple(adapter.layers), dropout))
        with torch.no_grad():
            for name, layer in encoder._adapted().items():
                layer.lora_A["default"].weight.copy_(adapter.layers[name].down)
                layer.lora_B["default"].weight.copy_(adapter.layers[name].up)
        return encoder

    def tokenise(self, texts: Sequence[str]) -> list[list[int]]:
        """Give the token ids of each text, for `forward`.

        Raises:
            ConfigError, ModelError: as `encode_texts`.
        """
        return tokenise(self._tokenizer, self.model, texts, self.config)

    def forward(self, tokens: Sequence[Sequence[int]]) -> Float32[Tensor, "text dim"]:
        """Encode texts given as token ids; texts of one length go through together, so nothing is padded."""
        order: list[int] = []
        parts: list[Tensor] = []
        for rows in batches_by_length(tokens, self.config.batch_size):
            batch = torch.tensor([tokens[row] for row in rows], dtype=torch.long)
            order += rows
            if batch.shape[1] == 0:
                parts.append(torch.zeros(len(rows), self.model.config.hidden_size))
                continue
            with _PRECISIONS[self.config.precision]():
                states = self.model(input_ids=batch).last_hidden_state
            parts.append(pool(states.float(), self.config))
        return torch.cat(parts)[torch.tensor(order).argsort()]

    def adapter(self) -> Adapter:
        """Give what was learned, apart from the model."""
        layers = {
            name: LowRank(
                layer.lora_A["default"].weight.detach().clone(), layer.lora_B["default"].weight.detach().clone()
            )
            for name, layer in self._adapted().items()
        }
        return Adapter(self.base, float(self.lora.alpha), layers)

    def save(self, path: str | Path) -> None:
        """Write what was learned; `TextConfig(adapter=path)` and `LoraTextEncoder.load` read it.

        Raises:
            ConfigError: the file cannot be written.
        """
        save_adapter(Path(path), self.adapter())

    def _adapted(self) -> dict[str, Any]:
        lora: Any = importlib.import_module("peft.tuners.lora")
        modules = self.model.base_model.model.named_modules()
        return {name: module for name, module in modules if isinstance(module, lora.Linear)}


def fine_tune_text(
    pairs: Int64[np.ndarray, "pair 2"],
    texts: Sequence[str],
    text: TextConfig,
    lora: LoraConfig | None = None,
    config: FineTuneConfig | None = None,
    *,
    seed: int,
    progress: Callable[[int, int, float], None] | None = None,
) -> LoraTextEncoder:
    """Train adapters so that an item's text is near the texts of what people choose after it.

    A row of `pairs` is an item and one chosen after it, as rows of `texts`. The pair's target competes with the other
    targets of its batch, each counted once. `progress(step, num_steps, loss)` is called after each step, the loss in
    nats. With one thread, the same input and seed give the same bits.

    Raises:
        DataError: there is no pair, or one points outside `texts`.
        NumericalError: the loss became NaN or infinite.
        ConfigError, ModelError: as `LoraTextEncoder`.
    """
    config = config or FineTuneConfig()
    if len(pairs) == 0:
        raise DataError("fine-tuning pairs is empty; give items that people chose one after the other")
    if pairs.min() < 0 or pairs.max() >= len(texts):
        raise DataError(f"fine-tuning pairs reach from {pairs.min()} to {pairs.max()}, texts has {len(texts)} rows")
    encoder = LoraTextEncoder(text, lora, seed=seed)
    tokens = encoder.tokenise(texts)
    share = np.bincount(pairs[:, 1], minlength=len(texts)) / len(pairs)
    log_share = config.log_q * torch.from_numpy(np.log(np.maximum(share, 1e-12))).float()
    weights = [weight for weight in encoder.parameters() if weight.requires_grad]
    optimiser = torch.optim.AdamW(weights, lr=config.learning_rate, weight_decay=0.01)
    warm = max(config.num_steps // 10, 1)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: min((step + 1) / warm, (config.num_steps - step) / max(config.num_steps - warm, 1))
    )
    rng = np.random.default_rng(seed)
    order = np.zeros(0, dtype=np.int64)
    encoder.train()
    with torch.random.fork_rng(devices=[]):  # dropout draws from the global generator
        torch.manual_seed(seed)

        def batch_loss() -> Tensor:
            nonlocal order
            while len(order) < config.batch_size:
                order = np.concatenate([order, rng.permutation(len(pairs))])
            drawn, order = pairs[order[: config.batch_size]], order[config.batch_size :]
            items, places = np.unique(drawn, return_inverse=True)
            queries, answers = torch.from_numpy(places.reshape(-1, 2)).unbind(1)
            targets, answer = map(torch.from_numpy, np.unique(answers.numpy(), return_inverse=True))
            vectors = encoder([tokens[item] for item in items])
            logits = vectors[queries] @ vectors[targets].T / config.temperature
            logits = logits - log_share[torch.from_numpy(items)[targets]]
            # An item is always nearest to itself, and people do not choose it twice in a row.
            itself = (queries[:, None] == targets) & (queries != answers)[:, None]
            return nn.functional.cross_entropy(logits.masked_fill(itself, -torch.inf), answer)

        for step in range(1, config.num_steps + 1):
            loss = take_step(
                optimiser,
                batch_loss,
                name="fine-tuning text",
                step=step,
                advice="lower learning_rate or raise temperature",
                clip=config.clip_norm,
            )
            schedule.step()
            if progress is not None:
                progress(step, config.num_steps, loss)
    return encoder.eval()
