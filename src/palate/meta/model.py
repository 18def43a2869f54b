"""What a learner adapts: any network as pure functions of its weights, cut where learners cut it.

    inputs → body → features → head → prediction          (the decision layers are the end of it, the head the last)

`from_module` takes anyone's `nn.Module`, `linear_model` is regression on given features, `with_offset` adds a known
part to the prediction.
"""

import copy
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.func import functional_call

from palate.errors import ConfigError


class Model(NamedTuple):
    """A network as pure functions of a dict of weights."""

    weights: dict[str, Tensor]
    """Where meta-training starts."""
    predict: Callable[[dict[str, Tensor], Shaped[Tensor, "event *input"]], Float[Tensor, "event"]]
    features: Callable[[dict[str, Tensor], Shaped[Tensor, "event *input"]], Float[Tensor, "event feature"]]
    """What the head reads; followed by a column of ones where the head has a bias."""
    head: tuple[str, ...]
    """Names of the head's weight (1 × feature, or feature) and, if it has one, its bias."""
    decision: tuple[str, ...]
    """Names of the weights of the decision layers, the head's included."""
    layers: "Layers | None" = None
    """Set where the whole network is a plain stack of linear layers, which has a faster path."""


class Layers(NamedTuple):
    """A stack of linear layers with one activation between them."""

    names: tuple[tuple[str, str], ...]
    """(weight, bias) a layer."""
    activation: str


ACTIVATIONS: dict[type[nn.Module], str] = {nn.ReLU: "relu", nn.Tanh: "tanh"}


def from_module(network: nn.Module, *, head: str | None = None, decision: Sequence[str] | None = None) -> Model:
    """Cut a module that maps (event, …) to (event, 1) or (event,).

    Args:
        network: copied in evaluation mode, so that it is never changed, dropout is off and batch statistics are those
            stored. Weights that ask for no gradient, and buffers, are the copy's own: neither trained nor among the
            parameters that are saved.
        head: name of its last `nn.Linear`, as `named_modules` has it; by default the one that comes last there.
        decision: names of the modules that decide from embeddings (MeLU); by default every `nn.Linear`.

    Raises:
        ConfigError: no such module, one without trained weights, or the head is not a linear layer with one output.
    """
    network = copy.deepcopy(network).eval()
    modules = dict(network.named_modules())
    linear = [name for name, module in modules.items() if type(module) is nn.Linear]
    if not linear:
        raise ConfigError("from_module: the network has no nn.Linear; learners adapt the last one at least")
    head = linear[-1] if head is None else head
    for name in (head, *(decision or ())):
        if name not in modules:
            raise ConfigError(f"from_module: no module {name!r}; known here: {', '.join(filter(None, modules))}")
    last = modules[head]
    if type(last) is not nn.Linear or last.out_features != 1:
        raise ConfigError(f"from_module: the head {head!r} is {last}; expected an nn.Linear with one output")
    body = _without(network, head)
    # Zero-width for a head without bias, so that features has one form.
    ones = 0 if last.bias is None else 1

    def predict(weights: dict[str, Tensor], inputs: Tensor) -> Tensor:
        output = functional_call(network, weights, (inputs,))
        return output.reshape(len(inputs))  # type: ignore[no-any-return]

    def features(weights: dict[str, Tensor], inputs: Tensor) -> Tensor:
        kept = {name: weight for name, weight in weights.items() if not name.startswith(f"{head}.".lstrip("."))}
        hidden = functional_call(body, kept, (inputs,)).flatten(1)
        return torch.cat([hidden, hidden.new_ones(len(inputs), ones)], 1)

    weights = {name: weight.detach().clone() for name, weight in network.named_parameters() if weight.requires_grad}
    deciding = linear if decision is None else [*decision, head]
    for name in [head, *(decision or ())]:
        if not any(_is_in(weight, name) for weight in weights):
            raise ConfigError(f"from_module: {name!r} has no weights that are trained; it cannot decide anything")
    decided = tuple(weight for weight in weights if any(_is_in(weight, name) for name in deciding))
    return Model(weights, predict, features, _names(head, last), decided, _layers_of(network))


def linear_model(num_features: int) -> Model:
    """Regression on given features: inputs are (event, feature + 1), the last column an offset that is added."""

    def features(weights: dict[str, Tensor], inputs: Tensor) -> Tensor:
        return inputs

    def predict(weights: dict[str, Tensor], inputs: Tensor) -> Tensor:
        return inputs @ weights["weight"]

    return with_offset(Model({"weight": torch.zeros(num_features)}, predict, features, ("weight",), ("weight",)))


def with_offset(model: Model) -> Model:
    """Inputs (event, input + 1): the last column is added to the prediction, and the model never reads it."""

    def features(weights: dict[str, Tensor], inputs: Tensor) -> Tensor:
        return model.features(weights, inputs[..., :-1])

    def predict(weights: dict[str, Tensor], inputs: Tensor) -> Tensor:
        return model.predict(weights, inputs[..., :-1]) + inputs[..., -1]

    return model._replace(predict=predict, features=features, layers=None)


def _is_in(weight: str, module: str) -> bool:
    return not module or weight.startswith(f"{module}.")


def _without(network: nn.Module, head: str) -> nn.Module:
    """A copy whose head passes its input on."""
    if not head:
        return nn.Identity()
    body = copy.deepcopy(network)
    body.set_submodule(head, nn.Identity())
    return body


def _names(prefix: str, layer: nn.Linear) -> tuple[str, ...]:
    return tuple(f"{prefix}.{name}".lstrip(".") for name, _ in layer.named_parameters())


def _layers_of(network: nn.Module) -> Layers | None:
    """The stack, where the network is `nn.Sequential` of linear layers with biases and one kind of activation."""
    parts = [
        (name, module) for name, module in network._modules.items() if module is not None
    ]  # with those that appear twice, which named_children leaves out
    linear, between = parts[::2], parts[1::2]
    kinds = {type(module) for _, module in between}
    if (
        type(network) is not nn.Sequential
        or len(parts) % 2 == 0
        or any(type(module) is not nn.Linear or module.bias is None for _, module in linear)
        or len({id(module) for _, module in linear}) < len(linear)
        or any(not weight.requires_grad for weight in network.parameters())
        or len(kinds) > 1
        or not kinds <= ACTIVATIONS.keys()
    ):
        return None
    activation = ACTIVATIONS[kinds.pop()] if kinds else "relu"
    return Layers(tuple((f"{name}.weight", f"{name}.bias") for name, _ in linear), activation)
