"""Files of rows of every format, read one record at a time with its place."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from tell_plugins.core import paths
from tell_plugins.core.errors import UserError
from tell_plugins.core.json_rows import read_json_rows
from tell_plugins.core.records import Record, check_text
from tell_plugins.core.table_rows import read_table

TABLES = (".csv", ".tsv", ".xlsx")
_WANTED = (
    'rows of a query and its answer: JSON lines such as {"query": "...", "response": "..."}, or a '
    "table with these two columns"
)


def read_records(path: Path, header: bool = True) -> Iterator[Record]:
    """The records of a file in order. Raises UserError when the file as a whole is unreadable.

    `header=False` reads a table whose first row is a row: its columns are called "1", "2", ... .
    """
    suffix = path.suffix.lower()
    if suffix not in _READERS:
        raise UserError(
            f"'{suffix or 'no ending'}' is no known file format",
            where=paths.shown(path),
            allowed=", ".join(FORMATS),
            remedy=f"convert or rename it; wanted are {_WANTED}",
        )
    if path.stat().st_size == 0:
        raise UserError(
            "the file is empty", where=paths.shown(path), remedy="check where it came from"
        )
    if suffix not in (".parquet", ".xlsx"):
        check_text(path)
    return _READERS[suffix](path, header) if suffix in TABLES else _READERS[suffix](path)


def _parquet(path: Path) -> Iterator[Record]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            names = Counter(file.schema_arrow.names)
            twice = [name for name, count in names.items() if count > 1]
            if twice:
                raise UserError(
                    f"column '{twice[0]}' stands twice",
                    where=paths.shown(path),
                    remedy="write the file again with one of them renamed",
                )
            number = 0
            for batch in file.iter_batches(batch_size=1024):
                for row in batch.to_pylist():
                    number += 1
                    yield Record(number, row)
    except (pa.ArrowException, OSError, ValueError) as error:  # ValueError: also no UTF-8
        raise UserError(
            f"no Parquet file: {error}", where=paths.shown(path), remedy="write it again"
        ) from None


_READERS: dict[str, Callable[..., Iterator[Record]]] = {
    ".jsonl": read_json_rows,
    ".json": read_json_rows,
    **dict.fromkeys(TABLES, read_table),
    ".parquet": _parquet,
}
FORMATS = tuple(sorted(_READERS))
