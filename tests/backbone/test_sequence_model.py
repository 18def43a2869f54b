"""Contracts over every flavour of block and every loss."""

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from palate.backbone.batches import Batch, BatchConfig, BatchSource, Tile, inputs
from palate.backbone.blocks import NUM_TIME_CLASSES, classify_time
from palate.backbone.heads import HEADS
from palate.backbone.next_item import LOSSES, LossConfig
from palate.backbone.sequence_model import BLOCKS, Catalogue, SequenceModel, SequenceModelConfig
from palate.data.event_log import EventLog, from_sequences
from palate.errors import ConfigError, DataError

NUM_ITEMS = 12
SMALL = SequenceModelConfig(dim=8, num_layers=2, num_heads=2, max_events=9, dropout=0.0)
RICH = replace(
    SMALL,
    timed=True,
    calendar=True,
    visit_gap=24.0,
    num_kinds=3,
    rated=True,
    relative=True,
    heads=dict.fromkeys(HEADS, 0.5),
)


def make_log(seed: int = 0, lengths: tuple[int, ...] = (7, 3, 9, 1)) -> EventLog:
    rng = np.random.default_rng(seed)
    log = from_sequences([rng.integers(0, NUM_ITEMS, length) for length in lengths])
    count = len(log)
    return EventLog(
        log.items,
        log.offsets,
        np.sort(rng.uniform(0, 1e6, count)),
        rng.integers(0, 3, count).astype(np.uint8),
        rng.normal(size=count).astype(np.float32),
    )


def make_batch(log: EventLog | None = None, seed: int = 0) -> Batch:
    log = make_log() if log is None else log
    profiles = np.random.default_rng(seed).normal(size=(log.num_users, 2)).astype(np.float32)
    source = BatchSource(log, BatchConfig(tokens=1000), 9, profiles=profiles)
    return source.load(source.plan(0, 0)[0])


def make_model(config: SequenceModelConfig, *, content: bool = False, seed: int = 0) -> SequenceModel:
    torch.manual_seed(seed)
    counts = torch.arange(NUM_ITEMS)
    features = torch.randn(NUM_ITEMS, 5) if content else None
    model = SequenceModel(config, Catalogue(counts, features), num_profile_features=2)
    for parameter in model.parameters():  # zeros at the start would hide a path that is not there
        torch.nn.init.normal_(parameter, std=0.3)
    return model


FLAVOURS = [
    replace(base, block=block)
    for base, block in itertools.product([SMALL, replace(SMALL, relative=True), RICH], BLOCKS)
]


@pytest.mark.parametrize("config", FLAVOURS, ids=lambda c: f"{c.block}-{c.relative}-{c.timed}")
class TestEveryFlavour:
    def test_a_state_reads_the_past_alone(self, config: SequenceModelConfig) -> None:
        model, batch = make_model(config).eval(), make_batch()
        states = model.states(batch)
        place = 4
        changed = batch._replace(
            items=batch.items.clone(), seconds=batch.seconds, kinds=batch.kinds, values=batch.values
        )
        changed.items[:, place:] = (changed.items[:, place:] + 1) % NUM_ITEMS
        assert batch.seconds is not None
        seconds = batch.seconds.clone()
        seconds[:, place:] += 5e4
        after = model.states(changed._replace(seconds=seconds))
        torch.testing.assert_close(after[:, : place + 1], states[:, : place + 1])
        longer = batch.mask[:, place]
        assert (after[longer, place + 1] - states[longer, place + 1]).abs().max() > 1e-4

    def test_padding_is_inert(self, config: SequenceModelConfig) -> None:
        model, log = make_model(config).eval(), make_log()
        profiles = np.ones((log.num_users, 2), np.float32)
        together = model.last_states(inputs(log, 9, profiles))
        alone = [model.last_states(inputs(log.take([user]), 9, profiles[:1])) for user in range(log.num_users)]
        torch.testing.assert_close(together, torch.cat(alone), rtol=1e-4, atol=1e-5)

    def test_gradients_reach_every_parameter(self, config: SequenceModelConfig) -> None:
        model = make_model(config)
        # A tile from the middle of a history, so that `resume` has its part.
        log = make_log(lengths=(30, 4))
        source = BatchSource(log, BatchConfig(tokens=1000), 9, profiles=np.ones((2, 2), np.float32))
        for plan in source.plan(0, 0):
            model(source.load(plan)).total.backward()
        silent = [
            name for name, parameter in model.named_parameters() if parameter.grad is None or not parameter.grad.any()
        ]
        assert not silent

    def test_recomputing_blocks_changes_nothing(self, config: SequenceModelConfig) -> None:
        def gradients(checkpointing: bool) -> list[Tensor]:
            model = make_model(replace(config, dropout=0.3))
            model.set_activation_checkpointing(checkpointing)
            torch.manual_seed(1)
            loss = model(make_batch()).total
            return list(torch.autograd.grad(loss, list(model.parameters()), allow_unused=True, materialize_grads=True))

        for kept, again in zip(gradients(False), gradients(True), strict=True):
            torch.testing.assert_close(again, kept)

    def test_autocast_is_near(self, config: SequenceModelConfig) -> None:
        model, batch = make_model(config).eval(), make_batch()
        with torch.autocast("cpu", torch.bfloat16):
            half = model.states(batch)
        assert half.dtype == torch.bfloat16 or config.num_layers == 0
        exact = model.states(batch)
        assert (half.float() - exact)[batch_positions(batch)].norm() < 0.05 * exact[batch_positions(batch)].norm()


def batch_positions(batch: Batch) -> Tensor:
    return torch.cat([torch.ones(len(batch.mask), 1, dtype=torch.bool), batch.mask], 1)


@pytest.mark.parametrize("block", BLOCKS)
def test_the_second_derivative_exists(block: str) -> None:
    model, batch = make_model(replace(RICH, block=block)).double().eval(), make_batch()
    doubled = Batch(*(c.double() if c is not None and c.dtype == torch.float32 else c for c in batch))  # type: ignore[arg-type]
    weight = next(model.blocks.parameters())
    (slope,) = torch.autograd.grad(model.states(doubled).square().sum(), weight, create_graph=True)
    (curvature,) = torch.autograd.grad(slope.square().sum(), weight)
    assert curvature.isfinite().all()
    assert curvature.any()


@pytest.mark.parametrize("kind", LOSSES)
class TestEveryLoss:
    def test_it_teaches(self, kind: str) -> None:
        """Item n is always followed by item n + 1: a few steps must find that out."""
        log = from_sequences([[(start + step) % NUM_ITEMS for step in range(8)] for start in range(NUM_ITEMS)])
        source = BatchSource(log, BatchConfig(tokens=10_000), 9)
        batch = source.load(source.plan(0, 0)[0])
        torch.manual_seed(0)
        config = replace(SMALL, dim=16, loss=LossConfig(kind) if kind == "full" else LossConfig(kind, num_negatives=6))
        model = SequenceModel(config, Catalogue(torch.ones(NUM_ITEMS, dtype=torch.int64)))
        optimiser = torch.optim.Adam(model.parameters(), 0.02)
        for _ in range(120):
            optimiser.zero_grad()
            (model(batch).total / batch.num_targets()).backward()
            optimiser.step()
        scores = model.eval().scores(inputs(log, 9))
        last = torch.from_numpy(log.items[log.offsets[1:] - 1].astype(np.int64))
        assert (scores.argmax(1) == (last + 1) % NUM_ITEMS).float().mean() > 0.9

    def test_rows_of_no_weight_do_not_count(self, kind: str) -> None:
        model, batch = make_model(replace(SMALL, loss=LossConfig(kind))).eval(), make_batch()
        torch.manual_seed(0)
        whole = model(batch).total
        doubled = Batch(*(None if c is None else torch.cat([c, c]) for c in batch))  # type: ignore[arg-type]
        weights = doubled.weights.clone()
        weights[len(batch.weights) :] = 0
        torch.manual_seed(0)
        torch.testing.assert_close(model(doubled._replace(weights=weights)).total, whole, rtol=1e-4, atol=1e-4)


def test_sampling_every_item_often_gives_the_full_softmax() -> None:
    """With the logQ correction the sampled loss goes to the full one as the sample grows."""
    torch.manual_seed(0)
    batch = make_batch()
    full = make_model(SMALL).eval()(batch).total
    sampled = make_model(replace(SMALL, loss=LossConfig("sampled", num_negatives=40_000, popularity=0.7))).eval()
    torch.testing.assert_close(sampled(batch).total, full, rtol=0.02, atol=0)


def test_losses_against_their_formulas() -> None:
    """One position, negatives that cannot be its target, by hand."""
    from palate.backbone.next_item import Positions, make_sampler

    model = make_model(SMALL)
    tower = model.items
    counts = torch.zeros(NUM_ITEMS, dtype=torch.int64)
    counts[3] = 10**12  # popularity^1: every draw is item 3
    state = torch.randn(1, 8)
    positions = Positions(state, torch.tensor([[5]]), torch.ones(1, 1))
    positive = (state[0] @ tower(torch.tensor(5)) + tower.bias[5]).item()
    negative = (state[0] @ tower(torch.tensor(3)) + tower.bias[3]).item()
    config = LossConfig("bpr", num_negatives=4, popularity=1.0)
    found = LOSSES["bpr"].loss(positions, tower, None, make_sampler(config, counts), config)
    assert abs(found.item() - np.log1p(np.exp(negative - positive))) < 1e-4
    config = LossConfig("gbce", num_negatives=4, calibration=1.0)
    torch.manual_seed(2)
    sampler = make_sampler(config, counts)
    drawn = sampler.draw().items
    torch.manual_seed(2)
    found = LOSSES["gbce"].loss(positions, tower, None, sampler, config)
    others = [item for item in drawn.tolist() if item != 5]
    scores = [(state[0] @ tower(torch.tensor(item)) + tower.bias[item]).item() for item in others]
    beta = 4 / (NUM_ITEMS - 1)  # calibration 1
    expected = sum(np.log1p(np.exp(score)) for score in scores) + beta * np.log1p(np.exp(-positive))
    assert abs(found.item() - expected) < 1e-4


def test_an_item_without_id_is_its_content() -> None:
    model = make_model(replace(SMALL, id_dropout=0.5), content=True)
    torch.manual_seed(0)
    dropped = model.items.draw_dropped()
    assert dropped is not None
    assert 0 < dropped.sum() < NUM_ITEMS
    content = model.items.encode_new(model.items.content)
    vectors = model.items.all(dropped)
    torch.testing.assert_close(vectors[dropped], content[dropped])
    assert not torch.isclose(vectors[~dropped], content[~dropped]).all(1).any()
    some = torch.tensor([[0, 5], [7, 1]])
    torch.testing.assert_close(model.items(some, dropped), vectors[some])
    assert model.eval().items.draw_dropped() is None


def test_heads_learn_what_comes_next() -> None:
    log = make_log(lengths=(9, 8, 7, 9))
    model, batch = make_model(RICH), make_batch(log)
    optimiser = torch.optim.Adam(model.parameters(), 0.01)
    first = model(batch).parts
    for _ in range(300):
        optimiser.zero_grad()
        loss = model(batch)
        loss.total.backward()
        optimiser.step()
    assert set(loss.parts) == {"next_item", *HEADS}
    for name, value in loss.parts.items():
        assert value < 0.3 * first[name], name


def test_a_token_knows_whether_another_visit_follows() -> None:
    """A person with three events, a day between the second and the third."""
    config = replace(SMALL, visit_gap=12.0)
    model = make_model(config).eval()
    log = from_sequences([[1, 2, 3]])
    log = EventLog(log.items, log.offsets, np.array([0.0, 60.0, 90_000.0]), profiles=np.ones((1, 2), np.float32))
    trained = model.states(BatchSource(log, BatchConfig(), 9).load([Tile(0, 0, 2)]))[0]
    head = log.cut(1)
    back, on = (model.states(inputs(head, 9, returning=np.array([returning])))[0] for returning in (True, False))
    torch.testing.assert_close(back, trained)  # as training has it
    torch.testing.assert_close(on[:2], trained[:2])
    assert (on[2] - trained[2]).abs().max() > 1e-3
    whole = model.states(inputs(log, 9))[0]
    torch.testing.assert_close(whole[:3], trained)  # within what is known, the times say it
    with pytest.raises(DataError, match="the model reads seconds"):
        model.states(inputs(EventLog(log.items, log.offsets, profiles=log.profiles), 9))


def test_time_classes_rise() -> None:
    seconds = torch.tensor([0.0, 1.5, 60.0, 3600.0, 86_400.0, 30 * 86_400.0, 1e9]).double()
    classes = classify_time(seconds)
    assert classes[0] == 0
    assert (classes.diff() > 0).all()
    assert classes[-1] == NUM_TIME_CLASSES - 1


def test_a_meta_build_allocates_nothing() -> None:
    with torch.device("meta"):
        model = SequenceModel(SMALL, Catalogue(torch.empty(10**9, dtype=torch.int64)))
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}


@pytest.mark.parametrize("block", BLOCKS)
def test_the_inner_width_is_every_blocks_own_unless_it_is_set(block: str) -> None:
    def size(multiple: float) -> int:
        config = replace(SMALL, block=block, hidden_multiple=multiple).block_config()
        return sum(parameter.numel() for parameter in BLOCKS[block](config).parameters())

    assert size(0.0) == size({"attention": 4.0, "hstu": 1.0}[block])
    assert size(0.5) < size(1.0) < size(2.0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dim": 9}, r"model\.dim is 9; it must be a multiple of num_heads"),
        ({"block": "lstm"}, r"model\.block is 'lstm'; choose one of: attention, hstu"),
        ({"dropout": 1.0}, r"model\.dropout is 1\.0"),
        ({"heads": {"kind": 1.0}}, r"model\.num_kinds is 0"),
        ({"heads": {"price": 1.0}}, r"model\.heads names 'price'"),
        ({"heads": {"value": 0.0}}, r"model\.heads\.value is 0\.0"),
        ({"num_layers": -1}, r"model\.num_layers is -1"),
        ({"visit_gap": -1.0}, r"model\.visit_gap is -1\.0"),
        ({"hidden_multiple": -1.0}, r"model\.hidden_multiple is -1\.0"),
        ({"id_dropout": 0.1}, r"model\.id_dropout is 0\.1 and the items have no content"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SequenceModel(replace(SMALL, **settings), Catalogue(torch.ones(3, dtype=torch.int64)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "hinge"}, r"loss\.kind is 'hinge'"),
        ({"kind": "full", "num_negatives": 3}, r"loss\.num_negatives is 3, which full does not read"),
        ({"kind": "bpr", "num_negatives": 0}, r"loss\.num_negatives is 0"),
        ({"kind": "sampled", "popularity": 2.0}, r"loss\.popularity is 2\.0"),
        ({"kind": "gbce", "calibration": -1.0}, r"loss\.calibration is -1\.0"),
    ],
)
def test_loss_settings_that_do_not_fit_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        LossConfig(**settings)


def test_columns_that_are_missing_are_named() -> None:
    bare = make_batch()._replace(seconds=None, kinds=None, values=None)
    for settings, name in (({"timed": True}, "seconds"), ({"num_kinds": 3}, "kinds"), ({"rated": True}, "values")):
        with pytest.raises(DataError, match=f"the model reads {name} and the events have none"):
            make_model(replace(SMALL, **settings)).states(bare)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="head 'value' foretells values"):
        make_model(replace(SMALL, heads={"value": 1.0}))(bare._replace(next_values=None))
    with pytest.raises(DataError, match="sequences hold 8 events; the model reads 4"):
        make_model(replace(SMALL, max_events=4)).states(bare)


def test_items_shown_before_are_left_out_of_a_distinct_softmax() -> None:
    """Against one position at a time, with everything that came before it at −∞, unless it is asked for again."""
    log = from_sequences([[3, 1, 4, 1, 5], [2, 7], [6]])
    source = BatchSource(log, BatchConfig(tokens=1000, window=2, decay=0.5), 9)
    batch = source.load(source.plan(0, 0)[0])._replace(profiles=torch.ones(3, 2))
    losses = []
    for distinct in (True, False):
        model = make_model(replace(SMALL, loss=LossConfig(distinct=distinct))).eval()
        losses.append(float(model(batch).total.detach()))
    scores = (model.states(batch) @ model.items.all().T + model.items.bias).detach()
    expected = 0.0
    for row, length in enumerate(batch.mask.sum(1).tolist()):
        for place in range(length + 1):
            weights, targets = batch.weights[row, place], batch.targets[row, place]
            asked = set(targets[weights > 0].tolist())
            line = scores[row, place].clone()
            line[[item for item in batch.items[row, :place].tolist() if item not in asked]] = -torch.inf
            if asked:
                expected -= float((weights * line.log_softmax(0)[targets]).sum())
    assert losses[0] == pytest.approx(expected, rel=1e-5)
    assert losses[1] > losses[0] + 0.1


def test_a_loss_that_cannot_leave_items_out_says_so() -> None:
    with pytest.raises(ConfigError, match=r"loss\.distinct is True, which bpr does not read"):
        LossConfig("bpr", distinct=True)
