"""Tasks per second of one meta-training step (losses and meta-gradient), ours beside autograd and other libraries.

Few-shot regression: 32 tasks of 10 support and 10 query events, MLP 16-64-64-1 with ReLU, 5 inner gradient steps, mean
squared error, float32, one thread, CPU time. Before anything is timed, every way must give the loss and the
meta-gradient of the plain autograd loop (the ridge heads: of their own obvious loop). At the end, every learner of the
table as a user builds it. Repetitions are interleaved.

    python benchmarks/meta_throughput.py [--repetitions 15] [--json FILE]

The peers belong to no dependency list; a missing one is printed as not installed. In an environment of its own:

    python -m venv peers && peers/bin/pip install -e .
    peers/bin/pip install --no-deps higher==0.2.1 torchopt==0.7.3 optree==0.20.0 graphviz==0.21
    peers/bin/pip install --no-deps "cython<3" setuptools==65.5.0 wheel qpth==0.0.18
    peers/bin/pip install requests tqdm
    peers/bin/pip download --no-deps --no-build-isolation --no-binary :all: learn2learn==0.2.0 && tar xzf learn2learn-*
    peers/bin/cython -3 learn2learn-0.2.0/learn2learn/data/*.pyx
    peers/bin/pip install --no-deps --no-build-isolation ./learn2learn-0.2.0

(learn2learn's own C files predate Python 3.11, hence Cython; its `vision` and `gym` parts, which the benchmark replaces
with empty modules, would need torchvision and gym and have no share in MAML.)
"""

import argparse
import json
import sys
import time
import types
import warnings
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from palate.meta import LEARNERS, Tasks, build, from_module, read_settings
from palate.meta import Events as TaskEvents
from palate.meta.fused import RELU, Events, maml_losses
from palate.meta.objectives import OBJECTIVES

NUM_TASKS, NUM_SUPPORT, NUM_QUERY, WIDTHS, NUM_STEPS, STEP_SIZE = 32, 10, 10, (16, 64, 64, 1), 5, 0.05
NOISE = 0.5
PROFILE = torch.randn(NUM_TASKS, 4, generator=torch.Generator().manual_seed(2))
REFERENCE, RIDGE_REFERENCE = "plain autograd loop", "ridge heads, one by one"
Batch = tuple[Tensor, Tensor, Tensor, Tensor]
Step = Callable[[], tuple[Tensor, list[Tensor]]]
Way = Callable[[nn.Sequential, Batch, bool], Step]


def make_mlp() -> nn.Sequential:
    layers: list[nn.Module] = []
    for low, high in pairwise(WIDTHS):
        layers += [nn.Linear(low, high), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def predict(parameters: list[Tensor], inputs: Tensor) -> Tensor:
    for place in range(0, len(parameters), 2):
        inputs = functional.linear(inputs, parameters[place], parameters[place + 1])
        inputs = inputs.relu() if place < len(parameters) - 2 else inputs
    return inputs[..., 0]


def error(parameters: list[Tensor], inputs: Tensor, target: Tensor) -> Tensor:
    return (predict(parameters, inputs) - target).square().mean()


def fused(net: nn.Sequential, batch: Batch, first_order: bool) -> Step:
    parameters = list(net.parameters())
    layers = list(zip(parameters[::2], parameters[1::2], strict=True))
    support, query = (Events(x, y, torch.ones_like(y)) for x, y in (batch[:2], batch[2:]))
    sizes = torch.full((NUM_STEPS,), STEP_SIZE)

    def step() -> tuple[Tensor, list[Tensor]]:
        loss = maml_losses(layers, RELU, OBJECTIVES["ratings"], support, query, sizes, first_order=first_order).mean()
        return loss, list(torch.autograd.grad(loss, parameters))

    return step


def plain_loop(net: nn.Sequential, batch: Batch, first_order: bool) -> Step:
    parameters = list(net.parameters())

    def step() -> tuple[Tensor, list[Tensor]]:
        losses = []
        for x, y, query_x, query_y in zip(*batch, strict=True):
            fast = parameters
            for _ in range(NUM_STEPS):
                gradient = torch.autograd.grad(error(fast, x, y), fast, create_graph=not first_order)
                fast = [part - STEP_SIZE * g for part, g in zip(fast, gradient, strict=True)]
            losses.append(error(fast, query_x, query_y))
        loss = torch.stack(losses).mean()
        return loss, list(torch.autograd.grad(loss, parameters))

    return step


def batched_autograd(net: nn.Sequential, batch: Batch, first_order: bool) -> Step:
    parameters = list(net.parameters())
    x, y, query_x, query_y = batch

    def forward(fast: list[Tensor], inputs: Tensor) -> Tensor:
        for place in range(0, len(fast), 2):
            inputs = torch.baddbmm(fast[place + 1][:, None], inputs, fast[place].mT)
            inputs = inputs.relu() if place < len(fast) - 2 else inputs
        return inputs[..., 0]

    def step() -> tuple[Tensor, list[Tensor]]:
        fast = [part.expand(NUM_TASKS, *part.shape) for part in parameters]
        for _ in range(NUM_STEPS):
            inner = (forward(fast, x) - y).square().mean(1).sum()
            gradient = torch.autograd.grad(inner, fast, create_graph=not first_order)
            fast = [part - STEP_SIZE * g for part, g in zip(fast, gradient, strict=True)]
        loss = (forward(fast, query_x) - query_y).square().mean()
        return loss, list(torch.autograd.grad(loss, parameters))

    return step


def func_vmap(net: nn.Sequential, batch: Batch, first_order: bool) -> Step:
    parameters = tuple(part.detach() for part in net.parameters())

    def task_loss(start: tuple[Tensor, ...], x: Tensor, y: Tensor, query_x: Tensor, query_y: Tensor) -> Tensor:
        fast = list(start)
        for _ in range(NUM_STEPS):
            gradient = torch.func.grad(error)(fast, x, y)
            if first_order:
                gradient = [part.detach() for part in gradient]
            fast = [part - STEP_SIZE * g for part, g in zip(fast, gradient, strict=True)]
        return error(fast, query_x, query_y)

    def mean_loss(start: tuple[Tensor, ...]) -> Tensor:
        return torch.func.vmap(task_loss, in_dims=(None, 0, 0, 0, 0))(start, *batch).mean()

    value = torch.func.grad_and_value(mean_loss)

    def step() -> tuple[Tensor, list[Tensor]]:
        gradient, loss = value(parameters)
        return loss, list(gradient)

    return step


def with_learn2learn(net: nn.Sequential, batch: Batch, first_order: bool) -> Step:
    for part in ("vision", "gym"):
        sys.modules.setdefault(f"learn2learn.{part}", types.ModuleType(part))
    import learn2learn

    maml = learn2learn.algorithms.MAML(net, lr=STEP_SIZE, first_order=first_order)

    def step() -> tuple[Tensor, list[Tensor]]:
        losses = []
        for x, y, query_x, query_y in zip(*batch, strict=True):
            learner = maml.clone()
            for _ in range(NUM_STEPS):
                learner.adapt(functional.mse_loss(learner(x)[:, 0], y))
            losses.append(functional.mse_loss(learner(query_x)[:, 0], query_y))
        loss = torch.stack(losses).mean()
        return loss, list(torch.autograd.grad(loss, list(net.parameters())))

    return step


def with_torchopt(net: nn.Sequential, batch: Batch, first_order: bool) -> Step:
    import torchopt

    if first_order:
        raise NotImplementedError("MetaSGD has no first-order mode")
    optimizer = torchopt.MetaSGD(net, lr=STEP_SIZE)
    parameters = list(net.parameters())
    start, start_state = (torchopt.extract_state_dict(part, by="reference") for part in (net, optimizer))

    def step() -> tuple[Tensor, list[Tensor]]:
        losses = []
        for x, y, query_x, query_y in zip(*batch, strict=True):
            for _ in range(NUM_STEPS):
                optimizer.step(functional.mse_loss(net(x)[:, 0], y))
            losses.append(functional.mse_loss(net(query_x)[:, 0], query_y))
            torchopt.recover_state_dict(net, start)
            torchopt.recover_state_dict(optimizer, start_state)
        loss = torch.stack(losses).mean()
        return loss, list(torch.autograd.grad(loss, parameters))

    return step


def with_higher(net: nn.Sequential, batch: Batch, first_order: bool) -> Step:
    import higher

    optimizer = torch.optim.SGD(net.parameters(), lr=STEP_SIZE)
    parameters = list(net.parameters())

    def step() -> tuple[Tensor, list[Tensor]]:
        losses, gradients = [], [torch.zeros_like(part) for part in parameters]
        for x, y, query_x, query_y in zip(*batch, strict=True):
            with higher.innerloop_ctx(
                net, optimizer, copy_initial_weights=False, track_higher_grads=not first_order
            ) as (fast_net, fast_optimizer):
                for _ in range(NUM_STEPS):
                    fast_optimizer.step(functional.mse_loss(fast_net(x)[:, 0], y))
                losses.append(functional.mse_loss(fast_net(query_x)[:, 0], query_y))
                if first_order:
                    by_fast = torch.autograd.grad(losses[-1], list(fast_net.parameters()))
                    for total, part in zip(gradients, by_fast, strict=True):
                        total.add_(part, alpha=1 / NUM_TASKS)
        loss = torch.stack(losses).mean()
        return loss, gradients if first_order else list(torch.autograd.grad(loss, parameters))

    return step


def ridge_heads(net: nn.Sequential, batch: Batch, first_order: bool) -> Step:
    """The library's closed-form learner: a shared body and a head a task around a learned mean, all solved at once."""
    return learner_step("ridge", net, batch, {"noise": NOISE})


def learner_step(name: str, net: nn.Sequential, batch: Batch, settings: dict[str, Any]) -> Step:
    """A learner of the table on the same tasks; it trains whatever it has, the network's weights first."""
    learner = build(name, from_module(net), num_profile=PROFILE.shape[1], **settings)
    params = {key: value.requires_grad_(not key.startswith("fixed.")) for key, value in learner.params.items()}
    params = learner.prepare(params, PROFILE, None)
    weights = [params[f"model.{key}"] for key, _ in net.named_parameters()]
    own = [value for key, value in params.items() if not key.startswith(("model.", "fixed."))]
    x, y, query_x, query_y = batch
    kind = torch.zeros_like(y, dtype=torch.int64)
    tasks = Tasks(
        PROFILE, TaskEvents(x, y, torch.ones_like(y), kind), TaskEvents(query_x, query_y, torch.ones_like(y), kind)
    )

    def step() -> tuple[Tensor, list[Tensor]]:
        loss = learner.losses(params, tasks).mean()
        return loss, list(torch.autograd.grad(loss, weights + own, allow_unused=True))[: len(weights)]

    return step


def learner_way(name: str) -> Way:
    known = read_settings(name, {})
    settings = {
        key: value for key, value in (("num_steps", NUM_STEPS), ("step_size", STEP_SIZE)) if hasattr(known, key)
    }
    return lambda net, batch, first_order: learner_step(name, net, batch, settings)


def ridge_loop(net: nn.Sequential, batch: Batch, first_order: bool) -> Step:
    """The primal posterior of one head after the other, the bias as the weight of a feature that is 1."""
    parameters, body = list(net.parameters()), net[:-1]

    def with_one(inputs: Tensor) -> Tensor:
        hidden: Tensor = body(inputs)
        return torch.cat([hidden, torch.ones(len(hidden), 1)], 1)

    def step() -> tuple[Tensor, list[Tensor]]:
        losses = []
        head = torch.cat([parameters[-2][0], parameters[-1]])
        for x, y, query_x, query_y in zip(*batch, strict=True):
            features = with_one(x)
            precision = features.T @ features + NOISE * torch.eye(len(head))
            change = torch.linalg.solve(precision, features.T @ (y - features @ head))
            losses.append((with_one(query_x) @ (head + change) - query_y).square().mean())
        loss = torch.stack(losses).mean()
        return loss, list(torch.autograd.grad(loss, parameters))

    return step


WAYS: dict[str, Way] = {
    "palate fused": fused,
    REFERENCE: plain_loop,
    "batched, autograd": batched_autograd,
    "torch.func vmap": func_vmap,
    "learn2learn 0.2.0": with_learn2learn,
    "torchopt": with_torchopt,
    "higher": with_higher,
}
LEARNER_WAYS: dict[str, Way] = {f"palate {name}": learner_way(name) for name in LEARNERS}
RIDGE_WAYS = {"ridge heads, batched": ridge_heads, RIDGE_REFERENCE: ridge_loop}


def prepare(
    ways: dict[str, Way], reference: str, batch: Batch, first_order: bool
) -> tuple[dict[str, Step], dict[str, str]]:
    """The steps that run and agree with the reference, and why others do not."""
    alone = reference not in ways  # nothing to agree with: each way is its own method
    steps: dict[str, Step] = {}
    reasons: dict[str, str] = {}
    expected: tuple[Tensor, list[Tensor]] | None = None
    for name, way in sorted(ways.items(), key=lambda item: item[0] != reference):
        torch.manual_seed(0)
        net = make_mlp()
        try:
            step = way(net, batch, first_order)
            loss, gradient = step()
        except ImportError as cause:
            reasons[name] = f"not installed ({cause})"
            continue
        except NotImplementedError as cause:
            reasons[name] = str(cause)
            continue
        if alone:
            assert torch.isfinite(loss)
            steps[name] = step
            continue
        expected = expected or (loss.detach(), gradient)
        torch.testing.assert_close(loss.detach(), expected[0], rtol=1e-4, atol=0.0)
        for ours, theirs in zip(gradient, expected[1], strict=True):
            gap = (ours - theirs).abs().max() / theirs.abs().max()
            assert gap < 1e-4, f"{name}: the meta-gradient is off by {gap:.1e} of its largest entry"
        steps[name] = step
    return steps, reasons


def measure(steps: dict[str, Step], repetitions: int) -> dict[str, float]:
    """Median tasks per second of CPU time; in each repetition every way runs for at least 40 ms."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for repetition in range(repetitions + 1):
        for name, step in steps.items():
            start, calls = time.process_time(), 0
            while calls == 0 or time.process_time() - start < 0.04:
                step()
                calls += 1
            if repetition > 0:  # the first is the warm-up
                times[name].append((time.process_time() - start) / calls)
    return {name: NUM_TASKS / float(torch.tensor(all_times).median()) for name, all_times in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--repetitions", type=int, default=15)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    # NOTE: until one large block has been freed, glibc hands a step's memory back after each step and the page faults
    # cost up to half as much again; any training process has freed one long since. It helps every way alike.
    torch.empty(8_000_000)
    warnings.filterwarnings("ignore", category=Warning, module=r"learn2learn|torchopt|higher|qpth|graphviz")
    generator = torch.Generator().manual_seed(1)
    shapes = (NUM_SUPPORT, WIDTHS[0]), (NUM_SUPPORT,), (NUM_QUERY, WIDTHS[0]), (NUM_QUERY,)
    x, y, query_x, query_y = (torch.randn(NUM_TASKS, *shape, generator=generator) for shape in shapes)
    batch = x, y, query_x, query_y
    report: dict[str, dict[str, Any]] = {}
    second_order: float | None = None
    for order, ways, reference in (
        ("second order", WAYS, REFERENCE),
        ("first order", WAYS, REFERENCE),
        ("closed form", RIDGE_WAYS, RIDGE_REFERENCE),
        ("every learner, its own order", LEARNER_WAYS, ""),
    ):
        steps, reasons = prepare(ways, reference, batch, order == "first order")
        speeds = measure(steps, arguments.repetitions)
        report[order] = {**speeds, **reasons}
        print(f"\n{order}: {NUM_TASKS} tasks x ({NUM_SUPPORT} + {NUM_QUERY}), one thread, torch {torch.__version__}")
        # What has no row of its own kind in the peer is held against the peer's second order.
        peer = speeds.get("learn2learn 0.2.0", second_order)
        second_order = second_order or peer
        for name in ways:
            if name in reasons:
                print(f"{name:<26} {reasons[name]}")
                continue
            ratios = f"x {reference} {speeds[name] / speeds[reference]:6.1f}   " if reference else ""
            ratios += f"x learn2learn {speeds[name] / peer:6.1f}" if peer else ""
            print(f"{name:<26} {speeds[name]:10,.0f} tasks/s   {ratios}")
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
