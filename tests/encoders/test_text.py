import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from palate.encoders.text import TextConfig, encode_texts
from palate.encoders.text_models import find_folder
from palate.errors import ConfigError, DataError

TEXTS = ["red mug", "the blue lamp", "", "tea", "red mug", "the red red red mug lamp"]


def slow_reference(folder: Path, text: str, max_length: int, pooling: str, normalise: bool) -> torch.Tensor:
    """One text, straight through transformers."""
    tokenizer = transformers.BertTokenizer.from_pretrained(folder)
    bert = transformers.BertModel.from_pretrained(folder).eval()
    with torch.no_grad():
        states = bert(**tokenizer(text, truncation=True, max_length=max_length, return_tensors="pt"))
    states = states.last_hidden_state[0]
    vector = states.mean(dim=0) if pooling == "mean" else states[0]
    return vector / vector.norm() if normalise else vector


# ---------------------------------------------------------------- vectors


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("normalise", [True, False])
def test_vectors_equal_the_slow_reference(model: Path, tmp_path: Path, pooling: Any, normalise: bool) -> None:
    config = TextConfig(
        str(model),
        max_length=6,
        batch_size=2,
        pooling=pooling,
        normalise=normalise,
        cache_dir=str(tmp_path / "c"),
    )
    vectors = encode_texts(TEXTS, config)
    expected = torch.stack([slow_reference(model, text, 6, pooling, normalise) for text in TEXTS])
    torch.testing.assert_close(vectors, expected, atol=1e-5, rtol=0)
    assert vectors.dtype == torch.float32
    assert (vectors[0] - vectors[1]).norm() > 0.1  # texts do differ


@pytest.mark.parametrize("batch_size", [1, 2, 256])
def test_order_and_batches_do_not_matter(model: Path, tmp_path: Path, batch_size: int) -> None:
    forward = encode_texts(TEXTS, TextConfig(str(model), max_length=16, cache_dir=str(tmp_path / "a")))
    backward = encode_texts(
        TEXTS[::-1],
        TextConfig(str(model), max_length=16, batch_size=batch_size, cache_dir=str(tmp_path / "b")),
    )
    torch.testing.assert_close(forward, backward.flip(0), atol=1e-5, rtol=0)


def test_the_vectors_can_take_part_in_a_backward_pass(config: TextConfig) -> None:
    vectors = encode_texts(TEXTS, config)
    weight = torch.ones(16, requires_grad=True)
    (vectors @ weight).sum().backward()
    assert weight.grad is not None
    torch.testing.assert_close(weight.grad, vectors.sum(dim=0))


def test_progress_counts_distinct_texts_up_to_the_total(config: TextConfig) -> None:
    seen: list[tuple[int, int]] = []
    encode_texts(TEXTS, config, progress=lambda done, total: seen.append((done, total)))
    assert seen == sorted(seen)
    assert seen[-1] == (5, 5)
    assert len(seen) == 5  # five distinct token counts, so five batches
    encode_texts(TEXTS, config, progress=lambda done, total: seen.append((done, total)))
    assert len(seen) == 5


def test_an_empty_string_without_special_tokens_is_the_zero_vector(model: Path, config: TextConfig) -> None:
    content = json.loads((model / "tokenizer.json").read_text())
    content["post_processor"] = None
    (model / "tokenizer.json").write_text(json.dumps(content))
    settings = json.loads((model / "tokenizer_config.json").read_text())
    (model / "tokenizer_config.json").write_text(json.dumps(settings | {"tokenizer_class": "PreTrainedTokenizerFast"}))
    vectors = encode_texts(["", "tea"], config)
    assert vectors[0].abs().max() == 0
    assert vectors[1].norm() == pytest.approx(1, abs=1e-5)


# ---------------------------------------------------------------- the bundled model


def test_minilm_equals_sentence_transformers(tmp_path: Path) -> None:
    sentences = [
        "WHITE HANGING HEART T-LIGHT HOLDER",
        "A man is eating food.",
        "",
        "Größe 38, ça va?",
        "tea " * 50,
    ]
    vectors = encode_texts(sentences, TextConfig(cache_dir=str(tmp_path)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        library = pytest.importorskip("sentence_transformers")
        model = library.SentenceTransformer(str(find_folder("minilm")), device="cpu")
        model.max_seq_length = 64
        expected = model.encode(sentences, convert_to_tensor=True, show_progress_bar=False)
    torch.testing.assert_close(vectors, expected.clone(), atol=1e-5, rtol=0)


def test_minilm_knows_what_words_mean(tmp_path: Path) -> None:
    cup, mug, lorry = encode_texts(["tea cup", "coffee mug", "lorry"], TextConfig(cache_dir=str(tmp_path)))
    assert cup @ mug > cup @ lorry + 0.2


def test_settings_out_of_range_are_refused(model: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="max_length is 2"):
        TextConfig(max_length=2)
    with pytest.raises(ConfigError, match="batch_size is 0"):
        TextConfig(batch_size=0)
    with pytest.raises(ConfigError, match="revision 'v1' needs a Hugging Face id"):
        TextConfig(revision="v1")
    with pytest.raises(ConfigError, match="at most 32 tokens"):
        encode_texts(["tea"], TextConfig(str(model), max_length=33, cache_dir=str(tmp_path / "c")))


def test_texts_that_cannot_be_encoded_are_refused(config: TextConfig) -> None:
    with pytest.raises(DataError, match="single string 'tea'"):
        encode_texts("tea", config)
    with pytest.raises(DataError, match="texts is empty"):
        encode_texts([], config)
    with pytest.raises(DataError, match=r"row 1 \(from 0\) is not valid Unicode"):
        encode_texts(["tea", "\ud800"], config)
