"""Meta-training in a world where a table knows what comes next, and heads that help or hurt there."""

import pytest
import torch

from palate.errors import ConfigError, DataError
from palate.meta.sequence_head import SequenceItems, SequenceSupport, adapt, score, start_params
from palate.meta.sequence_training import (
    People,
    SequenceTrainingConfig,
    fit_trust,
    make_people,
    next_item_losses,
    scores_at,
    seen_before,
    train_head,
)

NUM_ITEMS, DIM, EVENTS = 24, 4, 10
CONFIG = SequenceTrainingConfig(num_epochs=3, batch_size=8, num_counts=4)


def world(seed: int = 0, users: int = 32) -> tuple[SequenceItems, People]:
    """Item i is followed by i + 1, which the table knows and the sequence model does not."""
    generator = torch.Generator().manual_seed(seed)
    first = torch.randint(NUM_ITEMS, (users, 1), generator=generator)
    items = (first + torch.arange(EVENTS)) % NUM_ITEMS
    table = torch.eye(NUM_ITEMS).roll(1, 1)
    vectors = torch.randn(NUM_ITEMS, DIM, generator=torch.Generator().manual_seed(9))
    catalogue = SequenceItems(vectors, torch.zeros(NUM_ITEMS), table[None])
    states = 0.1 * torch.randn(users, EVENTS + 1, DIM, generator=generator)
    lengths = torch.full((users,), EVENTS)
    return catalogue, make_people(catalogue, items, torch.zeros_like(items), lengths, states)


def all_losses(params: dict[str, torch.Tensor], catalogue: SequenceItems, people: People) -> torch.Tensor:
    counts = torch.arange(1, EVENTS).expand(len(people.items), -1)
    with torch.no_grad():
        return next_item_losses(params, catalogue, people, counts).mean(0)


def test_a_table_that_knows_the_next_item_is_learned_from() -> None:
    catalogue, people = world()
    start = start_params(DIM, [0.9])
    trained = train_head(start, catalogue, people, CONFIG)
    newcomers = world(seed=5)[1]
    assert all_losses(trained, catalogue, newcomers).mean() < all_losses(start, catalogue, newcomers).mean() - 0.3
    assert torch.equal(start["gates"], start_params(DIM, [0.9])["gates"])


def test_training_is_the_same_twice() -> None:
    catalogue, people = world()
    one, two = (train_head(start_params(DIM, [0.9]), catalogue, people, CONFIG, seed=3) for _ in range(2))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_no_trust_in_a_head_that_hurts_and_some_in_one_that_helps() -> None:
    catalogue, people = world()
    bad = start_params(DIM, [0.9])
    bad["gates"][2:] *= -1  # what the table speaks for is put last
    trusted = fit_trust(bad, catalogue, people)
    assert (trusted["fixed.trust"][1:6] == 0).all()
    alone = {**bad, "fixed.trust": torch.zeros_like(bad["fixed.trust"])}
    torch.testing.assert_close(all_losses(trusted, catalogue, people), all_losses(alone, catalogue, people))

    good = train_head(start_params(DIM, [0.9]), catalogue, people, CONFIG)
    assert (fit_trust(good, catalogue, people)["fixed.trust"][1:6] > 0).all()


def test_scores_and_losses_against_one_person_at_a_time() -> None:
    catalogue, people = world(users=3)
    people = people._replace(known=torch.randn(3, NUM_ITEMS))
    params = start_params(DIM, [0.9])
    counts = torch.tensor([[1, 4], [0, 9], [3, 2]])
    found = scores_at(params, catalogue, people, counts)
    losses = next_item_losses(params, catalogue, people, counts)
    for user in range(3):
        for place, count in enumerate(counts[user].tolist()):
            support = SequenceSupport(
                people.items[user, :count],
                people.grades[user, :count],
                people.surprises[user, :count],
                people.states[user, count],
                torch.tensor(count),
                people.known[user],
            )
            expected = score(adapt(params, catalogue, support), catalogue)
            torch.testing.assert_close(found[user, place], expected, rtol=1e-4, atol=1e-4)
            known = set(people.items[user, :count].tolist())
            target = int(people.items[user, count])
            left = [item for item in range(NUM_ITEMS) if item not in known]
            loss = expected[left].logsumexp(0) - expected[target]
            torch.testing.assert_close(losses[user, place], loss, rtol=1e-4, atol=1e-4)


def test_items_seen_before() -> None:
    items = torch.tensor([[2, 0, 2]])
    marks = seen_before(items, torch.tensor([[0, 1, 3]]), 4)
    assert marks[0].tolist() == [[False] * 4, [False, False, True, False], [True, False, True, False]]


def test_bad_settings_and_people() -> None:
    for setting in ({"num_epochs": 0}, {"learning_rate": 0.0}, {"precondition_rate": -1.0}):
        with pytest.raises(ConfigError, match=next(iter(setting))):
            SequenceTrainingConfig(**setting)
    catalogue, people = world(users=2)
    lonely = people._replace(lengths=torch.ones(2, dtype=torch.int64))
    with pytest.raises(DataError, match="2 events"):
        train_head(start_params(DIM, [0.9]), catalogue, lonely, CONFIG)
    with pytest.raises(DataError, match="2 events"):
        fit_trust(start_params(DIM, [0.9]), catalogue, lonely)
    with pytest.raises(DataError, match="do not"):
        make_people(catalogue, people.items, people.grades, people.lengths, people.states[:, 1:])
