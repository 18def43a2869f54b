"""A small real BERT on disk, for the tests of text."""

import shutil
from pathlib import Path

import pytest
import torch
import transformers

from palate.encoders.text import TextConfig

WORDS = ["red", "blue", "mug", "lamp", "the", "tea"]


def save_tiny_bert(folder: Path, seed: int = 0) -> Path:
    """A BERT of two small layers with a real WordPiece vocabulary, on disk."""
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]))
    tokenizer = transformers.BertTokenizer(str(folder / "vocab.txt"))
    tokenizer.save_pretrained(folder)
    torch.manual_seed(seed)
    config = transformers.BertConfig(
        vocab_size=len(WORDS) + 5,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
        initializer_range=0.5,
    )
    transformers.BertModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_bert(tmp_path_factory.mktemp("models") / "bert")


@pytest.fixture(scope="session")
def other_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same shapes, other weights."""
    return save_tiny_bert(tmp_path_factory.mktemp("models") / "other", seed=1)


@pytest.fixture
def model(saved: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(saved, tmp_path / "model"))


@pytest.fixture
def config(model: Path, tmp_path: Path) -> TextConfig:
    return TextConfig(model=str(model), max_length=16, cache_dir=str(tmp_path / "cache"))
