"""The outer loop on a world of planted tastes: every learner solves it, repeats it, and stops at a NaN."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from palate.backbone.batches import inputs
from palate.backbone.ensemble import Ensemble
from palate.backbone.sequence_model import Catalogue, SequenceModelConfig
from palate.data.episodes import History
from palate.data.event_log import from_histories
from palate.errors import ConfigError, DataError, NumericalError
from palate.meta import LEARNERS, find_learner
from palate.meta.head import Head, Items, Layout, Profile, Query, Support, make_head
from palate.meta.learner import Params
from palate.meta.tasks import make_supports
from palate.meta.training import (
    RETURN,
    Episodes,
    MetaConfig,
    MetaResult,
    World,
    find_start,
    make_episodes,
    meta_train,
    score_supports,
    take,
    validate,
)
from palate.metrics import ndcg_at_k, top_k
from palate.scorers.choice import choose_scorers
from palate.scorers.evidence import no_scorers
from palate.scorers.item_item import ItemItemConfig
from palate.significance import Interval

NUM_TASTES, PER_TASTE, NUM_FEATURES, DIM = 4, 12, 8, 3
NUM_ITEMS = NUM_TASTES * PER_TASTE
CONFIG = MetaConfig(num_steps=30, batch_size=24, learning_rate=0.05, validate_every=10, search_start=False)
EVERY_LEARNER = pytest.mark.parametrize("name", sorted(LEARNERS))


def make_items() -> Items:
    """Features tell the tastes apart through noise; vectors, states and popularity say nothing."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(NUM_TASTES, NUM_FEATURES, generator=generator)
    features = centres.repeat_interleave(PER_TASTE, 0)
    features = 0.4 * (features + 0.8 * torch.randn(NUM_ITEMS, NUM_FEATURES, generator=generator))
    in_context = torch.randn(NUM_ITEMS, DIM + 1, generator=generator)
    popularity = torch.randn(NUM_ITEMS, generator=generator)
    return Items(features, in_context[:, :DIM], in_context[:, DIM], popularity)


def head_of(name: str) -> Head:
    return make_head(name, NUM_FEATURES, 2)


def make_params(name: str, items: Items) -> Params:
    half = torch.cat([torch.zeros(NUM_FEATURES // 2), torch.ones(NUM_FEATURES // 2)])
    has_prior = torch.ones(NUM_FEATURES) if LEARNERS[name].by_feature else half
    layout = Layout(torch.zeros(NUM_FEATURES), has_prior, 1 - half, 2)
    return head_of(name).params(layout, items)


def make_tasks(
    items: Items, num_people: int, seed: int, *, sizes: tuple[int, ...] = (0, 1, 3, 6), shift: int = 0
) -> Episodes:
    """Each person at each size; with `shift`, what follows is of another taste than the support."""
    rng = np.random.default_rng(seed)
    supports, relevant, seen, states, profiles = [], [], [], [], []
    for person in range(num_people):
        taste = person % NUM_TASTES
        order = rng.permutation(PER_TASTE) + PER_TASTE * taste
        wanted = (order + shift * PER_TASTE) % NUM_ITEMS
        for size in sizes:
            head = order[:size]
            supports.append(History(head, np.arange(size, dtype=np.float64), np.zeros(0, np.int64)))
            relevant.append(np.isin(np.arange(NUM_ITEMS), wanted[size:]))
            seen.append(np.isin(np.arange(NUM_ITEMS), head))
            states.append(rng.normal(size=DIM))
            profiles.append(rng.normal(size=2))
    state, log = torch.tensor(np.array(states), dtype=torch.float32), from_histories(supports)
    return Episodes(
        torch.tensor(sizes).repeat(num_people),
        Profile(torch.tensor(np.array(profiles), dtype=torch.float32), state),
        make_supports(log, log.recent(0), np.zeros(len(supports), np.bool_), items.features, state),
        torch.tensor(np.array(relevant)),
        torch.tensor(np.array(seen)),
        torch.arange(num_people).repeat_interleave(len(sizes)),
        log,
    )


def run(name: str, config: MetaConfig = CONFIG, seed: int = 0, shift: int = 0) -> tuple[Params, MetaResult]:
    items = make_items()
    start = make_params(name, items)
    train = make_tasks(items, 40, seed=1, shift=shift)
    validation = make_tasks(items, 24, seed=2)
    config = replace(config, learner=name)
    if LEARNERS[name].by_feature and config.num_steps == CONFIG.num_steps:  # starts from nothing on each feature
        config = replace(config, num_steps=5 * config.num_steps, validate_every=5 * config.validate_every)
    return start, meta_train(head_of(name), start, no_scorers(), [World(items, train, validation)], config, seed=seed)


class TestStart:
    def test_where_the_shared_model_knows_best_the_rest_begins_small(self) -> None:
        """States point at the taste, features and popularity are noise: the usual start drowns what is known."""
        generator = torch.Generator().manual_seed(1)
        centres = 2 * torch.randn(NUM_TASTES, DIM, generator=generator)
        vectors = centres.repeat_interleave(PER_TASTE, 0) + torch.randn(NUM_ITEMS, DIM, generator=generator)
        noise = torch.randn(NUM_ITEMS, NUM_FEATURES, generator=generator)
        items = Items(noise, vectors, torch.zeros(NUM_ITEMS), 3 * torch.randn(NUM_ITEMS, generator=generator))

        def tasks(people: int, seed: int) -> Episodes:
            made = make_tasks(items, people, seed=seed)
            state = centres[made.user % NUM_TASTES]
            return made._replace(support=made.support._replace(state=state), profile=made.profile._replace(state=state))

        head, start, train = head_of("ridge"), make_params("ridge", items), tasks(40, 1)
        found = find_start(head, start, no_scorers(), [World(items, train, train)], seed=0)
        assert found["popularity"] < 0.5 * start["popularity"]
        assert (found["gates"][1, 0] < start["gates"][1, 0]) or torch.equal(found["gates"], start["gates"])
        worlds = [World(items, train, tasks(24, 2))]
        before, after = (validate(head, params, no_scorers(), worlds) for params in (start, found))
        assert after > before + 0.05
        untouched = {"gates", "popularity"}
        assert all(found[name] is start[name] for name in start if name not in untouched)
        train_first = replace(CONFIG, learner="ridge", search_start=True, num_steps=1, validate_every=1)
        result = meta_train(head, start, no_scorers(), worlds, train_first, seed=0)
        assert result.validation[0][1] == pytest.approx(after, abs=1e-12)

    def test_without_evidence_against_it_the_usual_start_stays(self) -> None:
        items = make_items()._replace(popularity=torch.zeros(NUM_ITEMS))
        start = make_params("ridge", items)
        tasks = make_tasks(items, 40, seed=1)
        assert find_start(head_of("ridge"), start, no_scorers(), [World(items, tasks, tasks)], seed=0) is start


@EVERY_LEARNER
class TestEveryLearner:
    def test_training_lowers_the_loss_and_lifts_the_validation(self, name: str) -> None:
        start, result = run(name, replace(CONFIG, num_steps=40))
        assert result.losses[-1][1] < 0.8 * result.losses[0][1]
        kept = dict(result.validation)[result.step]
        assert kept > result.validation[0][1] + 0.05
        items = make_items()
        head, validation = head_of(name), make_tasks(items, 24, seed=2)
        worlds = [World(items, validation, validation)]
        assert validate(head, result.params, no_scorers(), worlds) == pytest.approx(kept, abs=1e-12)
        assert validate(head, start, no_scorers(), worlds) == pytest.approx(result.validation[0][1], abs=1e-12)

    def test_more_of_a_taste_never_hurts(self, name: str) -> None:
        # Only the features say anything here; every size is asked for the same items.
        items = make_items()
        items = Items(items.features, torch.zeros_like(items.vectors), torch.zeros(NUM_ITEMS), torch.zeros(NUM_ITEMS))
        sizes = (0, 1, 2, 4, 6)
        tasks = make_tasks(items, 80, seed=3, sizes=sizes)
        wanted = tasks.relevant[tasks.size == 6].repeat_interleave(len(sizes), 0)
        hidden = tasks.seen[tasks.size == 6].repeat_interleave(len(sizes), 0)
        start, result = run(name)
        # An amortised learner starts by making nothing of its support.
        for params in (result.params,) if name == "neural-process" else (start, result.params):
            scores = score_supports(head_of(name), params, items, no_scorers(), tasks.profile, tasks.support, tasks.log)
            ranked = top_k(np.where(hidden.numpy(), -np.inf, scores), 6)
            values = ndcg_at_k(ranked, wanted.numpy())
            curve = [values[tasks.size.numpy() == size].mean() for size in sizes]
            assert all(later > earlier - 0.02 for earlier, later in pairwise(curve)), curve
            assert curve[-1] > curve[0] + 0.3, curve

    def test_same_seed_same_result(self, name: str) -> None:
        (_, one), (_, other), (_, third) = run(name), run(name), run(name, seed=1)
        assert one.losses == other.losses
        assert one.validation == other.validation
        assert all(torch.equal(value, other.params[key]) for key, value in one.params.items())
        assert third.losses != one.losses

    def test_fixed_parameters_and_the_start_stay_as_they_are(self, name: str) -> None:
        before = make_params(name, make_items())
        start, result = run(name)
        assert result.params.keys() == start.keys()
        for key, value in before.items():
            assert torch.equal(start[key], value), key
            if key.startswith("fixed.") and not key.startswith("fixed.learner.class."):  # fitted on the profiles
                assert torch.equal(result.params[key], value), key
        trained = [key for key in start if not key.startswith("fixed.") and start[key].numel()]
        assert any(not torch.equal(result.params[key], start[key]) for key in trained)
        if LEARNERS[name].by_feature:
            return  # what one small world gives no gradient stays, such as a prior where nothing but the classes tell
        assert all(not torch.equal(result.params[key], start[key]) for key in trained)
        assert not any(value.requires_grad for value in result.params.values())

    def test_a_look_that_is_shown_to_be_better_than_the_last_is_kept(self, name: str) -> None:
        # People whose support misleads teach the learner what the validation people contradict.
        items = make_items()
        start, result = run(name, shift=1)
        values = [value for _, value in result.validation]
        assert [step for step, _ in result.validation] in ([0, 10, 20, 30], [0, 50, 100, 150])
        assert values[-1] < max(values)
        tasks = make_tasks(items, 24, seed=2)
        again = validate(head_of(name), result.params, no_scorers(), [World(items, tasks, tasks)])
        assert again == pytest.approx(dict(result.validation)[result.step], abs=1e-12)
        assert again in (pytest.approx(max(values), abs=1e-12), pytest.approx(values[-1], abs=1e-12))
        if result.step == 0:
            kept = [key for key in start if not key.startswith("fixed.learner.class.")]
            assert all(torch.equal(start[key], result.params[key]) for key in kept)

    @pytest.mark.parametrize("validate_every", [1, 10])
    def test_an_explosion_names_the_learner_and_the_step(self, name: str, validate_every: int) -> None:
        with pytest.raises(NumericalError, match=rf"meta-training of {name}: .*step \d+"):
            run(name, replace(CONFIG, learning_rate=1e30, validate_every=validate_every))

    def test_a_nan_in_the_features_stops_at_once(self, name: str) -> None:
        items = make_items()
        broken = items._replace(popularity=items.popularity.index_fill(0, torch.tensor([7]), torch.nan))
        tasks = make_tasks(items, 8, seed=0)
        with pytest.raises(NumericalError, match=f"meta-training of {name}: validation at step 0"):
            meta_train(
                head_of(name),
                make_params(name, items),
                no_scorers(),
                [World(broken, tasks, tasks)],
                replace(CONFIG, learner=name),
                seed=0,
            )


def test_an_earlier_look_must_be_shown_to_be_better_than_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    items = make_items()
    head, start, train = head_of("ridge"), make_params("ridge", items), make_tasks(items, 40, seed=1, shift=1)
    worlds = [World(items, train, make_tasks(items, 60, seed=2))]
    shown = meta_train(head, start, no_scorers(), worlds, CONFIG, seed=0)
    looks = dict(shown.validation)
    assert looks[CONFIG.num_steps] < max(looks.values()) == looks[shown.step]
    # The same course of training where the interval does not tell them apart.
    asked: list[np.ndarray] = []

    def wide(values: np.ndarray, people: np.ndarray) -> Interval:
        asked.append(values)
        return Interval(float(values.mean()), -1.0, 1.0)

    monkeypatch.setattr("palate.meta.training.clustered_interval", wide)
    lucky = meta_train(head, start, no_scorers(), worlds, CONFIG, seed=0)
    assert lucky.step == CONFIG.num_steps
    assert lucky.validation == shown.validation
    # Every support size counts the same in the difference, as it does in a look.
    assert asked[0].mean() == pytest.approx(looks[shown.step] - looks[CONFIG.num_steps], abs=1e-9)


def test_parameters_whose_lists_mislead_are_returned_and_called_worse_than_chance() -> None:
    # What follows is of another taste than the support, which the learner trusts.
    items = make_items()
    train, validation = make_tasks(items, 40, seed=1), make_tasks(items, 30, seed=2, sizes=(3, 6), shift=1)
    config = replace(CONFIG, num_steps=2, validate_every=1)
    start, head = make_params("ridge", items), head_of("ridge")
    result = meta_train(head, start, no_scorers(), [World(items, train, validation)], config, seed=0)
    assert result.quality is not None
    assert result.quality.verdict == "worse"
    assert result.quality.num_users == 30, "people, not episodes"
    assert result.quality.ndcg < result.quality.random
    # The same lists for five people are no evidence.
    few = make_tasks(items, 5, seed=2, sizes=(3, 6), shift=1)
    found = meta_train(head, start, no_scorers(), [World(items, train, few)], config, seed=0).quality
    assert found is not None
    assert found.verdict == "inconclusive"


def test_lists_that_fit_are_better_than_chance() -> None:
    quality = run("ridge")[1].quality
    assert quality is not None
    assert quality.verdict == "better"


def test_what_goes_with_what_is_weighed_by_what_it_is_worth() -> None:
    """Nothing but the scorers tells the tastes apart here; their weights begin at 0."""
    items = Items(
        torch.zeros(NUM_ITEMS, NUM_FEATURES),
        torch.zeros(NUM_ITEMS, DIM),
        torch.zeros(NUM_ITEMS),
        torch.zeros(NUM_ITEMS),
    )
    others, train, validation = (make_tasks(items, 40, seed=seed) for seed in (3, 1, 2))
    known = np.flatnonzero(train.log.lengths() > 0)
    scorers = choose_scorers(
        others.log, train.log.take(known), train.relevant.numpy()[known], train.seen.numpy()[known], ItemItemConfig()
    )
    head = make_head("ridge", NUM_FEATURES, 2, num_scorer_features=scorers.num_features)
    layout = Layout(torch.zeros(NUM_FEATURES), torch.ones(NUM_FEATURES), torch.zeros(NUM_FEATURES), 2)
    start = head.params(layout, items)
    assert not start["scorers.weight"].any()
    result = meta_train(head, start, scorers, [World(items, train, validation)], CONFIG, seed=0)
    assert result.validation[-1][1] > result.validation[0][1] + 0.3
    scores = score_supports(head, result.params, items, scorers, validation.profile, validation.support, validation.log)
    large = validation.size.numpy() >= 3
    ranked = top_k(np.where(validation.seen.numpy(), -np.inf, scores), 5)[large]
    assert ndcg_at_k(ranked, validation.relevant.numpy()[large]).mean() > 0.9


def test_worlds_are_one_world_where_they_say_the_same() -> None:
    items = make_items()
    train, validation, head = make_tasks(items, 40, seed=1), make_tasks(items, 24, seed=2), head_of("ridge")
    start, everyone = make_params("ridge", items), torch.arange(len(train.size))
    even, odd = (everyone[train.user % 2 == part] for part in (0, 1))
    judged = torch.arange(len(validation.size))
    halves = [
        World(items, take(train, even), take(validation, judged[validation.user % 2 == 0])),
        World(items, take(train, odd), take(validation, judged[validation.user % 2 == 1])),
    ]
    whole = validate(head, start, no_scorers(), [World(items, train, validation)])
    assert validate(head, start, no_scorers(), halves) == pytest.approx(whole, abs=1e-9)
    one = meta_train(head, start, no_scorers(), [World(items, train, validation)], CONFIG, seed=0)
    two = meta_train(head, start, no_scorers(), halves, CONFIG, seed=0)
    assert two.validation[-1][1] == pytest.approx(one.validation[-1][1], abs=0.05)
    assert two.quality is not None
    assert two.quality.num_users == 24


def test_each_world_is_met_on_its_own_scale() -> None:
    """What doubles the vectors, the states or the features of a world changes no list: terms count by their spread."""
    items = make_items()
    train, validation, head = make_tasks(items, 40, seed=1), make_tasks(items, 24, seed=2), head_of("ridge")
    start = make_params("ridge", items)
    louder = items._replace(vectors=8 * items.vectors, bias=8 * items.bias)
    worlds = [World(items, train, validation), World(louder, train, validation)]
    alone = validate(head, start, no_scorers(), worlds[:1])
    assert validate(head, start, no_scorers(), worlds[1:]) == pytest.approx(alone, abs=1e-6)
    result = meta_train(head, start, no_scorers(), worlds, CONFIG, seed=0)
    for name, value in start.items():
        if name.startswith("fixed."):
            assert torch.equal(result.params[name], value), name


def test_every_support_size_is_drawn_as_often() -> None:
    """Fifty episodes of one size and ten of each other."""
    items = make_items()
    tasks = make_tasks(items, 10, seed=0, sizes=(0, 1, 3))
    rows = torch.cat([torch.arange(len(tasks.size)), *[(tasks.size == 1).nonzero().flatten()] * 4])
    tasks, drawn = take(tasks, rows), list[int]()
    with pytest.MonkeyPatch.context() as patch:

        def watched(episodes: Episodes, rows: torch.Tensor) -> Episodes:
            drawn.extend(episodes.size[rows].tolist())
            return take(episodes, rows)

        patch.setattr("palate.meta.training.take", watched)
        config = replace(CONFIG, num_steps=200, batch_size=6, validate_every=200)
        worlds = [World(items, tasks, tasks)]
        meta_train(head_of("ridge"), make_params("ridge", items), no_scorers(), worlds, config, seed=0)
    shares = np.array([drawn.count(size) for size in (0, 1, 3)]) / len(drawn)
    assert np.abs(shares - 1 / 3).max() < 0.08


def test_a_nan_in_the_training_people_names_the_first_step() -> None:
    items = make_items()
    train, validation = make_tasks(items, 8, seed=0), make_tasks(items, 8, seed=1)
    train.support.state[:] = torch.nan
    worlds = [World(items, train, validation)]
    with pytest.raises(NumericalError, match="meta-training of ridge: the loss became nan at step 1; lower"):
        meta_train(head_of("ridge"), make_params("ridge", items), no_scorers(), worlds, CONFIG, seed=0)


def test_the_first_losses_are_the_mean_over_episodes() -> None:
    # A batch that holds everyone, steps too small to matter: the curve is the mean loss at the start.
    items = make_items()
    start, tasks, head = make_params("ridge", items), make_tasks(items, 4, seed=0), head_of("ridge")
    config = MetaConfig(num_steps=2, batch_size=999, learning_rate=1e-9, validate_every=2)
    looks: list[tuple[int, int, float]] = []
    result = meta_train(
        head,
        start,
        no_scorers(),
        [World(items, tasks, tasks)],
        config,
        seed=0,
        on_step=lambda *look: looks.append(look),
    )
    one_by_one = []
    for row in range(len(tasks.size)):
        query = Query(items, tasks.relevant[row].float(), (~tasks.seen[row]).float(), torch.zeros(NUM_ITEMS, 0))
        profile, support = (type(part)(*(value[row] for value in part)) for part in (tasks.profile, tasks.support))
        assert isinstance(profile, Profile)
        assert isinstance(support, Support)
        one_by_one.append(head.loss(head.adapt(start, head.prior(start, profile), support), query).item())
    assert result.losses == ((2, pytest.approx(np.mean(one_by_one), rel=1e-5)),)
    assert looks == [(2, 2, result.validation[-1][1])]


@pytest.mark.parametrize("name", [name for name, entry in LEARNERS.items() if entry.posterior is not None])
def test_what_is_computed_once_is_what_is_computed_at_every_step(name: str) -> None:
    items = make_items()
    start, head = make_params(name, items), head_of(name)
    worlds = [World(items, make_tasks(items, 20, seed=1), make_tasks(items, 9, seed=2))]
    config = replace(CONFIG, learner=name, num_steps=6, validate_every=2)
    assert head.closed
    once, always = (
        meta_train(some, start, no_scorers(), worlds, config, seed=0) for some in (head, head._replace(closed=False))
    )
    assert [step for step, _ in once.validation] == [step for step, _ in always.validation]
    np.testing.assert_allclose(once.validation, always.validation, rtol=1e-5)
    np.testing.assert_allclose(once.losses, always.losses, rtol=1e-5)
    for key, value in always.params.items():
        torch.testing.assert_close(once.params[key], value, rtol=1e-3, atol=1e-5)
        assert torch.equal(value, start[key]) == (key.startswith("fixed.") or value.numel() == 0)


def test_validation_is_the_mean_over_sizes_of_the_mean_over_people() -> None:
    # Three people at size 1 whose hit is on top, one at size 0 whose hit is second: (1 + 1/log2(3)) / 2.
    items = Items(torch.zeros(3, NUM_FEATURES), torch.zeros(3, DIM), torch.zeros(3), torch.tensor([2.0, 1.0, 0.0]))
    relevant = torch.tensor([[False, True, False]] * 4)
    seen = torch.tensor([[True, False, False]] * 3 + [[False] * 3])
    histories = [History(np.zeros(1, np.int64), np.zeros(1), np.zeros(0, np.int64))] * 4
    log = from_histories(histories)
    support = make_supports(log, log.recent(0), np.zeros(4, np.bool_), items.features, torch.zeros(4, DIM))
    tasks = Episodes(
        torch.tensor([1, 1, 1, 0]),
        Profile(torch.zeros(4, 2), torch.zeros(4, DIM)),
        support,
        relevant,
        seen,
        torch.arange(4),
        log,
    )
    value = validate(head_of("ridge"), make_params("ridge", items), no_scorers(), [World(items, tasks, tasks)])
    assert value == pytest.approx((1 + 1 / np.log2(3)) / 2)


class TestMakeEpisodes:
    def setup_method(self) -> None:
        torch.manual_seed(0)
        config = SequenceModelConfig(dim=4, num_layers=1, max_events=4)
        catalogue = Catalogue(torch.ones(NUM_ITEMS, dtype=torch.int64), torch.randn(NUM_ITEMS, 3))
        self.backbone = Ensemble(config, 2, catalogue, 2).eval()
        self.vectors = self.backbone.item_vectors().detach()
        self.items = make_items()
        self.profiles = torch.randn(3, 2)
        self.people = [self.history([5, 9, 2, 7, 1, 30]), self.history([8, 3]), self.history([4, 6, 0, 11])]

    def history(self, items: list[int]) -> History:
        times = 1.7e9 + 90_000.0 * np.arange(len(items))
        return History(np.array(items, np.int64), times, np.array([40], np.int64))

    def make(self, sizes: tuple[int, ...], min_query: int = 2) -> Episodes:
        return make_episodes(
            from_histories(self.people), self.profiles, self.backbone, self.vectors, self.items, sizes, min_query
        )

    def test_each_size_that_leaves_enough_to_predict(self) -> None:
        # Six items: cuts at 0, 2, 4; two items: at 0; four items: at 0 and 2. The backbone does not read 5.
        episodes = self.make((0, 2, 4, 5))
        assert episodes.size.tolist() == [0, 2, 4, 0, 0, 2]

    def test_of_more_episodes_than_fit_in_memory_some_are_drawn(self, monkeypatch: pytest.MonkeyPatch) -> None:
        whole = self.make((0, 2, 4, 5))
        monkeypatch.setattr("palate.meta.training._MOST_CELLS", 4 * NUM_ITEMS + 1)
        some = self.make((0, 2, 4, 5))
        assert len(some.size) == 4
        rows = [row.tolist() for row in whole.relevant]
        places = [rows.index(row.tolist()) for row in some.relevant]
        assert places == sorted(set(places))
        assert torch.equal(self.make((0, 2, 4, 5)).relevant, some.relevant)

    def test_validation_in_parts_is_validation_at_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        episodes, head = self.make((0, 2)), make_head("ridge", self.items.features.shape[1], 2)
        width = self.items.features.shape[1]
        layout = Layout(torch.zeros(width), torch.ones(width), torch.zeros(width), 2)
        # The members' vectors, as long as the states that are scored with them.
        self.items = self.items._replace(vectors=self.vectors, bias=torch.zeros(NUM_ITEMS))
        params = head.params(layout, self.items)
        worlds = [World(self.items, episodes, episodes)]
        whole = validate(head, params, no_scorers(), worlds)
        monkeypatch.setattr("palate.meta.training._CELLS_AT_ONCE", 2 * NUM_ITEMS)
        assert validate(head, params, no_scorers(), worlds) == pytest.approx(whole, abs=1e-6)

    def test_what_is_before_the_cut_is_support_and_the_rest_is_relevant(self) -> None:
        episodes = self.make((2,))
        assert [row.nonzero().flatten().tolist() for row in episodes.seen] == [[5, 9], [4, 6]]
        assert [row.nonzero().flatten().tolist() for row in episodes.relevant] == [[1, 2, 7, 30], [0, 11]]
        torch.testing.assert_close(episodes.support.features, self.items.features[torch.tensor([[5, 9], [4, 6]])])
        assert episodes.support.target.tolist() == [[1, 1], [1, 1]]  # a refusal has no time, so it is left out

    def test_a_list_may_be_judged_by_the_next_few_alone(self) -> None:
        people = (from_histories(self.people), self.profiles, self.backbone, self.vectors, self.items)
        episodes = make_episodes(*people, (0, 2), 1, 2)
        assert [row.nonzero().flatten().tolist() for row in episodes.relevant] == [
            sorted(wanted) for wanted in ([5, 9], [2, 7], [8, 3], [4, 6], [0, 11])
        ]
        assert not (episodes.relevant & episodes.seen).any()

    def test_item_item_scorers_read_what_the_support_holds(self) -> None:
        episodes = self.make((0, 2, 4))
        for row in range(len(episodes.size)):
            ends = slice(episodes.log.offsets[row], episodes.log.offsets[row + 1])
            assert set(episodes.log.items[ends].tolist()) == set(episodes.seen[row].nonzero().flatten().tolist())

    def test_states_are_those_of_the_support_alone(self) -> None:
        episodes = self.make((0, 2, 4))
        rows, people = [0, 0, 0, 1, 2, 2], []
        for row, size in zip(rows, episodes.size.tolist(), strict=True):
            people.append(self.people[row].head(size))
        profiles = self.profiles[rows]
        with torch.no_grad():
            expected, before = (
                self.backbone.last_states(
                    inputs(from_histories(histories), 4)._replace(profiles=profiles), self.vectors
                )
                for histories in (people, [one.head(0) for one in people])
            )
        torch.testing.assert_close(episodes.support.state, expected, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(episodes.profile.state, before, rtol=1e-5, atol=1e-6)
        assert torch.equal(episodes.profile.features, profiles)
        # An empty support is the prior: both states are the same.
        assert torch.equal(episodes.support.state[0], episodes.profile.state[0])

    def test_each_later_visit_that_leaves_enough_to_predict_is_cut_before(self) -> None:
        # A visit is an item here, 25 hours from the next; the backbone reads 4 events.
        told = replace(self.backbone.config, visit_gap=24.0)
        catalogue = Catalogue(torch.ones(NUM_ITEMS, dtype=torch.int64), torch.randn(NUM_ITEMS, 3))
        self.backbone = Ensemble(told, 2, catalogue, 2).eval()
        for model in self.backbone.models():
            torch.nn.init.normal_(model.get_parameter("visit"))
        self.people[0] = self.history([5, 9, 2, 7, 1, 30, 12])
        episodes = self.make((2,))
        assert episodes.size.tolist() == [2, 2, *[RETURN] * 5, *[RETURN] * 2]
        assert episodes.support.returning.tolist() == [0, 0, *[1] * 7]
        last = episodes.support.features[6, :4]  # before the sixth visit: the four most recent of five items
        torch.testing.assert_close(last, self.items.features[torch.tensor([9, 2, 7, 1])])
        assert episodes.seen[6].nonzero().flatten().tolist() == [1, 2, 5, 7, 9]
        # The same two events, asked right away and for another visit.
        assert torch.equal(episodes.support.features[0, :2], episodes.support.features[3, :2])
        assert not torch.equal(episodes.support.state[0], episodes.support.state[3])

    def test_nobody_long_enough(self) -> None:
        with pytest.raises(DataError, match=r"no held-out person has 12 distinct items; lower meta\.min_query"):
            self.make((2, 3), min_query=10)

    def test_only_sizes_that_the_backbone_does_not_read(self) -> None:
        with pytest.raises(ConfigError, match=r"meta.support_sizes is \(5, 6\), but model.max_events is 4"):
            self.make((5, 6))


def test_an_unknown_learner_is_named_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="'rigde'; choose one of: ridge"):
        find_learner("rigde")


@pytest.mark.parametrize(
    ("setting", "bad"),
    [
        ("support_sizes", ()),
        ("support_sizes", (0, -1)),
        ("held_out", 1.0),
        ("min_query", 0),
        ("window", -1),
        ("num_steps", 0),
        ("learning_rate", 0.0),
    ],
)
def test_a_bad_setting_is_named(setting: str, bad: object) -> None:
    with pytest.raises(ConfigError, match=f"meta.{setting} is"):
        replace(CONFIG, **{setting: bad})
