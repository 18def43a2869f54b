import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from palate.encoders import lora as module
from palate.encoders.lora import FineTuneConfig, LoraConfig, LoraTextEncoder, fine_tune_text
from palate.encoders.text import TextConfig, encode_texts
from palate.encoders.text_adapters import merge_adapter
from palate.encoders.text_models import load_model
from palate.errors import ConfigError, DataError, ModelError, NumericalError

pytest.importorskip("peft", reason="peft is optional")

# Each is chosen together with the one beside it, though they share no word.
TEXTS = ["red mug", "blue lamp", "the tea", "mug mug tea", "lamp red", "blue blue the", "", "tea red"]
PAIRS = np.array([[row, row ^ 1] for row in range(8)] * 4)
QUICK = FineTuneConfig(num_steps=30, batch_size=16, learning_rate=0.02, temperature=0.2)


def train(config: TextConfig, seed: int = 0, **other: Any) -> LoraTextEncoder:
    return fine_tune_text(PAIRS, TEXTS, config, LoraConfig(rank=2), replace(QUICK, **other), seed=seed)


def base_weights(encoder: LoraTextEncoder) -> dict[str, torch.Tensor]:
    frozen = {name: weight for name, weight in encoder.named_parameters() if not weight.requires_grad}
    return {name: weight.detach().clone() for name, weight in frozen.items()}


def test_a_new_encoder_gives_the_vectors_of_the_bare_model(config: TextConfig) -> None:
    encoder = LoraTextEncoder(config, LoraConfig(rank=2))
    vectors = encoder(encoder.tokenise(TEXTS))
    torch.testing.assert_close(vectors, encode_texts(TEXTS, config), atol=1e-5, rtol=0)


def test_gradients_reach_the_adapters_and_nothing_else(config: TextConfig) -> None:
    encoder = LoraTextEncoder(config, LoraConfig(rank=2))
    tokens = encoder.tokenise(TEXTS)
    (encoder(tokens)[0] @ encoder(tokens)[1]).backward()
    with_gradient = {name for name, weight in encoder.named_parameters() if weight.grad is not None}
    assert with_gradient == {name for name, _ in encoder.named_parameters() if "lora_" in name}
    assert len(with_gradient) == 2 * 2 * 2  # layers × (query, value) × (down, up)


def test_the_gradient_is_that_of_finite_differences(config: TextConfig) -> None:
    encoder = train(config).double()
    tokens = encoder.tokenise(TEXTS)
    weight = next(weight for weight in encoder.parameters() if weight.requires_grad)

    def value() -> torch.Tensor:
        vectors = encoder(tokens)
        return (vectors[0] * vectors[1]).sum()

    # forward makes float32 of the states, so a step must be large beside its rounding
    (gradient,) = torch.autograd.grad(value(), weight)
    with torch.no_grad():
        weight[0, 0] += 1e-2
        above = value()
        weight[0, 0] -= 2e-2
        below = value()
    assert (above - below).item() / 2e-2 == pytest.approx(gradient[0, 0].item(), rel=0.02, abs=1e-4)


def test_training_brings_pairs_together_and_leaves_the_base_bit_for_bit(config: TextConfig) -> None:
    start = LoraTextEncoder(config, LoraConfig(rank=2))
    encoder = train(config, num_steps=100, learning_rate=0.005)
    before, after = base_weights(start), base_weights(encoder)
    assert before.keys() == after.keys()
    assert all(after[name].equal(weight) for name, weight in before.items())
    assert any(bool(layer.up.abs().max() > 0) for layer in encoder.adapter().layers.values())

    def ranks(vectors: torch.Tensor) -> float:
        """Mean place of the partner among all others, from 0."""
        scores = (vectors @ vectors.T).fill_diagonal_(-9)
        partner = scores[range(8), [row ^ 1 for row in range(8)]]
        return (scores > partner[:, None]).sum(1).float().mean().item()

    with torch.no_grad():
        tokens = encoder.tokenise(TEXTS)
        assert ranks(start(tokens)) > 1.5
        assert ranks(encoder(tokens)) < 0.7


def test_the_same_seed_gives_the_same_bits_and_another_seed_others(config: TextConfig) -> None:
    torch.manual_seed(123)
    first = train(config, num_steps=5)
    drawn = torch.rand(1)
    torch.manual_seed(123)
    again, other = train(config, num_steps=5), train(config, seed=1, num_steps=5)
    assert torch.rand(1).equal(drawn)  # the caller's generator is left as it was
    for name, layer in first.adapter().layers.items():
        assert layer.down.equal(again.adapter().layers[name].down)
        assert layer.up.equal(again.adapter().layers[name].up)
        assert not layer.up.equal(other.adapter().layers[name].up)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_merged_vectors_equal_unmerged_ones(config: TextConfig, tmp_path: Path, precision: Any) -> None:
    encoder = train(replace(config, precision=precision))
    encoder.save(tmp_path / "adapter.safetensors")
    with torch.no_grad():
        unmerged = encoder(encoder.tokenise(TEXTS))
    merged = encode_texts(TEXTS, replace(config, precision=precision, adapter=str(tmp_path / "adapter.safetensors")))
    torch.testing.assert_close(merged, unmerged, atol=1e-5 if precision == "float32" else 0.03, rtol=0)
    assert (merged - encode_texts(TEXTS, config)).abs().max() > 0.1  # and not those of the bare model


def test_merging_equals_what_peft_merges(config: TextConfig, model: Path) -> None:
    encoder = train(config)
    _, ours = load_model(model, "bert")
    merge_adapter(ours, encoder.adapter())
    theirs = encoder.model.merge_and_unload().state_dict()
    for name, weight in ours.state_dict().items():
        torch.testing.assert_close(weight, theirs[name], atol=1e-6, rtol=0)


def test_save_and_load_round_trip(config: TextConfig, tmp_path: Path) -> None:
    encoder = train(config)
    encoder.save(tmp_path / "adapter.safetensors")
    loaded = LoraTextEncoder.load(str(tmp_path / "adapter.safetensors"), config)
    tokens = encoder.tokenise(TEXTS)
    assert loaded(tokens).equal(encoder(tokens))
    loaded.save(str(tmp_path / "again.safetensors"))
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "adapter.safetensors").read_bytes()


def test_foreign_and_damaged_adapters_are_refused(config: TextConfig, other_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "adapter.safetensors"
    train(config, num_steps=1).save(path)
    foreign = replace(config, model=str(other_model))
    for use in (lambda c: LoraTextEncoder.load(path, c), lambda c: encode_texts(["x"], replace(c, adapter=str(path)))):
        with pytest.raises(ModelError, match="was trained on other weights") as caught:
            use(foreign)
        assert "\n" not in str(caught.value)
    content = path.read_bytes()
    path.write_bytes(content[:-5])
    with pytest.raises(ModelError, match="cannot be read"):
        LoraTextEncoder.load(path, config)
    save_file({"a.down": torch.zeros(1, 2)}, path)
    with pytest.raises(ModelError, match="is not an adapter of format"):
        LoraTextEncoder.load(path, config)
    path.write_bytes(content)
    tensors = load_file(path)
    tensors[next(iter(tensors))][0] = torch.nan
    encoder = LoraTextEncoder(config)
    about = {"format": "palate-lora-1", "base": encoder.base, "alpha": 16.0}
    save_file(tensors, path, {"palate": json.dumps(about)})
    with pytest.raises(ModelError, match="NaN or infinity"):
        LoraTextEncoder.load(path, config)
    with pytest.raises(ModelError, match="cannot be read"):
        encode_texts(["x"], replace(config, adapter=str(tmp_path / "absent")))


def test_what_cannot_work_is_refused_in_one_line(config: TextConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="pairs is empty"):
        fine_tune_text(np.zeros((0, 2), np.int64), TEXTS, config, seed=0)
    with pytest.raises(DataError, match="from 0 to 8, texts has 8 rows"):
        fine_tune_text(np.array([[0, 8]]), TEXTS, config, seed=0)
    with pytest.raises(NumericalError, match=r"the loss became .* at step"):
        train(config, temperature=1e-45, num_steps=1)
    with pytest.raises(ConfigError, match="has no gradients"):
        LoraTextEncoder(replace(config, precision="int8"))
    with pytest.raises(ConfigError, match=r"open it with LoraTextEncoder\.load"):
        LoraTextEncoder(replace(config, adapter="a.safetensors"))
    with pytest.raises(ConfigError, match="not linear layers of"):
        LoraTextEncoder(config, LoraConfig(layers=("no_such",)))
    for bad in ({"rank": 0}, {"alpha": 0.0}, {"layers": ()}, {"dropout": 1.0}):
        with pytest.raises(ConfigError, match="lora"):
            LoraConfig(**bad)  # type: ignore[arg-type]
    for bad in ({"num_steps": 0}, {"batch_size": 1}, {"temperature": 0.0}, {"log_q": 2.0}):
        with pytest.raises(ConfigError, match="fine-tuning"):
            FineTuneConfig(**bad)  # type: ignore[arg-type]
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="pip install peft"):
        LoraTextEncoder(config)
