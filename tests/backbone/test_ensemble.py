"""An ensemble scores as the sum of its members, wherever they were trained."""

import numpy as np
import pytest
import torch
from torch import Tensor

from palate.backbone.ensemble import Ensemble, Job, run_job, run_jobs
from palate.backbone.pretraining import PretrainingConfig
from palate.backbone.transformer import Backbone, BackboneConfig
from palate.data.episodes import EMPTY_HISTORY, History, pack
from palate.errors import NumericalError

CONFIG = BackboneConfig(dim=8, num_layers=1, num_members=3, max_events=4, dropout=0.1)
CONTENT = torch.linspace(-3, 3, 30).sin().view(10, 3)
PRETRAINING = PretrainingConfig(num_epochs=2, batch_size=8, warmup_steps=2)


def history(items: list[int]) -> History:
    return History(np.array(items, np.int64), 60.0 * np.arange(len(items)), np.zeros(0, np.int64))


PEOPLE = [history([row % 10, (row + 1) % 10, (row + 2) % 10]) for row in range(16)]


def job(seed: int, content: Tensor = CONTENT) -> Job:
    return Job(f"job-{seed}", CONFIG, content, PEOPLE, torch.ones(16, 2), PRETRAINING, seed, None)


def test_the_score_is_the_sum_of_the_members_scores() -> None:
    torch.manual_seed(0)
    ensemble = Ensemble(CONFIG, CONTENT, 2).eval()
    with torch.no_grad():
        for member in ensemble.backbones():
            member.items.bias.normal_()
    people, profiles = [PEOPLE[0], PEOPLE[1].head(2), EMPTY_HISTORY], torch.randn(3, 2)
    vectors = ensemble.item_vectors()
    assert vectors.shape == (10, 24)
    together = ensemble.last_states(vectors, pack(people), profiles) @ vectors.T + ensemble.item_bias()
    expected = torch.zeros(3, 10)
    for member in ensemble.backbones():
        states = member(member.items(), pack(people), profiles)
        for row, person in enumerate(people):
            expected[row] += states[row, len(person.items)] @ member.items().T + member.items.bias
    torch.testing.assert_close(together, expected)
    # Members differ, so that an average over them says more than one.
    first, second, _ = ensemble.backbones()
    assert not torch.equal(first.out.weight, second.out.weight)


def test_a_new_item_is_encoded_by_every_member() -> None:
    torch.manual_seed(0)
    ensemble = Ensemble(CONFIG, CONTENT, 2).eval()
    new = torch.ones(1, 3)
    for part, member in zip(ensemble.encode_new(new).split(8, dim=1), ensemble.backbones(), strict=True):
        torch.testing.assert_close(part, member.items.encode_new(new))


def test_processes_train_to_the_same_bytes_as_a_loop_and_in_the_same_order() -> None:
    jobs, losses = [job(seed) for seed in range(3)], list[float]()
    here = run_jobs(jobs, 1, losses.append)
    assert len(losses) == 6
    there = run_jobs(jobs, 2, lambda loss: None)
    for one, other in zip(here, there, strict=True):
        assert one.losses == other.losses
        assert one.weights.keys() == other.weights.keys()
        assert all(torch.equal(value, other.weights[name]) for name, value in one.weights.items())
    assert here[0].losses != here[1].losses


def test_a_job_depends_on_itself_alone() -> None:
    torch.manual_seed(123)
    one = run_job(job(5), lambda loss: None)
    torch.manual_seed(321)
    other = run_job(job(5), lambda loss: None)
    assert one.losses == other.losses
    Backbone(CONFIG, CONTENT, 2).load_state_dict(one.weights)


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_in_a_job_reaches_the_caller(workers: int) -> None:
    with pytest.raises(NumericalError, match="epoch 1, step 1"):
        run_jobs([job(0), job(1, torch.full_like(CONTENT, torch.nan))], workers, lambda loss: None)
