import numpy as np
import polars as pl
import pytest

from palate.errors import ConfigError, DataError
from palate.evaluation.protocols.content import ContentSpec, Kernel, item_kernels

ITEMS = pl.DataFrame(
    {
        "label": ["a; b", "b", "a;b;c", None, "n/a"],
        "maker": ["Ada, Lovelace", "Ada, Lovelace", "Bob", "", None],
        "made": [1990, 1998, None, 2006, 1990],
        "size": [1.0, 2.0, 3.0, None, 9.0],
        "about": ["red", "blue", None, "red", "green"],
        "name": ["one", "two", "three", "one", "five"],
    }
)
SPEC = ContentSpec(
    {"label": ";", "maker": ""}, groups="label", time="made", texts=("name", "about"), numbers=("size",),
    time_range=(1992.0, 2000.0),
)  # fmt: skip


def encode(texts: list[str]) -> np.ndarray:
    """One letter count a column."""
    return np.array([[text.count(letter) for letter in "abcdefghijklmnopqrstuvwxyz"] for text in texts], dtype=float)


@pytest.fixture(scope="module")
def content() -> dict[str, Kernel]:
    return item_kernels(ITEMS, SPEC, encode)


def test_every_kernel_is_a_covariance_with_a_mean_of_one(content: dict[str, Kernel]) -> None:
    assert tuple(content) == (
        "label", "maker", "made", "numbers", "text", "text-near", "text-sharp",
        "label × made", "text-near × label", "text-near × made",
    )  # fmt: skip
    for values in content.values():
        np.testing.assert_allclose(values, values.T, atol=1e-6)
        assert np.linalg.eigvalsh(values).min() > -1e-5
        assert values.diagonal().mean() == pytest.approx(1, abs=1e-5)


def test_categories_overlap_as_a_share(content: dict[str, Kernel]) -> None:
    sets = [{"a", "b"}, {"b"}, {"a", "b", "c"}, set(), set()]
    expected = np.array([[len(x & y) / max(np.sqrt(len(x) * len(y)), 1) for y in sets] for x in sets])
    np.testing.assert_allclose(content["label"], expected / expected.diagonal().mean(), atol=1e-6)
    maker = content["maker"]  # without a separator a comma is a part of the name
    assert maker[0, 1] == maker[0, 0] > 0
    assert maker[0, 2] == maker[3, 4] == maker[3, 3] == 0


def test_time_numbers_and_texts(content: dict[str, Kernel]) -> None:
    made = np.array([1990, 1998, 1996, 2006, 1990])  # the missing one is the mean
    expected = np.exp(-0.5 * ((made[:, None] - made) / 8) ** 2)
    np.testing.assert_allclose(content["made"], expected, atol=1e-6)
    size = np.array([1, 2, 3, 3.75, 9])
    size = (size - size.mean()) / size.std()
    expected = np.exp(-0.5 * (size[:, None] - size) ** 2 / (1.5**2 / 2))
    np.testing.assert_allclose(content["numbers"], expected, atol=1e-6)
    vectors = encode(["one. red", "two. blue", "three. ", "one. red", "five. green"])
    centred = vectors - vectors.mean(0)
    cosine = centred @ centred.T / np.outer(np.linalg.norm(centred, axis=1), np.linalg.norm(centred, axis=1))
    np.testing.assert_allclose(content["text"], cosine, atol=1e-6)
    np.testing.assert_allclose(content["text-near"], np.exp((cosine - 1) / 0.3), atol=1e-6)
    assert content["text-sharp"][0, 3] == pytest.approx(1)
    both = content["text-near"] * content["made"]
    np.testing.assert_allclose(content["text-near × made"], both, atol=1e-6)


def test_the_order_of_the_rows_is_free(content: dict[str, Kernel]) -> None:
    order = [3, 1, 4, 0, 2]
    turned = item_kernels(ITEMS[order], SPEC, encode)
    for name, values in content.items():
        np.testing.assert_allclose(turned[name], values[order][:, order], atol=1e-9)


def test_what_cannot_be_read_is_named() -> None:
    for columns, match in (
        ({"categories": {"genre": "|"}}, "column 'genre' is not in the items' frame"),
        ({"time": "name"}, "'name' is String, not numeric"),
        ({"categories": {"none": ","}}, "'none' has no value in any row"),
        ({"numbers": ("gap",)}, "'gap' is infinite in a row or has no value"),
    ):
        frame = ITEMS.with_columns(none=pl.lit(" , N/A"), gap=pl.lit(None, dtype=pl.Float64))
        with pytest.raises(DataError, match=match):
            item_kernels(frame, ContentSpec(**columns))
    with pytest.raises(DataError, match="has no rows"):
        item_kernels(ITEMS[:0], SPEC, encode)
    with pytest.raises(DataError, match=r"gave \(2, 26\) for 5 texts"):
        item_kernels(ITEMS, SPEC, lambda texts: encode(texts[:2]))
    with pytest.raises(ConfigError, match="needs `encode`"):
        item_kernels(ITEMS, SPEC)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({}, "names no column"),
        ({"time": "text"}, "content column 'text' has the name of a kernel; rename the column"),
        ({"categories": {"a": ","}, "groups": "b"}, r"content\.groups is 'b'; expected one of a"),
        ({"time": "t", "time_scale": 0.0}, r"content\.time_scale is 0\.0; expected above 0"),
        ({"time": "t", "time_range": (2.0, 1.0)}, r"content\.time_range is \(2\.0, 1\.0\)"),
    ],
)
def test_a_bad_setting_is_named(settings: dict[str, object], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        ContentSpec(**settings)  # type: ignore[arg-type]
