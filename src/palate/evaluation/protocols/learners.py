"""Every learner of `palate.meta` on a protocol: the same network on the same item features, chosen on held-out people.

The network is a small one on item vectors, its prediction added to what is known of the item before any event. Training
people are tasks whose support and query are drawn anew at every step; settings and the step to stop at are chosen on
people held out of them.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from palate.errors import PalateError
from palate.evaluation.protocols.base import Bench, Features, Method, Predict, Predictions
from palate.meta import LEARNERS, Events, FitConfig, FitResult, Learner, Tasks, build, fit, from_module, with_offset
from palate.meta.outer import predict_tasks
from palate.ratings.tasks import Task, by_user

MAX_EVENTS = 64
"""Events of a training task; people with more are cut at random."""
_HELD_OUT = 7
_QUERY = 16
_HIDDEN = 32
_FIT = FitConfig(num_steps=500, batch_size=64, learning_rate=0.01, validate_every=50)
_LEARNED = (
    {"step_size": 0.1, "learn_step_size": True, "num_steps": 5},
    {"step_size": 0.3, "learn_step_size": True, "num_steps": 5, "pseudo_events": 30.0},
)
_FIXED = tuple({"step_size": size, "pseudo_events": 15.0} for size in (0.1, 0.3))
CANDIDATES: Mapping[str, tuple[Mapping[str, Any], ...]] = {
    "ridge": ({"penalty": "learned"},),
    "laplace": ({"penalty": "learned"},),
    "clusters": ({"penalty": "learned", "num_classes": 4},),
    "neural-process": ({},),
    "maml": _LEARNED,
    "mamo": _LEARNED,
    "melu": _LEARNED,
    "anil": _LEARNED,
    "meta-sgd": ({"num_steps": 3, "step_size": 0.1, "pseudo_events": 15.0},),
    "updater": ({"pseudo_events": 15.0},),
    "fomaml": _FIXED,
    "reptile": _FIXED,
}
"""Settings tried for a learner, its defaults where there are none here; validation chooses."""


def learner_method(name: str, objective: str) -> Method:
    """Meta-train one learner on a draw."""

    def fit_one(bench: Bench) -> Predict:
        features = bench.features
        unit = _Unit(bench, objective)
        everyone = by_user(bench.draw.ratings)
        users = [user for user, (items, _) in everyone.items() if len(items) >= 4]
        order = np.random.default_rng([bench.draw.seed, 1]).permutation(len(users))
        held = {users[place] for place in order[: len(users) // _HELD_OUT]}
        train, validation = (
            _training_tasks(bench, [u for u in users if (u in held) == wanted], unit) for wanted in (False, True)
        )
        validation = redraw(validation, np.random.default_rng([bench.draw.seed, 2]))
        best: tuple[float, Learner, FitResult] | None = None
        problems = []
        for settings in CANDIDATES.get(name, ({},)):
            learner = _build(name, objective, features, bench.setting.profiles.shape[1], settings)
            try:
                result = fit(learner, train, validation, _FIT, seed=bench.draw.seed, name=name, redraw=redraw)
            except PalateError as error:
                problems.append(error)
                bench.say(f"{name} {dict(settings)}: failed: {error}")
                continue
            value = min(value for _, value in result.validation)
            bench.say(f"{name} {dict(settings)}: validation {value:.4f} at step {result.step}")
            if best is None or value < best[0]:
                best = (value, learner, result)
        if best is None:
            raise problems[0]
        _, learner, result = best
        return lambda part, tasks: _predict(learner, result, bench, unit, tasks)

    return fit_one


def learner_methods(objective: str) -> dict[str, Method]:
    """A method for every line of the table of learners."""
    return {name: learner_method(name, objective) for name in LEARNERS}


class _Unit:
    """Targets in a unit that suits any scale: what the offset leaves has mean square 1; choices are ±1."""

    def __init__(self, bench: Bench, objective: str) -> None:
        ratings, features = bench.draw.ratings, bench.features
        self.choices = objective == "clicks"
        left = ratings.values - features.offset[features.fold[ratings.users], ratings.items]
        self.scale = 1.0 if self.choices else float(np.sqrt(np.square(left).mean()))

    def inward(self, values: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
        return np.where(values > 0, 1.0, -1.0) if self.choices else values / self.scale

    def offset(self, values: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
        return values if self.choices else values / self.scale

    def outward(self, predictions: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
        return 1 / (1 + np.exp(-predictions)) if self.choices else predictions * self.scale


class _Network(nn.Module):
    """Vector → hidden layer beside the vector itself → score."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(num_features, _HIDDEN)
        self.head = nn.Linear(num_features + _HIDDEN, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, inputs: Tensor) -> Tensor:
        score: Tensor = self.head(torch.cat([inputs, torch.tanh(self.hidden(inputs))], -1))
        return score


def _build(name: str, objective: str, features: Features, num_profile: int, settings: Mapping[str, Any]) -> Learner:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = _Network(features.vectors.shape[2])
    model = with_offset(from_module(network, head="head", decision=["hidden", "head"]))
    return build(name, model, objective, num_profile=num_profile, **settings)


def redraw(tasks: Tasks, rng: np.random.Generator) -> Tasks:
    """Draw each task's support (none to three quarters of its events, log-uniform) and its query from what is left."""
    real = tasks.support.weight.numpy() > 0
    num_events = real.sum(1)
    keys = np.where(real, rng.random(real.shape), 2.0)
    place = keys.argsort(1).argsort(1)
    most = np.minimum(num_events - 1, num_events.clip(2) * 3 // 4)
    size = np.exp(rng.random(len(real)) * np.log(most + 2)).astype(int) - 1
    support = torch.from_numpy((place < size[:, None]) & real).float()
    query = torch.from_numpy((place >= size[:, None]) & (place < size[:, None] + _QUERY) & real).float()
    return Tasks(tasks.profile, tasks.support._replace(weight=support), tasks.query._replace(weight=query))


def _training_tasks(bench: Bench, users: Sequence[int], unit: _Unit) -> Tasks:
    everyone = by_user(bench.draw.ratings)
    rng = np.random.default_rng([bench.draw.seed, 3])
    rows = []
    for user in users:
        items, values = everyone[user]
        chosen = rng.permutation(len(items))[:MAX_EVENTS]
        rows.append((items[chosen], values[chosen]))
    events = _events(bench, bench.features.fold[users].tolist(), rows, unit)
    return Tasks(torch.from_numpy(bench.setting.profiles[users]).float(), events, events)


def _events(bench: Bench, tables: Sequence[int], rows: Sequence[tuple[np.ndarray, np.ndarray]], unit: _Unit) -> Events:
    """Item features and targets, padded to the longest."""
    features = bench.features
    width = max(1, *(len(items) for items, _ in rows))
    inputs = np.zeros((len(rows), width, features.vectors.shape[2] + 1), np.float32)
    target, weight = np.zeros((2, len(rows), width), np.float32)
    for row, (table, (items, values)) in enumerate(zip(tables, rows, strict=True)):
        inputs[row, : len(items), :-1] = features.vectors[table, items]
        inputs[row, : len(items), -1] = unit.offset(features.offset[table, items])
        target[row, : len(items)] = unit.inward(values)
        weight[row, : len(items)] = 1.0
    return Events(
        torch.from_numpy(inputs),
        torch.from_numpy(target),
        torch.from_numpy(weight),
        torch.zeros(weight.shape, dtype=torch.int64),
    )


def _predict(
    learner: Learner, result: FitResult, bench: Bench, unit: _Unit, tasks: Sequence[Task]
) -> list[Predictions]:
    found: list[Predictions] = []
    for first in range(0, len(tasks), 256):
        some = tasks[first : first + 256]
        support, query = (
            _events(bench, [0] * len(some), rows, unit)
            for rows in (
                [(task.support_items, task.support_values) for task in some],
                [(task.query_items, np.zeros(len(task.query_items))) for task in some],
            )
        )
        profiles = torch.from_numpy(bench.setting.profiles[[task.user for task in some]]).float()
        scores = predict_tasks(learner, result.params, profiles, support, query.inputs).double().numpy()
        for task, row in zip(some, scores, strict=True):
            score = row[: len(task.query_items)]
            rating = unit.outward(score)
            found.append(Predictions(rating, rating))
    return found
