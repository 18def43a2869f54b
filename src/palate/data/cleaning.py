"""Cleaning a raw shop log into honest events, with a report of every row that was left out and why.

The raw table is "Online Retail" (Chen, 2015, doi 10.24432/C5BW33): invoice lines of a UK gift shop, with
cancellations, postage, corrections and typing errors in between. Two principles hold throughout:

* A row is judged by itself and by earlier rows only. Cleaning the log up to any moment gives the same events,
  titles and prices as cleaning all of it and then cutting there, so no later knowledge leaks into training.
* A purchase that is cancelled later did happen: it stays, and the cancellation is an event of its own time.
"""

from dataclasses import asdict, dataclass
from typing import NamedTuple

import polars as pl

from palate.data.catalog import Catalog, Profiles
from palate.data.log import require_columns, validate_interactions
from palate.errors import DataError

RAW_COLUMNS = (
    "InvoiceNo",
    "StockCode",
    "Description",
    "Quantity",
    "InvoiceDate",
    "UnitPrice",
    "CustomerID",
    "Country",
)

# Five digits with at most letters behind them, or the shop's own DCGS range. What falls out is not chosen for
# taste: POST, DOT, C2 (carriage), M (manual), D (discount), S (samples), B (bad debt), BANK CHARGES,
# AMAZONFEE, CRUK (a charity's commission), gift_0001_* (vouchers) and PADS (a free addition to cushions, at
# 0.001 pounds).
_PRODUCT = r"^(?:\d{5}[A-Z]*|DCGS[A-Z0-9]+)$"

# The largest undisputed order is 4,800 pieces; above this stand only typing errors that were cancelled
# minutes later (74,215 and 80,995). A fixed bound, because a quantile of the log would know the log's future.
MAX_QUANTITY = 10_000

_NUM_EXAMPLES = 3


@dataclass(frozen=True)
class CleaningStep:
    """One rule and what it did.

    Attributes:
        name: short name of the rule.
        description: the rule in a sentence.
        rows_before: rows that the rule saw.
        rows_dropped: rows that it left out.
        examples: a few of the rows that it left out or changed.
        rows_changed: rows that it kept but altered.
    """

    name: str
    description: str
    rows_before: int
    rows_dropped: int
    examples: tuple[str, ...]
    rows_changed: int = 0


@dataclass(frozen=True)
class CleaningReport:
    """The rules in their order; `rows_in` less everything dropped is `rows_out`.

    Raises:
        DataError: the numbers do not add up.
    """

    rows_in: int
    rows_out: int
    steps: tuple[CleaningStep, ...]

    def __post_init__(self) -> None:
        rows = self.rows_in
        for step in self.steps:
            if step.rows_before != rows:
                raise DataError(f"cleaning step {step.name!r} saw {step.rows_before:,} rows; {rows:,} were left to it")
            rows -= step.rows_dropped
        if rows != self.rows_out:
            raise DataError(f"cleaning reports {self.rows_out:,} rows; its steps leave {rows:,}")

    def to_dict(self) -> dict[str, object]:
        """Return the report as plain values, ready for JSON."""
        return {
            "rows_in": self.rows_in,
            "rows_out": self.rows_out,
            "steps": [asdict(step) | {"examples": list(step.examples)} for step in self.steps],
        }


class Cleaned(NamedTuple):
    """The parts of a data set that cleaning gives."""

    interactions: pl.DataFrame
    items: Catalog
    users: Profiles
    report: CleaningReport


def clean_online_retail(raw: pl.DataFrame) -> Cleaned:
    """Turn raw invoice lines into purchases and cancellations, a catalogue and profiles.

    An event's weight is its number of pieces (for a cancellation: the pieces taken back); `session_id` is the
    invoice, `event_id` the invoice and the line in it. Events are sorted by time and, within a minute, as the
    log wrote them. The shop's clock is taken as UTC. An item's title and price are those of its first
    purchase, a person's country that of the first event, because a later one would depend on when one looks.

    Args:
        raw: rows with the columns of `RAW_COLUMNS`; `InvoiceDate` is a datetime, `CustomerID` null where
            unknown.

    Raises:
        DataError: a column is missing, or no row is left.
    """
    require_columns(raw, RAW_COLUMNS, source="online-retail")
    steps: list[CleaningStep] = []

    def drop(rows: pl.DataFrame, name: str, description: str, keep: pl.Expr) -> pl.DataFrame:
        marked = rows.with_columns(keep.fill_null(False).alias("keep"))
        dropped = marked.filter(~pl.col("keep"))
        steps.append(CleaningStep(name, description, rows.height, dropped.height, _examples(dropped)))
        return marked.filter("keep").drop("keep")

    def note(rows: pl.DataFrame, name: str, description: str, changed: pl.DataFrame) -> None:
        steps.append(CleaningStep(name, description, rows.height, 0, _examples(changed), changed.height))

    rows = _tidied(raw)
    changed = rows.filter(
        pl.col("raw_code").ne_missing(pl.col("StockCode")) | pl.col("raw_text").ne_missing(pl.col("Description"))
    )
    note(
        rows,
        "tidy_text",
        "Stock codes in capitals; blanks at the ends and doubled blanks removed from descriptions.",
        changed.with_columns(StockCode="raw_code", Description="raw_text"),
    )
    rows = drop(
        rows,
        "non_product_codes",
        "Postage, fees, discounts, vouchers, samples and manual corrections are no products.",
        pl.col("StockCode").str.contains(_PRODUCT),
    )
    rows = drop(rows, "missing_customer", "Nobody to learn about.", pl.col("CustomerID").is_not_null())
    sold, is_cancel = pl.col("Quantity"), pl.col("is_cancel")
    rows = drop(
        rows,
        "not_a_sale",
        "A price of zero or less, or a quantity whose sign contradicts the kind of invoice.",
        (pl.col("UnitPrice") > 0) & pl.when(is_cancel).then(sold < 0).otherwise(sold > 0),
    )
    rows = drop(
        rows,
        "duplicate_lines",
        "The same invoice, code, quantity, price and time again; the first line stays.",
        pl.struct("InvoiceNo", "StockCode", "Quantity", "UnitPrice", "InvoiceDate").is_first_distinct(),
    )
    rows = drop(
        rows,
        "outlier_quantities",
        f"More than {MAX_QUANTITY:,} pieces, bought or cancelled: typing errors.",
        sold.abs() <= MAX_QUANTITY,
    )
    rows = _with_pieces(rows)
    rows = drop(
        rows,
        "unmatched_cancellations",
        "Cancellations of what the customer has not bought, or has already given back, in this log.",
        pl.col("weight") > 0,
    )
    if rows.is_empty():
        raise DataError(f"online-retail: none of the {raw.height:,} rows is a purchase by a known customer")
    note(
        rows,
        "limited_cancellations",
        "Cancellations of more pieces than were bought count for the pieces that were bought.",
        rows.filter(is_cancel & (pl.col("weight") < sold.abs())),
    )
    firsts = rows.filter(~is_cancel).unique("StockCode", keep="first", maintain_order=True)
    items = firsts.select(item_id="StockCode", title=pl.coalesce("Description", "StockCode"), price="UnitPrice").sort(
        "item_id"
    )
    other_title = rows.join(items, left_on="StockCode", right_on="item_id", maintain_order="left").filter(
        pl.col("Description").ne_missing(pl.col("title"))
    )
    note(
        rows,
        "first_title",
        "An item is called as on its first purchase, whatever later lines call it.",
        other_title,
    )
    users = rows.unique("CustomerID", keep="first", maintain_order=True).select(
        user_id=pl.col("CustomerID").cast(pl.String), country="Country"
    )
    interactions = rows.select(
        user_id="CustomerID",
        item_id="StockCode",
        event_type=pl.when(is_cancel).then(pl.lit("cancel")).otherwise(pl.lit("purchase")),
        weight="weight",
        timestamp="InvoiceDate",
        event_id=pl.format("{}-{}", "InvoiceNo", "line"),
        session_id="InvoiceNo",
    )
    return Cleaned(
        validate_interactions(interactions, source="online-retail"),
        Catalog(items, text="title", numeric=("price",), categorical=()),
        Profiles(users.sort("user_id"), numeric=(), categorical=("country",)),
        CleaningReport(raw.height, rows.height, tuple(steps)),
    )


def _tidied(raw: pl.DataFrame) -> pl.DataFrame:
    """The rows by time, with tidy text, the line in the invoice and whether the invoice is a cancellation."""
    text = pl.col("Description")
    return (
        raw.select(RAW_COLUMNS)
        .with_columns(line=pl.int_range(1, pl.len() + 1).over("InvoiceNo"))
        .sort("InvoiceDate", maintain_order=True)
        .with_columns(
            pl.col("StockCode").str.strip_chars().str.to_uppercase(),
            text.str.replace_all(r"\s+", " ").str.strip_chars(),
            raw_code="StockCode",
            raw_text="Description",
            is_cancel=pl.col("InvoiceNo").str.starts_with("C"),
        )
        # The published spreadsheet's empty cells became the text "nan".
        .with_columns(pl.when(~text.is_in(["", "nan"])).then(text).alias("Description"))
    )


def _with_pieces(rows: pl.DataFrame) -> pl.DataFrame:
    """Add `weight`: pieces bought, or pieces that a cancellation takes back from earlier purchases.

    A cancellation takes from the same customer's latest purchases of the code first, and never more than is
    left of them. Which purchase it takes from does not matter to how much is taken: what is left is a walk of
    purchases less cancellations that stops at zero, and such a walk is the free walk less its lowest point
    below zero so far.
    """
    key = ["CustomerID", "StockCode"]
    numbered = rows.with_row_index("row")
    # Few customers ever return a thing, and only their rows need a walk: twenty times faster than for all.
    returned = numbered.filter("is_cancel").select(key).unique()
    walk = numbered.join(returned, on=key, how="semi", maintain_order="left").with_columns(
        walk=pl.col("Quantity").cum_sum().over(key)
    )
    left = walk.with_columns(left=pl.col("walk") - pl.min_horizontal(pl.col("walk").cum_min().over(key), 0))
    taken = left.select("row", taken=pl.col("left").shift(1, fill_value=0).over(key) - pl.col("left"))
    return (
        numbered.join(taken, on="row", how="left", maintain_order="left")
        .with_columns(weight=pl.when("is_cancel").then("taken").otherwise("Quantity").cast(pl.Float64))
        .drop("row", "taken")
    )


def _examples(rows: pl.DataFrame) -> tuple[str, ...]:
    return tuple(
        f"{row['InvoiceNo']}: {row['Quantity']} x {row['StockCode']} {row['Description'] or '(no text)'} "
        f"at {row['UnitPrice']}"
        for row in rows.head(_NUM_EXAMPLES).iter_rows(named=True)
    )
