"""Pre-training solves a world of two tastes, gives the same bytes from the same seed, and survives being killed.

Run as a script, this file trains on that world and dies while it writes its third checkpoint (see the last tests).
"""

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from palate.backbone import pretraining
from palate.backbone.losses import sampled_softmax_loss
from palate.backbone.pretraining import PretrainingConfig, PretrainingResult, pretrain
from palate.backbone.transformer import Backbone, BackboneConfig
from palate.data.episodes import EMPTY_HISTORY, History, pack
from palate.errors import ConfigError, DataError, ModelError, NumericalError

NUM_ITEMS, PER_TASTE, MAX_EVENTS = 20, 10, 5
CONFIG = PretrainingConfig(
    num_epochs=4,
    batch_size=16,
    learning_rate=0.02,
    warmup_steps=2,
    decay=0.6,
    num_negatives=32,
    positions_per_user=4,
    crop=0.5,
)
BOTH_LOSSES = pytest.mark.parametrize("config", [CONFIG, replace(CONFIG, loss="sampled")], ids=["full", "sampled"])


def history(items: list[int]) -> History:
    return History(np.array(items, np.int64), 1.7e9 + 3600.0 * np.arange(len(items)), np.zeros(0, np.int64))


def two_tastes(num_people: int = 48) -> tuple[list[History], Tensor]:
    """Items 0..9 for the even people, 10..19 for the odd; half of them say so in their profile."""
    rng = np.random.default_rng(5)
    people, profiles = [], torch.zeros(num_people, 2)
    for row in range(num_people):
        people.append(history((rng.permutation(PER_TASTE)[: 4 + row % 5] + PER_TASTE * (row % 2)).tolist()))
        if row % 4 < 2:
            profiles[row, row % 2] = 1.0
    return people, profiles


def make_backbone(seed: int = 0, dim: int = 8) -> Backbone:
    """Dropout is on, so that every step draws from the random state."""
    torch.manual_seed(seed)
    config = BackboneConfig(dim=dim, num_layers=1, max_events=MAX_EVENTS, dropout=0.1, id_dropout=0.1)
    return Backbone(config, torch.linspace(-1, 1, 3 * NUM_ITEMS).sin().view(NUM_ITEMS, 3), 2)


def run(
    backbone: Backbone, config: PretrainingConfig, checkpoint: Path | None = None, seed: int = 3
) -> PretrainingResult:
    people, profiles = two_tastes()
    return pretrain(backbone, people, profiles, config, seed=seed, checkpoint=checkpoint)


def scores(backbone: Backbone, people: list[History], profiles: Tensor) -> Tensor:
    """After the last event, items seen before at −∞."""
    with torch.no_grad():
        vectors, sequences = backbone.items(), pack(people)
        states = backbone(vectors, sequences, profiles)[torch.arange(len(people)), sequences.mask.sum(1)]
        values = states @ vectors.T + backbone.items.bias
    for row, person in enumerate(people):
        values[row, person.items] = -torch.inf
    return values


def assert_same_weights(one: Backbone, other: Backbone) -> None:
    theirs = other.state_dict()
    for name, value in one.state_dict().items():
        assert torch.equal(value, theirs[name]), name


@BOTH_LOSSES
class TestLearning:
    def test_it_finds_the_taste_of_people_it_has_never_seen(self, config: PretrainingConfig) -> None:
        backbone = make_backbone()
        result = run(backbone, replace(config, num_epochs=12))
        assert len(result.losses) == 12
        assert result.losses[-1] < result.losses[0] - 0.3
        assert not backbone.training
        newcomers = [
            history([first, (first + 3) % PER_TASTE + PER_TASTE * (first // PER_TASTE)]) for first in range(20)
        ]
        best = scores(backbone, newcomers, torch.zeros(20, 2)).topk(5).indices
        assert (best // PER_TASTE == torch.arange(20)[:, None] // PER_TASTE).float().mean() > 0.95

    def test_a_profile_alone_gives_the_taste(self, config: PretrainingConfig) -> None:
        backbone = make_backbone()
        run(backbone, replace(config, num_epochs=12))
        best = scores(backbone, [EMPTY_HISTORY] * 2, torch.eye(2)).topk(5).indices
        assert (best // PER_TASTE == torch.tensor([[0], [1]])).all()

    def test_same_seed_same_bytes(self, config: PretrainingConfig) -> None:
        one, other, third = make_backbone(), make_backbone(), make_backbone()
        assert run(one, config).losses == run(other, config).losses
        assert_same_weights(one, other)
        run(third, config, seed=4)
        assert not torch.equal(third.out.weight, one.out.weight)

    def test_interrupted_after_any_epoch_it_goes_on_to_the_same_bytes(
        self, config: PretrainingConfig, tmp_path: Path
    ) -> None:
        people, profiles = two_tastes()
        through = make_backbone()
        expected = pretrain(through, people, profiles, config, seed=3)
        for last in (1, 3):
            path = tmp_path / f"{last}.safetensors"
            reported: list[tuple[int, int, float]] = []

            def stop(epoch: int, of: int, loss: float, last: int = last) -> None:
                if epoch == last:
                    raise KeyboardInterrupt

            def note(epoch: int, of: int, loss: float, reported: list[tuple[int, int, float]] = reported) -> None:
                reported.append((epoch, of, loss))

            with pytest.raises(KeyboardInterrupt):
                pretrain(make_backbone(), people, profiles, config, seed=3, checkpoint=path, on_epoch=stop)
            # The one that goes on starts from other weights: all that counts is in the file.
            resumed = make_backbone(seed=99)
            torch.manual_seed(1234)
            result = pretrain(resumed, people, profiles, config, seed=3, checkpoint=path, on_epoch=note)
            assert result == expected
            assert_same_weights(resumed, through)
            assert reported == [(epoch, 4, expected.losses[epoch - 1]) for epoch in range(last + 1, 5)]


def test_a_finished_run_is_read_not_repeated(tmp_path: Path) -> None:
    path, finished, again = tmp_path / "run.safetensors", make_backbone(), make_backbone(seed=99)
    result = run(finished, CONFIG, path)
    assert run(again, CONFIG, path) == result
    assert_same_weights(again, finished)
    assert not again.training


def test_a_checkpoint_changes_nothing_in_the_run_that_writes_it(tmp_path: Path) -> None:
    one, other = make_backbone(), make_backbone()
    assert run(one, CONFIG) == run(other, CONFIG, tmp_path / "run.safetensors")
    assert_same_weights(one, other)


def test_before_any_event_all_that_follows_counts_and_later_the_next_item() -> None:
    # Everyone buys 0, 1, 2, 3 in this order; items 4.. are bought by nobody.
    config = replace(CONFIG, decay=0.0, num_epochs=30)
    backbone = make_backbone()
    pretrain(backbone, [history([0, 1, 2, 3])] * 16, torch.zeros(16, 2), config, seed=0)
    start, after_first = scores(backbone, [EMPTY_HISTORY, history([0])], torch.zeros(2, 2)).softmax(1)
    torch.testing.assert_close(start[:4], torch.full((4,), 0.25), atol=0.08, rtol=0)
    assert after_first[1] > 0.9


def test_people_with_one_item_are_left_out_and_rows_of_profiles_stay_theirs() -> None:
    people, profiles = two_tastes(16)
    mixed = [one for person in people for one in (history([0]), person)]
    mixed_profiles = torch.full((32, 2), torch.nan)
    mixed_profiles[1::2] = profiles
    one, other = make_backbone(), make_backbone()
    result = pretrain(one, mixed, mixed_profiles, CONFIG, seed=0)
    assert result == pretrain(other, people, profiles, CONFIG, seed=0)
    assert_same_weights(one, other)


def test_biases_start_at_the_log_of_popularity() -> None:
    backbone = make_backbone()
    people = [history([0, 1]), history([0, 2]), history([0, 1])]
    pretrain(backbone, people, torch.zeros(3, 2), replace(CONFIG, num_epochs=1, learning_rate=1e-9), seed=0)
    expected = torch.tensor([4 / 3, 3 / 3, 2 / 3, 1 / 3]).log()
    torch.testing.assert_close(backbone.items.bias.detach()[:4], expected, atol=1e-5, rtol=0)


def test_every_epoch_draws_anew() -> None:
    # Without dropout and without learning, what differs between epochs is which positions are asked for.
    people, profiles = two_tastes()
    backbone = Backbone(
        BackboneConfig(dim=8, max_events=MAX_EVENTS, dropout=0.0, id_dropout=0.0), torch.eye(NUM_ITEMS), 2
    )
    config = replace(CONFIG, learning_rate=1e-12, positions_per_user=1)
    losses = pretrain(backbone, people, profiles, config, seed=0).losses
    assert len({round(loss, 4) for loss in losses}) == config.num_epochs


def test_negatives_are_drawn_by_the_root_of_popularity(monkeypatch: pytest.MonkeyPatch) -> None:
    rates, drawn = [], []

    def spy(*given: Tensor) -> Tensor:
        drawn.append(given[-2])
        rates.append(given[-1])
        return sampled_softmax_loss(*given)

    monkeypatch.setattr(pretraining, "sampled_softmax_loss", spy)
    people = [history([0, 1])] * 4 + [history([0, 2])] * 5  # chosen by 9, 4 and 5 people, the others by none
    config = replace(CONFIG, loss="sampled", num_negatives=3000, num_epochs=1)
    pretrain(make_backbone(), people, torch.zeros(9, 2), config, seed=0)
    share = torch.tensor([3.0, 2.0, 5**0.5])
    expected = share / share.sum() * 3000
    torch.testing.assert_close(rates[0][:3].exp(), expected)
    counts = torch.bincount(drawn[0], minlength=NUM_ITEMS)
    torch.testing.assert_close(counts[:3].float(), expected, rtol=0.1, atol=0)
    assert counts[3:].sum() == 0


class TestErrors:
    def test_nobody_with_two_items(self) -> None:
        with pytest.raises(DataError, match="no person has two distinct items"):
            pretrain(make_backbone(), [history([1]), EMPTY_HISTORY], torch.zeros(2, 2), CONFIG, seed=0)

    @BOTH_LOSSES
    def test_a_loss_that_explodes_names_epoch_and_step_and_spares_the_checkpoint(
        self, config: PretrainingConfig, tmp_path: Path
    ) -> None:
        path = tmp_path / "run.safetensors"
        begun = run(make_backbone(), replace(config, num_epochs=2), path)
        before = path.read_bytes()
        with pytest.raises(NumericalError, match=r"pre-training: .* at epoch 3, step 2; lower"):
            run(make_backbone(), replace(config, learning_rate=1e30), path)
        assert path.read_bytes() == before
        assert run(make_backbone(), config, path).losses[:2] == begun.losses

    @pytest.mark.parametrize(("content", "what"), [(torch.nan, "the loss"), (1e20, "the norm of the gradient")])
    def test_unusable_content_stops_the_first_step_and_leaves_no_checkpoint(
        self, content: float, what: str, tmp_path: Path
    ) -> None:
        backbone = make_backbone()
        backbone.items.content[4, 1] = content
        with pytest.raises(NumericalError, match=f"{what} became .* at epoch 1, step 1"):
            run(backbone, CONFIG, tmp_path / "run.safetensors")
        assert not any(tmp_path.iterdir())

    @pytest.mark.parametrize("damage", ["truncated", "garbage", "empty", "folder"])
    def test_a_damaged_checkpoint_is_named(self, damage: str, tmp_path: Path) -> None:
        path = tmp_path / "run.safetensors"
        run(make_backbone(), replace(CONFIG, num_epochs=1), path)
        whole = path.read_bytes()
        if damage == "folder":
            path.unlink()
            path.mkdir()
        else:
            path.write_bytes({"truncated": whole[: len(whole) // 2], "garbage": b"\xff" * 999, "empty": b""}[damage])
        with pytest.raises(ModelError, match=r"run\.safetensors: not a checkpoint .*delete it") as raised:
            run(make_backbone(), CONFIG, path)
        assert "\n" not in str(raised.value)

    def test_a_checkpoint_of_another_model_is_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "run.safetensors"
        run(make_backbone(dim=4), replace(CONFIG, num_epochs=1), path)
        with pytest.raises(ModelError, match=r"run\.safetensors: not a checkpoint of this model") as raised:
            run(make_backbone(dim=8), CONFIG, path)
        assert "\n" not in str(raised.value)

    @pytest.mark.parametrize(
        ("changes", "named"),
        [
            ({"num_epochs": 0}, "num_epochs is 0"),
            ({"learning_rate": 0.0}, "learning_rate is 0"),
            ({"decay": 1.5}, "decay"),
        ],
    )
    def test_a_bad_setting_is_named(self, changes: dict[str, float], named: str) -> None:
        with pytest.raises(ConfigError, match=f"pretraining.{named}"):
            replace(CONFIG, **changes)


def test_killed_while_writing_a_checkpoint_it_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    path = tmp_path / "run.safetensors"
    child = subprocess.run([sys.executable, __file__, str(path)], capture_output=True, text=True, timeout=120)
    assert child.returncode == -signal.SIGKILL, child.stderr
    assert child.stdout.splitlines() == ["1 of 4", "2 of 4"]
    assert len(list(tmp_path.iterdir())) == 2  # the whole second checkpoint, and the third that was cut off
    resumed, through = make_backbone(seed=99), make_backbone()
    assert run(resumed, CONFIG, path) == run(through, CONFIG)
    assert_same_weights(resumed, through)


def die_at_the_third_checkpoint(path: Path) -> None:
    synchronise, calls = os.fsync, [0]

    def fsync(descriptor: int) -> None:
        calls[0] += 1
        if calls[0] == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        synchronise(descriptor)

    os.fsync = fsync
    torch.set_num_threads(1)
    people, profiles = two_tastes()
    pretrain(
        make_backbone(),
        people,
        profiles,
        CONFIG,
        seed=3,
        checkpoint=path,
        on_epoch=lambda epoch, of, loss: print(f"{epoch} of {of}", flush=True),
    )


if __name__ == "__main__":
    die_at_the_third_checkpoint(Path(sys.argv[1]))
