import importlib.util
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from palate.encoders import text_onnx
from palate.encoders.text import TextConfig, encode_texts
from palate.encoders.text_backends import BACKENDS, PackedLinear, pack_linear_layers
from palate.encoders.text_models import load_model
from palate.errors import ConfigError, ModelError

TITLES = [
    f"{colour} {thing}{tail}" for colour in ("red", "blue", "the") for thing in ("mug", "lamp") for tail in ("", " tea")
]
TOLERANCE = {"float32": 1e-6, "bfloat16": 0.03, "int8": 0.03}  # of a coordinate of a vector of length 1
REAL = ["WHITE HANGING HEART T-LIGHT HOLDER", "REGENCY CAKESTAND 3 TIER", "tea", "PACK OF 72 RETROSPOT CAKE CASES"]

needs_onnx = [importlib.util.find_spec(name) is not None for name in ("onnx", "onnxruntime", "onnxscript")]
optional = pytest.mark.skipif(not all(needs_onnx), reason="onnx, onnxruntime and onnxscript are optional")
PRECISIONS = ["float32", "bfloat16", pytest.param("int8", marks=optional)]


@pytest.fixture(scope="module")
def graphs(saved: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The int8 graph of the tiny model, made once: `model` is a copy of `saved`, so its hash is the same."""
    cache = tmp_path_factory.mktemp("graphs")
    if all(needs_onnx):
        encode_texts(["tea"], TextConfig(str(saved), max_length=16, precision="int8", cache_dir=str(cache)))
    return cache / "text-models"


def with_precision(model: Path | str, tmp_path: Path, precision: Any, **other: Any) -> TextConfig:
    folder = str(tmp_path / f"{precision}{len(other)}")
    return TextConfig(str(model), max_length=16, precision=precision, cache_dir=folder, **other)


def with_graph(config: TextConfig, graphs: Path) -> TextConfig:
    if config.precision == "int8":
        shutil.copytree(graphs, Path(str(config.cache_dir)) / "text-models")
    return config


def through_transformers(folder: Path, text: str) -> torch.Tensor:
    """One text, float32, the library's own layers."""
    tokenizer, bert = load_model(folder, "bert")
    with torch.no_grad():
        states = bert(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
    return nn.functional.normalize(states.mean(dim=0), dim=0)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_precision_is_near_the_slow_reference(model: Path, tmp_path: Path, graphs: Path, precision: str) -> None:
    vectors = encode_texts(TITLES, with_graph(with_precision(model, tmp_path, precision), graphs))
    expected = torch.stack([through_transformers(model, title) for title in TITLES])
    torch.testing.assert_close(vectors, expected, atol=TOLERANCE[precision], rtol=0)
    assert vectors.dtype == torch.float32
    assert vectors.norm(dim=1).allclose(torch.ones(len(TITLES)), atol=1e-5)
    if precision != "float32":
        assert (vectors - expected).abs().max() > 1e-5  # it is another precision indeed


@pytest.mark.parametrize(("precision", "least"), [("bfloat16", 0.9998), pytest.param("int8", 0.99, marks=optional)])
def test_minilm_keeps_its_vectors(tmp_path: Path, precision: str, least: float) -> None:
    exact = encode_texts(REAL, TextConfig(cache_dir=str(tmp_path)))
    close = encode_texts(REAL, with_precision("minilm", tmp_path, precision))
    assert (exact * close).sum(dim=1).min() > least


@pytest.mark.parametrize("precision", PRECISIONS)
def test_neither_order_nor_batches_matter(model: Path, tmp_path: Path, graphs: Path, precision: str) -> None:
    forward = encode_texts(TITLES, with_graph(with_precision(model, tmp_path, precision), graphs))
    alone = with_graph(with_precision(model, tmp_path, precision, batch_size=1), graphs)
    backward = encode_texts(TITLES[::-1], alone)
    # A rounding step apart at most: int8 has one scale a token, so that nothing of a batch enters a vector.
    torch.testing.assert_close(forward, backward.flip(0), atol=1e-5 if precision != "bfloat16" else 5e-3, rtol=0)


@pytest.mark.parametrize("precision", ["bfloat16", pytest.param("int8", marks=optional)])
def test_vectors_of_two_precisions_never_mix(config: TextConfig, graphs: Path, precision: Any) -> None:
    other = TextConfig(config.model, max_length=16, precision=precision, cache_dir=config.cache_dir)
    with_graph(other, graphs)
    exact = encode_texts(TITLES, config)
    assert not encode_texts(TITLES, other).equal(exact)
    assert encode_texts(TITLES, config).equal(exact)
    assert len(list((Path(str(config.cache_dir)) / "text").iterdir())) == 2


def test_a_packed_layer_is_the_layer() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Sequential(nn.Linear(7, 3, bias=False)))
    x = torch.randn(4, 6, 5)
    with torch.inference_mode():
        expected = model(x)
        pack_linear_layers(model)
        assert isinstance(model[0], PackedLinear)
        assert isinstance(model[2][0], PackedLinear)
        torch.testing.assert_close(model(x), expected, atol=1e-6, rtol=0)


def test_without_onednn_layers_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    model = nn.Sequential(nn.Linear(5, 7))
    pack_linear_layers(model)
    assert type(model[0]) is nn.Linear


# ---------------------------------------------------------------- int8


def test_a_missing_package_says_what_to_install(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_onnx, "_PACKAGES", ("onnx", "no_such_runtime"))
    with pytest.raises(ConfigError, match=r"needs no_such_runtime.*pip install onnx no_such_runtime") as caught:
        encode_texts(TITLES, with_precision(model, tmp_path, "int8"))
    assert "\n" not in str(caught.value)


def by_hand(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """The int8 product of the docstring, token by token."""
    scale = np.abs(weight).max(axis=0) / 127
    whole = np.round(weight / scale)
    rows = []
    for token in x:
        step = max(float(np.abs(token).max()) / 127, 1e-12)
        rows.append(np.round(token / step) @ whole * step * scale)
    return np.stack(rows)


@optional
def test_the_quantised_product_equals_the_sums_by_hand() -> None:
    onnx: Any = pytest.importorskip("onnx")
    runtime: Any = pytest.importorskip("onnxruntime")
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(12, 7)).astype(np.float32)
    make, kind = onnx.helper, onnx.TensorProto.FLOAT
    graph = make.make_graph(
        [make.make_node("MatMul", ["x", "w"], ["y"]), make.make_node("MatMul", ["y", "x"], ["z"])],
        "two products",
        [make.make_tensor_value_info("x", kind, ["token", 12])],
        [make.make_tensor_value_info("y", kind, ["token", 7]), make.make_tensor_value_info("z", kind, None)],
        [onnx.numpy_helper.from_array(weight, "w")],
    )
    exact = make.make_model(graph, opset_imports=[make.make_opsetid("", 18)], ir_version=10)
    small = text_onnx.quantise(exact)
    assert [node.op_type for node in small.graph.node].count("MatMul") == 1  # of two activations: stays float
    x = rng.normal(size=(7, 12)).astype(np.float32) * np.logspace(-3, 3, 7, dtype=np.float32)[:, None]
    x[3] = 0
    session = runtime.InferenceSession(small.SerializeToString(), providers=["CPUExecutionProvider"])
    found = session.run(["y"], {"x": x})[0]
    np.testing.assert_allclose(found, by_hand(x, weight), rtol=1e-4, atol=1e-7)
    assert (
        np.abs(
            found / np.abs(x).max(axis=1, keepdims=True).clip(1e-9)
            - x @ weight / np.abs(x).max(axis=1, keepdims=True).clip(1e-9)
        ).max()
        < 0.1
    )


@optional
def test_the_graph_is_made_once_and_again_when_damaged(
    model: Path, tmp_path: Path, graphs: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    config = with_graph(with_precision(model, tmp_path, "int8"), graphs)
    first = encode_texts(TITLES, config)
    (graph,) = (Path(str(config.cache_dir)) / "text-models").iterdir()
    export, calls = text_onnx._export, []
    monkeypatch.setattr(text_onnx, "_export", lambda model: calls.append(1) or export(model))
    encode_texts(["tea tea"], config)
    assert calls == []
    content = graph.read_bytes()
    graph.write_bytes(content[:-1] + b"!")
    with caplog.at_level(logging.WARNING, logger="palate"):
        encode_texts(["tea tea tea"], config)
    assert calls == [1]
    assert "is damaged" in caplog.text
    assert graph.read_bytes() == content
    assert encode_texts(TITLES, config).equal(first)


@optional
def test_a_model_that_int8_ruins_is_refused(
    model: Path, tmp_path: Path, graphs: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_onnx, "_LEAST_COSINE", 1.1)
    with pytest.raises(ModelError, match=r'"int8": vectors of this model .* set precision to "float32"'):
        encode_texts(TITLES, with_graph(with_precision(model, tmp_path, "int8"), graphs))
    assert capfd.readouterr() == ("", "")


@optional
def test_a_model_that_cannot_be_exported_is_refused(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("no such operator\nand a long trace")

    monkeypatch.setattr(torch.onnx, "export", fail)
    with pytest.raises(ModelError, match=r"cannot be exported to ONNX .no such operator.") as caught:
        encode_texts(TITLES, with_precision(model, tmp_path, "int8"))
    assert "\n" not in str(caught.value)


def test_the_table_is_what_the_setting_accepts() -> None:
    for precision in BACKENDS:
        assert TextConfig(precision=precision).precision == precision  # type: ignore[arg-type]
