import json
from statistics import NormalDist

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from palate.encoders.attributes import (
    CATEGORICAL_ENCODERS,
    NUMERIC_ENCODERS,
    AttributeConfig,
    AttributeEncoder,
)
from palate.errors import ConfigError, DataError, ModelError

every_numeric = pytest.mark.parametrize("encoder", NUMERIC_ENCODERS)
every_categorical = pytest.mark.parametrize("encoder", CATEGORICAL_ENCODERS)


def fit_numeric(values: list[float | None], encoder: str) -> AttributeEncoder:
    return AttributeEncoder.fit(pl.DataFrame({"x": values}), ["x"], [], AttributeConfig(numeric=encoder))


def fit_categorical(values: list[str | None], encoder: str, **settings: int) -> AttributeEncoder:
    config = AttributeConfig(categorical=encoder, **settings)
    return AttributeEncoder.fit(pl.DataFrame({"c": values}), [], ["c"], config)


def numbers(fitted: AttributeEncoder, values: list[float | None]) -> list[float]:
    frame = pl.DataFrame({"x": values}, schema={"x": pl.Float64})
    return [float(value) for value in fitted.transform(frame)[:, 0]]


def categories(fitted: AttributeEncoder, values: list[str | None]) -> list[list[float]]:
    return fitted.transform(pl.DataFrame({"c": values}, schema={"c": pl.String})).tolist()


# ---------------------------------------------------------------- known answers

KNOWN_NUMERIC = {  # the answer for 0, 1, 2, 3, 10, fitted on the same
    "none": [0, 1, 2, 3, 10],
    "standard": [(x - 3.2) / 12.56**0.5 for x in (0, 1, 2, 3, 10)],  # variance 114/5 - 3.2²
    "min-max": [0, 0.1, 0.2, 0.3, 1],
    "robust": [-1, -0.5, 0, 0.5, 4],  # median 2, quartiles 1 and 3
    "quantile-uniform": [0.1, 0.3, 0.5, 0.7, 0.9],
    "quantile-normal": [NormalDist().inv_cdf(level) for level in (0.1, 0.3, 0.5, 0.7, 0.9)],
}


def test_the_known_answers_cover_the_table() -> None:
    assert set(KNOWN_NUMERIC) | {"log-standard"} == set(NUMERIC_ENCODERS)  # log-standard has its own test below


@pytest.mark.parametrize("encoder", KNOWN_NUMERIC)
def test_numeric_known_answers(encoder: str) -> None:
    values = [0.0, 1.0, 2.0, 3.0, 10.0]
    assert numbers(fit_numeric(values, encoder), values) == pytest.approx(KNOWN_NUMERIC[encoder], abs=1e-6)


def test_log_standard_is_odd_in_the_sign_of_the_number() -> None:
    e = float(np.e)
    fitted = fit_numeric([1 - e, 0.0, e - 1], "log-standard")  # signed logs -1, 0, 1: variance 2/3
    assert numbers(fitted, [1 - e, 0.0, e - 1, e**2 - 1]) == pytest.approx(
        [-(1.5**0.5), 0, 1.5**0.5, 2 * 1.5**0.5], abs=1e-6
    )


def test_quantile_ties_share_a_level_and_the_ends_are_flat() -> None:
    fitted = fit_numeric([1.0, 1.0, 1.0, 5.0], "quantile-uniform")  # mid-ranks 1.5/4 and 3.5/4
    assert numbers(fitted, [-9.0, 1.0, 3.0, 5.0, 99.0]) == pytest.approx([0.375, 0.375, 0.625, 0.875, 0.875])


def test_quantile_of_many_values_keeps_few_knots_and_stays_close_to_the_full_ranks() -> None:
    values = np.random.default_rng(0).lognormal(size=5000)
    fitted = fit_numeric(values.tolist(), "quantile-uniform")
    assert len(fitted.columns[0].state["scaling"]["values"]) == 1000
    exact = (values.argsort().argsort() + 0.5) / 5000
    np.testing.assert_allclose(numbers(fitted, values.tolist()), exact, atol=1e-3)


def test_robust_falls_back_to_the_standard_deviation_when_the_quartiles_meet() -> None:
    fitted = fit_numeric([0.0] * 9 + [10.0], "robust")  # mean 1, variance 9
    assert numbers(fitted, [0.0, 10.0]) == pytest.approx([0, 10 / 3])


def test_rounding_noise_is_not_stretched_into_a_signal() -> None:
    noisy = [0.1 + 0.2, 0.3, 0.3]  # one number, but for the last bit
    for encoder in ("standard", "min-max", "robust", "log-standard"):
        assert numbers(fit_numeric(noisy, encoder), noisy) == pytest.approx([0, 0, 0], abs=1e-12)


def test_one_hot_known_answer() -> None:
    fitted = fit_categorical(["b", "a", "b", "rare", "a", None], "one-hot", min_count=2)
    assert fitted.feature_names == ("c=a", "c=b", "c:other")
    assert categories(fitted, ["a", "b", "rare", "new", None]) == [
        [1, 0, 0],
        [0, 1, 0],
        [0, 0, 1],
        [0, 0, 1],
        [0, 0, 1],
    ]


def test_a_category_called_other_is_not_the_other_feature() -> None:
    fitted = fit_categorical(["other", "a"], "one-hot")
    assert len(set(fitted.feature_names)) == 3
    assert categories(fitted, ["other", "new"]) == [[0, 1, 0], [0, 0, 1]]


def test_frequency_known_answer() -> None:
    fitted = fit_categorical(["a", "a", "b", None], "frequency")
    assert fitted.feature_names == ("c:frequency",)
    assert categories(fitted, ["a", "b", "new", None]) == [[0.5], [0.25], [0], [0]]


def test_ordinal_known_answer() -> None:
    fitted = fit_categorical(["b", "a", "b", "a", "rare"], "ordinal", min_count=2)
    assert categories(fitted, ["a", "b", "rare", "new", None]) == [[1], [2], [0], [0], [0]]


def test_hashing_gives_one_bucket_to_any_value_and_none_to_a_missing_one() -> None:
    fitted = fit_categorical(["a"], "hashing", num_buckets=8)
    rows = np.array(categories(fitted, ["a", "new", "a", None]))
    assert rows.shape == (4, 8)
    assert rows.sum(axis=1).tolist() == [1, 1, 1, 0]
    assert rows[0].tolist() == rows[2].tolist()


def test_hashing_spreads_values_evenly() -> None:
    fitted = fit_categorical(["a"], "hashing", num_buckets=16)
    counts = np.array(categories(fitted, [f"value {index}" for index in range(4000)])).sum(axis=0)
    assert ((counts - 250) ** 2 / 250).sum() < 44  # chi-square, 15 degrees of freedom, p = 0.0001


def test_hashing_never_changes() -> None:
    # The number is little-endian, so this is the first byte of `printf %s VALUE | b2sum -l 64`, modulo 32.
    rows = categories(fit_categorical(["a"], "hashing"), ["a", "b", "tea", "Größe"])
    assert [row.index(1) for row in rows] == [0x40 % 32, 0x84 % 32, 0xBA % 32, 0x18 % 32]


# ---------------------------------------------------------------- contract of every entry

values_32 = st.floats(min_value=-1e6, max_value=1e6, allow_nan=False, width=32)
number_lists = st.lists(st.none() | values_32, min_size=1, max_size=30).filter(
    lambda row: any(x is not None for x in row)
)
category_lists = st.lists(st.none() | st.sampled_from(["a", "b", "", "Ω", "a b", "other"]), min_size=1, max_size=30)


@every_numeric
@settings(max_examples=40)
@given(train=number_lists, extra=st.lists(st.none() | values_32, max_size=5), seed=st.integers(0, 99))
def test_every_numeric_entry(encoder: str, train: list[float | None], extra: list[float | None], seed: int) -> None:
    fitted = fit_numeric(train, encoder)
    rows = fitted.transform(pl.DataFrame({"x": train}, schema={"x": pl.Float64}))
    assert rows.shape == (len(train), fitted.dim)
    assert rows.dtype == np.float32
    assert np.isfinite(rows).all()
    assert fitted.dim == 1 + (None in train)
    if None in train:
        assert rows[:, 1].tolist() == [float(value is None) for value in train]

    # Fitted on the same rows in another order: the same state, to the last bit.
    shuffled = [train[index] for index in np.random.default_rng(seed).permutation(len(train))]
    assert fit_numeric(shuffled, encoder).to_dict() == fitted.to_dict()

    # Through JSON and back, on rows that were not in training; a monotone entry keeps their order.
    again = AttributeEncoder.from_dict(json.loads(json.dumps(fitted.to_dict(), allow_nan=False)))
    assert again == fitted
    if extra:
        seen = [value for value in train if value is not None]
        fresh = [min(max(value, min(seen)), max(seen)) for value in extra if value is not None]
        assert np.isfinite(numbers(fitted, fresh)).all()
        assert numbers(again, fresh) == numbers(fitted, fresh)
        ordered = numbers(fitted, sorted(fresh))
        assert ordered == sorted(ordered)


@every_numeric
def test_every_numeric_entry_reads_a_missing_number_as_the_training_mean(encoder: str) -> None:
    fitted = fit_numeric([1.0, None, 2.0, 6.0], encoder)
    missing, mean = fitted.transform(pl.DataFrame({"x": [None, 3.0]}))
    assert missing.tolist() == [mean[0], 1.0]
    assert mean[1] == 0.0
    assert fitted.feature_names == ("x", "x:missing")


@every_numeric
def test_every_numeric_entry_takes_a_constant_column(encoder: str) -> None:
    fitted = fit_numeric([7.5, 7.5, 7.5], encoder)
    assert np.isfinite(numbers(fitted, [7.5, -3.0, 1e6, None])).all()
    assert fitted.dim == 1


@every_numeric
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 1e39])
def test_every_numeric_entry_refuses_what_is_not_a_finite_number(encoder: str, bad: float) -> None:
    with pytest.raises(DataError, match=r"'x', row 2 \(from 0\)"):
        fit_numeric([1.0, None, bad], encoder)
    with pytest.raises(DataError, match=r"'x', row 1 \(from 0\)"):
        fit_numeric([1.0, 2.0], encoder).transform(pl.DataFrame({"x": [0.0, bad]}))


@every_categorical
@settings(max_examples=40)
@given(train=category_lists, seed=st.integers(0, 99), min_count=st.integers(1, 3))
def test_every_categorical_entry(encoder: str, train: list[str | None], seed: int, min_count: int) -> None:
    fitted = fit_categorical(train, encoder, min_count=min_count)
    rows = np.array(categories(fitted, train))
    assert rows.shape == (len(train), fitted.dim)
    assert np.isfinite(rows).all()
    shuffled = [train[index] for index in np.random.default_rng(seed).permutation(len(train))]
    assert fit_categorical(shuffled, encoder, min_count=min_count).to_dict() == fitted.to_dict()
    again = AttributeEncoder.from_dict(json.loads(json.dumps(fitted.to_dict())))
    assert again == fitted
    fresh = ["unseen", None, *train]
    assert categories(again, fresh) == categories(fitted, fresh)
    assert np.isfinite(categories(fitted, fresh)).all()
    assert categories(fitted, fresh)[2:] == rows.tolist()  # a row does not depend on the rows beside it


@every_categorical
def test_every_categorical_entry_names_each_feature_once(encoder: str) -> None:
    fitted = fit_categorical(["a", "b", None], encoder)
    assert len(set(fitted.feature_names)) == fitted.dim
    assert fitted.transform(pl.DataFrame({"c": ["a"]})).shape == (1, fitted.dim)
    assert fitted.transform(pl.DataFrame({"c": []}, schema={"c": pl.String})).shape == (0, fitted.dim)


@every_categorical
def test_every_categorical_entry_takes_a_column_of_nulls(encoder: str) -> None:
    fitted = fit_categorical([None, None], encoder)
    assert np.isfinite(categories(fitted, [None, "new"])).all()


# ---------------------------------------------------------------- the whole encoder

FRAME = pl.DataFrame(
    {
        "price": [1, 3],
        "weight": [0.5, 1.5],
        "colour": ["red", "blue"],
        "size": [10, 20],
        "sale": [True, False],
    }
)


def test_columns_types_overrides_and_names_together() -> None:
    config = AttributeConfig(overrides={"weight": "min-max", "size": "ordinal"})
    fitted = AttributeEncoder.fit(FRAME, ["price", "weight", "sale"], ["colour", "size"], config)
    assert fitted.feature_names == (
        "price",
        "weight",
        "sale",
        "colour=blue",
        "colour=red",
        "colour:other",
        "size:index",
    )
    assert fitted.dim == 7
    assert fitted.transform(FRAME).tolist() == [[-1, 0, 1, 0, 1, 0, 1], [1, 1, -1, 1, 0, 0, 2]]
    assert fitted.transform(FRAME.clear()).shape == (0, 7)
    as_categorical = FRAME.with_columns(pl.col("colour").cast(pl.Categorical))
    np.testing.assert_array_equal(fitted.transform(as_categorical), fitted.transform(FRAME))


def test_only_the_training_rows_are_learned_from() -> None:
    fitted = AttributeEncoder.fit(FRAME, ["price"], ["colour"], AttributeConfig())
    before = json.dumps(fitted.to_dict())
    fitted.transform(pl.DataFrame({"price": [99, None], "colour": ["green", None]}))
    assert json.dumps(fitted.to_dict()) == before


def test_no_columns_give_rows_without_features() -> None:
    assert AttributeEncoder.fit(FRAME, [], [], AttributeConfig()).transform(FRAME).shape == (2, 0)


@pytest.mark.parametrize(
    ("numeric", "categorical", "config", "error", "message"),
    [
        (["colour"], [], AttributeConfig(), DataError, "'colour' is String, not numeric"),
        ([], ["weight"], AttributeConfig(), DataError, "'weight' is Float64"),
        (["cost"], [], AttributeConfig(), DataError, "'cost' is not in the frame.*price"),
        (["price"], ["price"], AttributeConfig(), ConfigError, "'price' is named twice"),
        (["price"], [], AttributeConfig(overrides={"cost": "none"}), ConfigError, "'cost'"),
        (
            ["price"],
            [],
            AttributeConfig(overrides={"price": "one-hot"}),
            ConfigError,
            "'price'.*quantile-normal",
        ),
        ([], ["colour"], AttributeConfig(overrides={"colour": "none"}), ConfigError, "'colour'.*hashing"),
    ],
)
def test_bad_input_is_named(
    numeric: list[str], categorical: list[str], config: AttributeConfig, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message) as caught:
        AttributeEncoder.fit(FRAME, numeric, categorical, config)
    assert "\n" not in str(caught.value)


def test_no_training_rows_or_no_values_are_refused() -> None:
    with pytest.raises(DataError, match="no rows"):
        AttributeEncoder.fit(FRAME.clear(), ["price"], [], AttributeConfig())
    with pytest.raises(DataError, match="'x' has no value"):
        AttributeEncoder.fit(pl.DataFrame({"x": [None, None]}), ["x"], [], AttributeConfig())


def test_a_number_too_far_outside_the_training_range_is_refused_not_turned_into_infinity() -> None:
    fitted = fit_numeric([0.0, 1e-20], "min-max")
    with pytest.raises(DataError, match=r"'x', row 1 \(from 0\): 1e\+30 is too far"):
        fitted.transform(pl.DataFrame({"x": [0.0, 1e30]}))


@pytest.mark.parametrize("setting", ["numeric", "categorical"])
def test_an_unknown_encoder_is_refused_with_the_known_ones(setting: str) -> None:
    with pytest.raises(ConfigError, match=f"{setting} encoder 'nope' is unknown; choose one of "):
        AttributeConfig(**{setting: "nope"})


@pytest.mark.parametrize("setting", ["min_count", "num_buckets"])
def test_counts_must_be_positive(setting: str) -> None:
    with pytest.raises(ConfigError, match=f"{setting} is 0"):
        AttributeConfig(**{setting: 0})


@pytest.mark.parametrize(
    "damage",
    [
        lambda saved: saved.pop("columns"),
        lambda saved: saved["columns"][0].pop("name"),
        lambda saved: saved["columns"][0].update(encoder="gone"),
        lambda saved: saved["columns"][0]["state"].pop("mean"),
        lambda saved: saved["columns"][0]["state"]["scaling"].update(scale="wide"),
        lambda saved: saved["columns"][0]["state"]["scaling"].update(scale=0.0),
        lambda saved: saved["columns"][1]["state"].pop("categories"),
    ],
)
def test_a_damaged_saved_encoder_is_refused(damage: object) -> None:
    saved = json.loads(json.dumps(AttributeEncoder.fit(FRAME, ["price"], ["colour"], AttributeConfig()).to_dict()))
    assert callable(damage)
    damage(saved)
    with pytest.raises(ModelError, match="saved attribute encoder is damaged"):
        AttributeEncoder.from_dict(saved)


@every_numeric
def test_a_column_of_the_smallest_numbers_comes_back(encoder: str) -> None:
    fitted = fit_numeric([0.0, 1.401298464324817e-45], encoder)
    assert AttributeEncoder.from_dict(fitted.to_dict()) == fitted
