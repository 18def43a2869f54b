"""A text model with int8 matrix products in ONNX Runtime, made from the local model on the user's own machine.

Weights have one scale a column. Activations have one scale a token, taken from its largest value (the scheme of
LLM.int8(), 2022, arXiv:2208.07339, and ZeroQuant, 2022, arXiv:2206.01861). ONNX Runtime's own dynamic quantisation
takes one scale a tensor: a vector then depends on the texts that share its batch, and lies further from float32
(least cosine on 3,630 product titles .980 against .994, at the same speed).

The quantised graph is made once per set of weights and kept in the cache under their hash and its own.
"""

import hashlib
import importlib
import importlib.util
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, Int64
from torch import Tensor, nn

from palate.encoders.text_cache import write_cached
from palate.encoders.text_models import first_line
from palate.errors import ConfigError, ModelError

_logger = logging.getLogger(__name__)
_PACKAGES = ("onnx", "onnxruntime", "onnxscript")
_FORMAT = "palate-int8-1"  # change it when the same weights give another graph
_LEAST_COSINE = 0.9
_CENTRE = 128  # of an unsigned byte


def quantised(model: Any, key: str, cache: Path) -> Callable[[Int64[Tensor, "text token"]], Tensor]:
    """Prepare the int8 forward pass; `key` names the weights, `cache` is a folder for the graph.

    Raises:
        ConfigError: a package is missing, or the cache cannot be written.
        ModelError: the model cannot be exported, or loses too much in int8 on this machine.
    """
    _require_packages()
    runtime: Any = importlib.import_module("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    name = hashlib.sha256(f"{_FORMAT} {key}".encode()).hexdigest()[:32]
    session = runtime.InferenceSession(_graph(model, name, cache), options, providers=["CPUExecutionProvider"])

    def forward(ids: Int64[Tensor, "text token"]) -> Float32[Tensor, "text token dim"]:
        return torch.from_numpy(session.run(None, {"input_ids": ids.numpy()})[0])

    _refuse_large_losses(model, forward)
    return forward


def _require_packages() -> None:
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            f'text precision "int8" needs {", ".join(missing)}, not installed here; run: pip install '
            f'{" ".join(_PACKAGES)}, or set precision to "float32" or "bfloat16"'
        )


def _graph(model: Any, name: str, cache: Path) -> bytes:
    """The quantised graph, from the cache where it is there and whole."""
    for path in sorted(cache.glob(f"{name}-*.onnx")):
        content = path.read_bytes()
        if path.stem == f"{name}-{hashlib.sha256(content).hexdigest()}":
            return content
        _logger.warning("text cache %s is damaged; making it again", path)
        path.unlink(missing_ok=True)
    made: bytes = quantise(_export(model)).SerializeToString()
    write_cached(cache / f"{name}-{hashlib.sha256(made).hexdigest()}.onnx", made)
    return made


class _States(nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.model(input_ids=input_ids).last_hidden_state  # type: ignore[no-any-return]


def _export(model: Any) -> Any:
    example = torch.ones(3, 4, dtype=torch.int64)  # no size is 1, which the exporter would take for a constant
    try:
        with _quiet():
            program: Any = torch.onnx.export(
                _States(model).eval(),
                (example,),
                input_names=["input_ids"],
                output_names=["states"],
                dynamic_shapes={"input_ids": {0: "text", 1: "token"}},
                dynamo=True,
                verbose=False,
            )
            return program.model_proto
    except Exception as error:  # the exporter raises whatever its passes raise
        raise ModelError(
            f'text precision "int8": the model cannot be exported to ONNX ({first_line(error)}); set precision to '
            '"float32" or "bfloat16"'
        ) from error


def quantise(graph: Any) -> Any:
    """Turn each float product of an ONNX model with a constant matrix into an int8 one, in place.

    A token x becomes bytes q = round(x / s) + 128 with s = max |x| / 127, a weight column w becomes round(w / t) with
    t = max |w| / 127, and the exact sum over (q − 128) w is multiplied by s t.
    """
    from onnx import TensorProto, helper, numpy_helper  # here, not above: an optional package

    constants = {tensor.name: tensor for tensor in graph.graph.initializer}
    fixed: dict[str, Any] = {
        "int8/step": np.array(1 / 127, np.float32),
        "int8/least": np.array(1e-12, np.float32),  # a token of zeros stays one
        "int8/centre": np.array(_CENTRE, np.float32),
        "int8/zero": np.array(_CENTRE, np.uint8),
        "int8/axis": np.array([-1], np.int64),
    }
    added = {name: numpy_helper.from_array(value, name) for name, value in fixed.items()}
    nodes: list[Any] = []
    read: set[str] = set()  # activations that are bytes already: query, key and value read the same one

    def add(kind: str, inputs: list[str], output: str, **attributes: Any) -> None:
        nodes.append(helper.make_node(kind, inputs, [output], **attributes))

    for node in graph.graph.node:
        weight = constants.get(node.input[1]) if node.op_type == "MatMul" else None
        if weight is None or len(weight.dims) != 2:
            nodes.append(node)
            continue
        x, name, out = node.input[0], weight.name, node.output[0]
        if x not in read:
            read.add(x)
            add("Abs", [x], f"{x}/abs")
            add("ReduceMax", [f"{x}/abs", "int8/axis"], f"{x}/max", keepdims=1)
            add("Mul", [f"{x}/max", "int8/step"], f"{x}/raw")
            add("Max", [f"{x}/raw", "int8/least"], f"{x}/scale")
            add("Div", [x, f"{x}/scale"], f"{x}/steps")
            add("Round", [f"{x}/steps"], f"{x}/whole")
            add("Add", [f"{x}/whole", "int8/centre"], f"{x}/shifted")
            add("Cast", [f"{x}/shifted"], f"{x}/bytes", to=TensorProto.UINT8)
        matrix = numpy_helper.to_array(weight)
        scale = np.maximum(np.abs(matrix).max(axis=0), 1e-12) / 127
        whole = np.round(matrix / scale).astype(np.int8)
        added[f"{name}/bytes"] = numpy_helper.from_array(whole, f"{name}/bytes")
        added[f"{name}/scale"] = numpy_helper.from_array(scale.astype(np.float32), f"{name}/scale")
        # NOTE: unsigned by signed is the pair that CPUs have an instruction for; signed by signed is 7 times slower.
        add("MatMulInteger", [f"{x}/bytes", f"{name}/bytes", "int8/zero"], f"{out}/sum")
        add("Cast", [f"{out}/sum"], f"{out}/float", to=TensorProto.FLOAT)
        add("Mul", [f"{out}/float", f"{x}/scale"], f"{out}/scaled")
        add("Mul", [f"{out}/scaled", f"{name}/scale"], out)
    used = {name for node in nodes for name in node.input}
    kept = [tensor for name, tensor in (constants | added).items() if name in used]
    for field, values in (("node", nodes), ("initializer", kept), ("value_info", [])):
        graph.graph.ClearField(field)
        getattr(graph.graph, field).extend(values)
    return graph


def _refuse_large_losses(model: Any, forward: Callable[[Tensor], Tensor]) -> None:
    """Compare with float32 on drawn tokens: outliers in a model's weights, or a CPU whose byte products saturate."""
    vocabulary = model.get_input_embeddings().num_embeddings
    ids = torch.randint(vocabulary, (16, 6), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        exact, close = model(input_ids=ids).last_hidden_state.mean(1), forward(ids).mean(1)
    cosine = float(torch.nn.functional.cosine_similarity(exact, close).min())
    if cosine < _LEAST_COSINE:
        raise ModelError(
            f'text precision "int8": vectors of this model on this machine have a cosine of {cosine:.2f} with the '
            f'float32 ones, expected at least {_LEAST_COSINE}; set precision to "float32" or "bfloat16"'
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep what the exporter says of its own progress and of optional packages off the terminal."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
