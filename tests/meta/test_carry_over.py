"""A head's parameters over another number of evidence features: every block where it belongs."""

import torch

from palate.meta.carry_over import carry_over


def test_nothing_changes_where_the_widths_are_equal() -> None:
    trained = {"gates": torch.ones(2, 5), "head.log_precision": torch.arange(6.0), "fixed.spectrum": torch.ones(6)}
    fresh = {name: torch.zeros_like(value) for name, value in trained.items()}
    carried = carry_over(trained, fresh, 6, 2, 2)
    assert torch.equal(carried["gates"], trained["gates"])
    assert torch.equal(carried["head.log_precision"], trained["head.log_precision"])
    assert torch.equal(carried["fixed.spectrum"], fresh["fixed.spectrum"]), "of the catalogue, not of the head"


def test_wider_evidence_keeps_every_block() -> None:
    trained = {
        "head.log_precision": torch.tensor([1.0, 2, 3, 4, 5]),
        "prior.profile": torch.tensor([[1.0, 2, 3, 4, 5], [6, 7, 8, 9, 10]]),
        "learner.square": torch.arange(25.0).reshape(5, 5),
        "learner.noise": torch.tensor(0.5),
    }
    fresh = {
        "head.log_precision": torch.full((7,), -1.0),
        "prior.profile": torch.full((2, 7), -1.0),
        "learner.square": torch.full((7, 7), -1.0),
        "learner.noise": torch.tensor(9.0),
    }
    carried = carry_over(trained, fresh, 5, 2, 4)
    assert carried["head.log_precision"].tolist() == [1, 2, -1, -1, 3, 4, 5]
    assert carried["prior.profile"].tolist() == [[1, 2, -1, -1, 3, 4, 5], [6, 7, -1, -1, 8, 9, 10]]
    assert carried["learner.noise"] == 0.5
    places = [0, 1, 4, 5, 6]
    assert torch.equal(carried["learner.square"][places][:, places], trained["learner.square"])
    assert carried["learner.square"].shape == (7, 7)


def test_narrower_evidence_loses_the_last_directions() -> None:
    trained = {"head.log_precision": torch.tensor([1.0, 2, 3, 4, 5])}
    carried = carry_over(trained, {"head.log_precision": torch.zeros(3)}, 5, 3, 1)
    assert carried["head.log_precision"].tolist() == [1, 4, 5]
