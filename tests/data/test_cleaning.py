"""Each cleaning rule on rows written by hand, and the matching of cancellations against a plain loop."""

import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from palate.data.cleaning import RAW_COLUMNS, Cleaned, CleaningReport, CleaningStep, clean_online_retail
from palate.errors import DataError

START = datetime(2011, 1, 1, 9)


def line(
    invoice: str = "500001",
    code: str = "10001",
    text: str | None = "LAMP",
    quantity: int = 1,
    minute: int = 0,
    price: float = 1.0,
    customer: int | None = 1,
    country: str = "France",
) -> tuple[object, ...]:
    return (invoice, code, text, quantity, START + timedelta(minutes=minute), price, customer, country)


def raw(lines: Sequence[tuple[object, ...]]) -> pl.DataFrame:
    kinds = (pl.String, pl.String, pl.String, pl.Int64, pl.Datetime("us"), pl.Float64, pl.Int64, pl.String)
    return pl.DataFrame(lines, schema=dict(zip(RAW_COLUMNS, kinds, strict=True)), orient="row")


def clean(*lines: tuple[object, ...]) -> Cleaned:
    return clean_online_retail(raw(lines))


def dropped(cleaned: Cleaned) -> dict[str, int]:
    return {step.name: step.rows_dropped for step in cleaned.report.steps if step.rows_dropped}


def changed(cleaned: Cleaned) -> dict[str, int]:
    return {step.name: step.rows_changed for step in cleaned.report.steps if step.rows_changed}


def events(cleaned: Cleaned) -> list[tuple[object, ...]]:
    return cleaned.interactions.select("event_id", "event_type", "weight").rows()


def test_a_purchase_becomes_an_event() -> None:
    cleaned = clean(line(quantity=6, price=2.55, customer=17850))
    assert cleaned.interactions.rows() == [("17850", "10001", "purchase", 6.0, START, "500001-1", "500001")]
    assert cleaned.items.frame.rows() == [("10001", "LAMP", 2.55)]
    assert (cleaned.items.text, cleaned.items.numeric, cleaned.items.categorical) == ("title", ("price",), ())
    assert cleaned.users.frame.rows() == [("17850", "France")]
    assert dropped(cleaned) == changed(cleaned) == {}


@pytest.mark.parametrize(
    "code",
    [
        "POST",
        "DOT",
        "M",
        "m",
        "C2",
        "D",
        "S",
        "B",
        "BANK CHARGES",
        "AMAZONFEE",
        "CRUK",
        "PADS",
        "gift_0001_20",
        "1234",
    ],
)
def test_codes_of_no_product_are_dropped(code: str) -> None:
    cleaned = clean(line(), line(code=code, text="x"))
    assert dropped(cleaned) == {"non_product_codes": 1}
    assert next(s for s in cleaned.report.steps if s.name == "non_product_codes").examples == (
        f"500001: 1 x {code.upper()} x at 1.0",
    )


@pytest.mark.parametrize("code", ["10001", "85123A", "15056BL", "DCGSSBOY", "DCGS0076"])
def test_codes_of_products_are_kept(code: str) -> None:
    assert clean(line(code=code)).interactions["item_id"].to_list() == [code]


def test_missing_customers_and_prices_and_wrong_signs_are_dropped() -> None:
    cleaned = clean(
        line(),
        line(customer=None),
        line(code="10002", price=0.0),
        line(code="10003", price=-5.0),
        line(code="10004", quantity=-3),
        line("C500002", quantity=2, minute=1),
    )
    assert dropped(cleaned) == {"missing_customer": 1, "not_a_sale": 4}
    assert events(cleaned) == [("500001-1", "purchase", 1.0)]


def test_codes_are_capitals_and_texts_have_no_double_blanks() -> None:
    cleaned = clean(line(code=" 10001a", text="  RED   LAMP "), line(code="10001A", minute=1, text="RED LAMP"))
    assert cleaned.items.frame["item_id"].to_list() == ["10001A"]
    assert cleaned.items.titles() == {"10001A": "RED LAMP"}
    assert changed(cleaned) == {"tidy_text": 1}


def test_a_repeated_line_counts_once() -> None:
    same = [line(quantity=2), line(quantity=2)]
    other = [
        line(quantity=3),
        line(quantity=2, price=1.5),
        line("500002", quantity=2),
        line(quantity=2, minute=1),
    ]
    cleaned = clean(*same, *other)
    assert dropped(cleaned) == {"duplicate_lines": 1}
    assert "500001-1" in cleaned.interactions["event_id"]
    assert "500001-2" not in cleaned.interactions["event_id"]


def test_absurd_quantities_are_dropped_with_their_cancellation() -> None:
    cleaned = clean(
        line(quantity=10_000),
        line(code="10002", quantity=74_215),
        line("C500002", "10002", "x", -74_215, minute=1),
    )
    assert dropped(cleaned) == {"outlier_quantities": 2}
    assert events(cleaned) == [("500001-1", "purchase", 10_000.0)]


def test_a_cancellation_is_an_event_of_its_own_time_and_the_purchase_stays() -> None:
    cleaned = clean(line(quantity=5), line("C500002", quantity=-2, minute=60))
    assert events(cleaned) == [("500001-1", "purchase", 5.0), ("C500002-1", "cancel", 2.0)]
    assert cleaned.interactions["timestamp"].to_list() == [START, START + timedelta(hours=1)]
    assert cleaned.interactions["session_id"].to_list() == ["500001", "C500002"]
    assert dropped(cleaned) == changed(cleaned) == {}


def test_a_cancellation_takes_back_no_more_than_is_left() -> None:
    cleaned = clean(
        line(quantity=5),
        line("C500002", quantity=-4, minute=1),
        line("C500003", quantity=-4, minute=2),  # one is left
        line("C500004", quantity=-4, minute=3),  # none is left
        line("500005", quantity=3, minute=4),
        line("C500006", quantity=-2, minute=5),  # what was not matched before is no debt
    )
    assert events(cleaned)[1:] == [
        ("C500002-1", "cancel", 4.0),
        ("C500003-1", "cancel", 1.0),
        ("500005-1", "purchase", 3.0),
        ("C500006-1", "cancel", 2.0),
    ]
    assert dropped(cleaned) == {"unmatched_cancellations": 1}
    assert changed(cleaned) == {"limited_cancellations": 1}


@pytest.mark.parametrize(
    "cancellation",
    [
        line("C500002", quantity=-1, minute=-1),  # before the purchase
        line("C500002", quantity=-1, minute=1, customer=2),
        line("C500002", code="10002", quantity=-1, minute=1),
    ],
)
def test_a_cancellation_matches_the_same_customer_code_and_an_earlier_time(
    cancellation: tuple[object, ...],
) -> None:
    cleaned = clean(line(quantity=5), cancellation)
    assert dropped(cleaned) == {"unmatched_cancellations": 1}
    assert events(cleaned) == [("500001-1", "purchase", 5.0)]


def take_back(steps: list[tuple[int, int, int]]) -> list[float]:
    """Slow reference: stacks of purchases by customer and code; cancellations take from the top."""
    stacks: dict[tuple[int, int], list[int]] = {}
    weights = []
    for customer, code, quantity in steps:
        stack = stacks.setdefault((customer, code), [])
        if quantity > 0:
            stack.append(quantity)
            weights.append(float(quantity))
            continue
        wanted = -quantity
        while wanted and stack:
            taken = min(wanted, stack[-1])
            stack[-1] -= taken
            wanted -= taken
            if not stack[-1]:
                stack.pop()
        if wanted < -quantity:
            weights.append(float(-quantity - wanted))
    return weights


quantities = st.integers(-6, 6).filter(bool)


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(1, 2), st.integers(10001, 10002), quantities), min_size=1, max_size=25))
def test_matching_equals_the_loop(steps: list[tuple[int, int, int]]) -> None:
    lines = [
        line(f"{'C' if quantity < 0 else ''}{500_000 + row}", str(code), "x", quantity, row, 1.0, customer)
        for row, (customer, code, quantity) in enumerate([(9, 19999, 1), *steps])
    ]
    cleaned = clean(*lines)
    assert cleaned.interactions["weight"].to_list() == [1.0, *take_back(steps)]
    assert cleaned.report.rows_in - sum(dropped(cleaned).values()) == cleaned.report.rows_out


def test_title_price_and_country_are_those_of_the_first_purchase() -> None:
    cleaned = clean(
        line(text="BLUE LAMP", minute=2, price=9.0, country="Spain"),
        line(text="BLUE LAMP", minute=3, price=9.0),
        line(text="RED LAMP", minute=1, price=4.0),
        line(text="THROWN AWAY", minute=0, price=0.0),
        line(code="10002", text="nan", minute=4),
    )
    assert cleaned.items.frame.rows() == [("10001", "RED LAMP", 4.0), ("10002", "10002", 1.0)]
    assert cleaned.users.frame.rows() == [("1", "France")]
    assert changed(cleaned)["first_title"] == 3  # two lines say BLUE LAMP, one says nothing


def test_lines_of_one_minute_keep_their_order() -> None:
    codes = ["10009", "10003", "10007", "10001"]
    cleaned = clean(*(line(code=code) for code in codes))
    assert cleaned.interactions["item_id"].to_list() == codes
    assert cleaned.interactions["event_id"].to_list() == [f"500001-{number}" for number in (1, 2, 3, 4)]


def test_unusable_tables_are_refused() -> None:
    with pytest.raises(DataError, match='online-retail: no column "CustomerID"'):
        clean_online_retail(raw([line()]).drop("CustomerID"))
    with pytest.raises(DataError, match="none of the 1 rows is a purchase"):
        clean(line(customer=None))
    with pytest.raises(DataError, match="none of the 0 rows is a purchase"):
        clean_online_retail(raw([]))


def test_a_report_adds_up_and_is_json() -> None:
    report = CleaningReport(10, 7, (CleaningStep("a", "A.", 10, 3, ("x",)), CleaningStep("b", "B.", 7, 0, (), 2)))
    assert json.loads(json.dumps(report.to_dict())) == {
        "rows_in": 10,
        "rows_out": 7,
        "steps": [
            {
                "name": "a",
                "description": "A.",
                "rows_before": 10,
                "rows_dropped": 3,
                "examples": ["x"],
                "rows_changed": 0,
            },
            {
                "name": "b",
                "description": "B.",
                "rows_before": 7,
                "rows_dropped": 0,
                "examples": [],
                "rows_changed": 2,
            },
        ],
    }
    with pytest.raises(DataError, match="its steps leave 7"):
        replace(report, rows_out=8)
    with pytest.raises(DataError, match="step 'b' saw 6 rows; 7 were left"):
        replace(report, steps=(report.steps[0], replace(report.steps[1], rows_before=6)))
