"""An ensemble scores as the sum of its members, wherever they were trained, and survives being killed."""

import multiprocessing
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from palate.backbone.batches import Batch, BatchConfig, inputs
from palate.backbone.ensemble import Ensemble, Job, Trained, run_job, run_jobs
from palate.backbone.next_item import LossConfig
from palate.backbone.run_state import RunState, save_run
from palate.backbone.sequence_model import Catalogue, SequenceModel, SequenceModelConfig
from palate.backbone.training_config import TrainingConfig
from palate.data.episodes import EMPTY_HISTORY, History
from palate.data.event_log import from_histories
from palate.errors import ModelError, NumericalError

CONFIG = SequenceModelConfig(dim=8, num_layers=1, max_events=4, dropout=0.1, loss=LossConfig(distinct=True))
CONTENT = torch.linspace(-3, 3, 30).sin().view(10, 3)
BATCHES = BatchConfig(tokens=24, window=3, even_start=True)
TRAINING = TrainingConfig(num_epochs=2, warmup_steps=2)
CATALOGUE = Catalogue(torch.arange(10), CONTENT)


def history(items: list[int]) -> History:
    return History(np.array(items, np.int64), 60.0 * np.arange(len(items)), np.zeros(0, np.int64))


PEOPLE = [history([row % 10, (row + 1) % 10, (row + 2) % 10]) for row in range(16)]


def job(seed: int, content: Tensor = CONTENT, folder: Path | None = None) -> Job:
    return Job(
        f"job-{seed}", CONFIG, BATCHES, TRAINING, content, from_histories(PEOPLE), torch.ones(16, 2), seed, folder
    )


def read(people: list[History], profiles: Tensor) -> Batch:
    return inputs(from_histories(people), 4)._replace(profiles=profiles)


def assert_same(one: Trained, other: Trained) -> None:
    assert one.losses == other.losses
    assert one.weights.keys() == other.weights.keys()
    assert all(torch.equal(value, other.weights[name]) for name, value in one.weights.items())


def test_the_score_is_the_sum_of_the_members_scores() -> None:
    torch.manual_seed(0)
    ensemble = Ensemble(CONFIG, 3, CATALOGUE, 2).eval()
    with torch.no_grad():
        for member in ensemble.models():
            member.items.bias.normal_()
    people, profiles = [PEOPLE[0], PEOPLE[1].head(2), EMPTY_HISTORY], torch.randn(3, 2)
    batch = read(people, profiles)
    vectors = ensemble.item_vectors()
    assert vectors.shape == (10, 24)
    together = ensemble.last_states(batch, vectors) @ vectors.T + ensemble.item_bias()
    expected = torch.stack([member.scores(batch) for member in ensemble.models()]).sum(0)
    torch.testing.assert_close(together, expected)
    states = ensemble.states(batch, vectors)
    assert states.shape == (3, 4, 24)
    torch.testing.assert_close(states[1, 2] @ vectors.T + ensemble.item_bias(), expected[1])
    # Members differ, so that an average over them says more than one.
    first, second, _ = ensemble.models()
    assert not torch.equal(first.profile, second.profile)


def test_a_new_item_is_encoded_by_every_member() -> None:
    torch.manual_seed(0)
    ensemble = Ensemble(CONFIG, 3, CATALOGUE, 2).eval()
    new = torch.ones(1, 3)
    for part, member in zip(torch.split(ensemble.encode_new(new), 8, dim=1), ensemble.models(), strict=True):
        torch.testing.assert_close(part, member.items.encode_new(new))


def test_processes_train_to_the_same_bytes_as_a_loop_and_in_the_same_order() -> None:
    jobs, losses = [job(seed) for seed in range(3)], list[float]()
    here = run_jobs(jobs, 1, losses.append)
    assert len(losses) == 6
    there = run_jobs(jobs, 2, lambda loss: None)
    for one, other in zip(here, there, strict=True):
        assert_same(one, other)
    assert here[0].losses != here[1].losses


def test_a_job_depends_on_itself_alone() -> None:
    torch.manual_seed(123)
    one = run_job(job(5), lambda loss: None)
    torch.manual_seed(321)
    assert_same(one, run_job(job(5), lambda loss: None))
    SequenceModel(CONFIG, CATALOGUE, 2).load_state_dict(one.weights)


def test_a_killed_job_goes_on_to_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    through = run_job(job(1), lambda loss: None)

    def die(folder: Path, tensors: dict[str, Tensor], state: RunState) -> None:
        save_run(folder, tensors, state)
        raise KeyboardInterrupt

    heard: list[float] = []
    monkeypatch.setattr("palate.backbone.training_run.save_run", die)
    with pytest.raises(KeyboardInterrupt):
        run_job(job(1, folder=tmp_path / "run"), heard.append)
    monkeypatch.undo()
    torch.manual_seed(99)
    assert_same(run_job(job(1, folder=tmp_path / "run"), heard.append), through)
    assert heard == list(through.losses[1:])
    # What is finished is read, not repeated.
    assert_same(run_job(job(1, folder=tmp_path / "run"), heard.append), through)
    assert len(heard) == 1


def test_members_learn_what_follows_what() -> None:
    """Item i + 1 follows item i, and nothing is bought twice."""
    long = job(0)._replace(training=TrainingConfig(num_epochs=60, learning_rate=0.01, warmup_steps=2))
    model = SequenceModel(CONFIG, CATALOGUE, 2)
    model.load_state_dict(run_job(long, lambda loss: None).weights)
    model.eval()
    starts = [history([row, row + 1]) for row in range(7)]
    scores = model.scores(read(starts, torch.ones(7, 2))).detach()
    for row, person in enumerate(starts):  # what was bought is not asked for, so its score means nothing
        scores[row, person.items] = -torch.inf
    best = scores.argmax(1)
    assert best.tolist() == [row + 2 for row in range(7)]


def test_an_error_in_a_job_reaches_the_caller() -> None:
    with pytest.raises(NumericalError, match="epoch 1, step 1"):
        run_jobs([job(0), job(1, torch.full_like(CONTENT, torch.nan))], 1, lambda loss: None)


def test_a_killed_worker_is_an_error_and_ends_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    heard = 0

    def kill_one(loss: float) -> None:
        nonlocal heard
        heard += 1
        if heard == 1:
            multiprocessing.active_children()[0].kill()

    long = [job(seed)._replace(training=TrainingConfig(num_epochs=0, max_seconds=60.0)) for seed in range(2)]
    with pytest.raises(ModelError, match="a training process was killed"):
        run_jobs(long, 2, kill_one)


def test_the_first_failure_ends_the_other_members() -> None:
    long = job(0)._replace(training=TrainingConfig(num_epochs=0, max_seconds=60.0))
    with pytest.raises(NumericalError):
        run_jobs([long, job(1, torch.full_like(CONTENT, torch.nan))], 2, lambda loss: None)
