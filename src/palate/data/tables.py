"""Reading a table from a CSV or Parquet file; every failure is one line that names the file and the row."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import polars as pl

from palate.errors import DataError

# A number written out, but not one with a leading zero: that is a code, such as a postal one.
_NUMBER = r"^[+-]?(?:0|[1-9]\d*)(?:\.\d*)?(?:[eE][+-]?\d+)?$|^[+-]?\.\d+$"


def csv_table(path: str | Path) -> pl.DataFrame:
    """Read a comma-separated UTF-8 file with a header line; every column is text, an empty cell is null.

    Nothing is guessed, so an id such as 00123 keeps its zeros.

    Raises:
        DataError: the file is missing, empty, not `.csv`, not UTF-8, or has a row of the wrong length.
    """
    # Blank lines at the end are no rows; in between they are, and their missing ids are reported.
    content = _content(path, ".csv").rstrip(b"\r\n")
    try:
        text = content.decode("utf-8-sig")
        frame = pl.read_csv(io.BytesIO(content), infer_schema=False)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}: line {line} is not UTF-8 ({error.reason}); save the file as UTF-8") from None
    except pl.exceptions.PolarsError as error:
        _refuse_ragged(text, path)
        raise DataError(f"{path}: not readable as CSV ({_first_line(error)}); write the file again") from None
    # A row that is too short ends in a null, so only files with such rows need the slow look.
    if frame[frame.columns[-1]].null_count():
        _refuse_ragged(text, path)
    header = next(csv.reader(io.StringIO(text)))
    repeated = [name for name in dict.fromkeys(header) if header.count(name) > 1]
    if repeated:
        raise DataError(f"{path}: column {repeated[0]!r} occurs twice in the header; rename one of them")
    return frame


def parquet_table(path: str | Path) -> pl.DataFrame:
    """Read a Parquet file.

    Raises:
        DataError: the file is missing, empty, not `.parquet` or damaged.
    """
    content = _content(path, ".parquet")
    try:
        return pl.read_parquet(io.BytesIO(content))
    except pl.exceptions.PolarsError as error:
        raise DataError(f"{path}: not readable as Parquet ({_first_line(error)}); write the file again") from None


def rename_columns(tables: Sequence[tuple[str, pl.DataFrame]], columns: Mapping[str, str] | None) -> list[pl.DataFrame]:
    """Rename the columns of named tables, their name to ours; each entry must fit at least one of the tables.

    Raises:
        DataError: no table has a column to be renamed, or a table already has a column of the new name.
    """
    wanted = dict(columns or {})
    for theirs in wanted:
        if not any(theirs in frame.columns for _, frame in tables):
            found = "; ".join(f"{source} has {', '.join(frame.columns)}" for source, frame in tables)
            raise DataError(f"columns: there is no column {theirs!r} to rename; {found}")
    renamed = []
    for source, frame in tables:
        here = {theirs: ours for theirs, ours in wanted.items() if theirs in frame.columns}
        names = [here.get(name, name) for name in frame.columns]
        for theirs, ours in here.items():
            if names.count(ours) > 1:
                raise DataError(f"{source}: columns renames {theirs!r} to {ours!r}, but that name is taken; drop one")
        renamed.append(frame.rename(here))
    return renamed


def read_numbers(frame: pl.DataFrame, *, key: str) -> pl.DataFrame:
    """Turn each text column into Float64 where every value present is a plain number; `key` stays text.

    Numbers with leading zeros are codes and stay text; a column without any value stays text.
    """
    return frame.with_columns(
        values.str.strip_chars().cast(pl.Float64)
        for values in frame.iter_columns()
        if values.name != key
        and values.dtype == pl.String
        and values.null_count() < len(values)
        and values.str.strip_chars().str.contains(_NUMBER).all()
    )


def _content(path: str | Path, suffix: str) -> bytes:
    file = Path(path)
    if file.suffix.lower() != suffix:
        raise DataError(f"{path}: the ending is {file.suffix!r}; expected a {suffix} file")
    try:
        content = file.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such file; check the path") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check that it is a readable file") from None
    if not content.strip():
        raise DataError(f"{path}: the file is empty; expected a {suffix} table")
    return content


def _refuse_ragged(text: str, path: str | Path) -> None:
    rows = csv.reader(io.StringIO(text, newline=""))
    try:
        width = len(next(rows))
        for number, row in enumerate(rows, start=1):
            if row and len(row) != width:
                raise DataError(
                    f"{path}: row {number} (data row, header not counted) has {len(row)} fields; "
                    f"the header has {width}; check the commas and quotes of that row"
                )
    except csv.Error:
        return  # not a question of row lengths; the caller says what the reader said


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
