"""Items that came after the fit inherit from those that are like them by content."""

import numpy as np
import pytest

from palate.scorers.kin import NUM_RELATIVES, find_kin, no_kin


def test_the_nearest_by_cosine_are_found() -> None:
    rng = np.random.default_rng(0)
    known, new = rng.normal(size=(40, 6)), rng.normal(size=(5, 6))
    kin = find_kin(known, new)
    cosine = (new @ known.T) / np.linalg.norm(new, axis=1)[:, None] / np.linalg.norm(known, axis=1)
    for row in range(5):
        assert set(kin.items[row].tolist()) == set(np.argsort(-cosine[row])[:NUM_RELATIVES].tolist())
        np.testing.assert_allclose(
            kin.weights[row], np.maximum(cosine[row, kin.items[row]], 0) / NUM_RELATIVES, rtol=1e-5, atol=1e-7
        )


def test_who_is_like_a_known_item_gets_what_that_has() -> None:
    known = np.repeat(np.eye(3), NUM_RELATIVES, 0)  # ten of each sort
    kin = find_kin(known, np.array([[0.0, 2.0, 0.0], [1.0, 0.0, 0.0]]))
    added = np.repeat([[1.0, 5.0, 0.0]], NUM_RELATIVES, 0).T.reshape(1, -1)
    np.testing.assert_allclose(kin.inherit(added), [[5.0, 1.0]], rtol=1e-6)
    np.testing.assert_allclose(kin.inherit(added[0]), [5.0, 1.0], rtol=1e-6)


@pytest.mark.parametrize("known", [np.zeros((0, 4)), np.zeros((20, 4))])
def test_without_known_items_or_content_nothing_is_inherited(known: np.ndarray) -> None:
    kin = find_kin(known, np.ones((3, 4)))
    assert kin.items.shape == (3, NUM_RELATIVES)
    assert not kin.weights.any()
    assert no_kin().joined(kin).items.shape == (3, NUM_RELATIVES)


def test_parts_are_found_as_the_whole_is(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    known, new = rng.normal(size=(15, 4)), rng.normal(size=(7, 4))
    whole = find_kin(known, new)
    monkeypatch.setattr("palate.scorers.kin._TOGETHER", 2)
    for one, other in zip(find_kin(known, new), whole, strict=True):
        np.testing.assert_array_equal(one, other)
