"""Item text through a pre-trained transformer: token states pooled to one vector a text, cached on disk.

The default model is all-MiniLM-L6-v2, a six-layer BERT tuned for sentence similarity. Papers: Sentence-BERT
(2019, arXiv:1908.10084) for the pooling, MiniLM (2020, arXiv:2002.10957) for the distilled model.

Texts are batched by exact token count, so no batch holds padding: nothing is wasted on it, and a vector does
not depend on the texts that shared its batch. The weights are not trained here, so a text is encoded once, then
read from the cache; a run that finds every text there does not load the model at all. Weights that were fine-tuned
(lora.py) come in as an adapter file and go the same way.
"""

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float, Float32
from torch import Tensor

from palate.encoders.text_adapters import adapter_hash, load_adapter, merge_adapter
from palate.encoders.text_backends import BACKENDS
from palate.encoders.text_cache import VectorTable, add_vectors, cache_folder, read_vectors
from palate.encoders.text_models import BUNDLED_MODELS, file_hashes, find_folder, is_path, load_model
from palate.errors import ConfigError, DataError, ModelError, NumericalError

__all__ = ["BUNDLED_MODELS", "POOLINGS", "TextConfig", "encode_texts"]

_FORMAT = "palate-text-2"  # part of every fingerprint: change it when the same input gives other vectors

# Pooling name to (text token dim) -> (text dim). Batches hold no padding, so the mean needs no mask.
POOLINGS: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": lambda states: states.mean(dim=1),
    "cls": lambda states: states[:, 0],
}


@dataclass(frozen=True)
class TextConfig:
    """Which language model reads the texts, and how its token states become one vector."""

    model: str = "minilm"
    """A name in BUNDLED_MODELS, a folder of a saved model, or the Hugging Face id of one."""
    revision: str | None = None
    """Branch, tag or commit of a Hugging Face id; None means its main branch."""
    max_length: int = 64
    """Tokens read of each text, the special ones included; the rest is cut off."""
    batch_size: int = 256
    """Largest number of texts in one forward pass; changes speed and memory, not the vectors."""
    pooling: Literal["mean", "cls"] = "mean"
    """'mean' of all token states, or the state of the first token ('cls')."""
    normalise: bool = True
    """Scale each vector to length 1, so that an inner product is a cosine."""
    precision: Literal["float32", "bfloat16", "int8"] = "float32"
    """Of the matrix products. 'float32'; 'bfloat16', fast where the CPU has it in hardware; or 'int8' through ONNX
    Runtime (pip install onnx onnxruntime onnxscript). On 3,630 product titles, one AMD core with AVX-512: 1,100, 1,450
    and 2,000 titles a CPU-second; least cosine with float32 .99997 and .994. NDCG@10 by content alone, of 1,594 people
    in Online Retail, against float32: bfloat16 equal (within .0004 at every support size), int8 moves it by −.0006 to
    +.0017."""
    adapter: str | None = None
    """File of LoRA weights for the model, as `LoraTextEncoder.save` writes it; None takes the model as it is."""
    cache_dir: str | None = None
    """Folder of the vector cache; None means ~/.cache/palate."""

    def __post_init__(self) -> None:
        if self.pooling not in POOLINGS:
            raise ConfigError(f"text pooling {self.pooling!r} is unknown; choose one of {', '.join(POOLINGS)}")
        if self.precision not in BACKENDS:
            raise ConfigError(f"text precision {self.precision!r} is unknown; choose one of {', '.join(BACKENDS)}")
        if self.max_length < 3:
            raise ConfigError(
                f"text max_length is {self.max_length}; it must be at least 3 (two special tokens and one)"
            )
        if self.batch_size < 1:
            raise ConfigError(f"text batch_size is {self.batch_size}; it must be at least 1")
        if self.revision is not None and (self.model in BUNDLED_MODELS or is_path(self.model)):
            raise ConfigError(f"text revision {self.revision!r} needs a Hugging Face id, not {self.model!r}; drop it")


def encode_texts(
    texts: Sequence[str],
    config: TextConfig,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> Float32[Tensor, "text dim"]:
    """Encode each text to one vector, row for row; an empty string gets the model's own vector for it.

    `progress(done, total)` is called after each batch with the number of distinct texts encoded and to
    encode; texts read from the cache are not counted.

    Raises:
        DataError: no text at all, one string instead of a sequence, or a text that is not valid Unicode.
        ModelError: the model cannot be found, differs from its recorded hash, or cannot encode text; or the adapter
            belongs to another model.
        ConfigError: the cache folder cannot be written, max_length is more than the model can read, or the precision
            needs a package that is not installed.
        NumericalError: the model produced a NaN or infinity.
    """
    if isinstance(texts, str):
        raise DataError(f"texts is the single string {texts[:40]!r}; pass a sequence of strings, such as [text]")
    if not texts:
        raise DataError("texts is empty, so there is nothing to encode; pass at least one text")

    folder = find_folder(config.model, config.revision)
    hashes = file_hashes(folder, config.model)
    if config.adapter is not None:
        hashes["adapter"] = adapter_hash(Path(config.adapter).expanduser())
    fingerprint = _fingerprint(hashes, config)
    keys = [_text_key(fingerprint, row, text) for row, text in enumerate(texts)]
    cache = cache_folder(config.cache_dir, "text") / fingerprint.hex()
    table = read_vectors(cache)
    missing = {key: text for key, text in zip(keys, texts, strict=True) if table is None or key not in table.rows}
    if missing:
        vectors = _run_model(folder, hashes, list(missing.values()), config, progress)
        new = VectorTable({key: row for row, key in enumerate(missing)}, vectors)
        add_vectors(cache, new)
        table = new if table is None else _join(table, new)
    assert table is not None
    return table.vectors[[table.rows[key] for key in keys]]


def model_key(hashes: Mapping[str, str]) -> str:
    """Hash the hashes of a model's files: the identity of the model."""
    return hashlib.sha256(json.dumps(dict(hashes), sort_keys=True).encode()).hexdigest()


def tokenise(tokenizer: Any, model: Any, texts: Sequence[str], config: TextConfig) -> list[list[int]]:
    """Give the token ids of each text, cut to `config.max_length`, without padding.

    Raises:
        ConfigError: max_length is more than the model can read.
        ModelError: the tokenizer knows more tokens than the model.
    """
    longest = min(tokenizer.model_max_length, model.config.to_dict().get("max_position_embeddings", config.max_length))
    if config.max_length > longest:
        raise ConfigError(f"text max_length is {config.max_length}; {config.model!r} reads at most {longest} tokens")
    tokens: list[list[int]] = tokenizer(list(texts), truncation=True, max_length=config.max_length, padding=False)[
        "input_ids"
    ]
    if max(max(row, default=0) for row in tokens) >= model.get_input_embeddings().num_embeddings:
        raise ModelError(f"text model {config.model!r}: its tokenizer and its weights do not match; install it again")
    return tokens


def batches_by_length(tokens: Sequence[Sequence[int]], batch_size: int) -> list[list[int]]:
    """Rows of `tokens` in batches of one length each, the shortest first."""
    by_length: dict[int, list[int]] = defaultdict(list)
    for row, ids in enumerate(tokens):
        by_length[len(ids)].append(row)
    return [
        by_length[length][start : start + batch_size]
        for length in sorted(by_length)
        for start in range(0, len(by_length[length]), batch_size)
    ]


def pool(states: Float[Tensor, "text token dim"], config: TextConfig) -> Float[Tensor, "text dim"]:
    """Make one vector of the token states of each text."""
    pooled = POOLINGS[config.pooling](states)
    return torch.nn.functional.normalize(pooled, dim=-1) if config.normalise else pooled


def _run_model(
    folder: Path,
    hashes: Mapping[str, str],
    texts: list[str],
    config: TextConfig,
    progress: Callable[[int, int], None] | None,
) -> Float32[Tensor, "text dim"]:
    """Encode distinct texts."""
    tokenizer, model = load_model(folder, config.model)
    tokens = tokenise(tokenizer, model, texts, config)
    if config.adapter is not None:
        base = model_key({name: value for name, value in hashes.items() if name != "adapter"})
        merge_adapter(model, load_adapter(Path(config.adapter).expanduser(), base))
    forward = BACKENDS[config.precision](model, model_key(hashes), cache_folder(config.cache_dir, "text-models"))
    # Allocated outside inference mode: an inference tensor could not take part in a backward pass later on.
    # Zeros are the vector of a text without one token (an empty string, where no special tokens are added).
    vectors = torch.zeros(len(texts), model.config.hidden_size)
    done = 0
    with torch.inference_mode():
        for rows in batches_by_length(tokens, config.batch_size):
            batch = torch.tensor([tokens[row] for row in rows], dtype=torch.long)
            if batch.shape[1] > 0:
                vectors[rows] = pool(forward(batch), config)
            done += len(rows)
            if progress is not None:
                progress(done, len(texts))
    if not vectors.isfinite().all():
        raise NumericalError(f"text model {config.model!r} produced a NaN or infinity; its weights are damaged")
    return vectors


def _join(old: VectorTable, new: VectorTable) -> VectorTable:
    rows = old.rows | {key: len(old.vectors) + row for key, row in new.rows.items()}
    return VectorTable(rows, torch.cat([old.vectors, new.vectors]))


def _fingerprint(hashes: Mapping[str, str], config: TextConfig) -> bytes:
    """What a vector depends on besides its text: the files of the model and the settings that change it."""
    settings = {
        "max_length": config.max_length,
        "pooling": config.pooling,
        "normalise": config.normalise,
        "precision": config.precision,
    }
    content = json.dumps([_FORMAT, dict(hashes), settings], sort_keys=True)
    return hashlib.sha256(content.encode()).digest()


def _text_key(fingerprint: bytes, row: int, text: str) -> bytes:
    try:
        return hashlib.sha256(fingerprint + text.encode()).digest()
    except UnicodeEncodeError as error:
        raise DataError(
            f"texts row {row} (from 0) is not valid Unicode ({error.reason}); clean it before encoding"
        ) from error
