"""Numbers as text: those of several seeds in a cell, tables of cells, rows in a CSV file."""

import csv
import math
import pathlib
import statistics
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Mean +- standard deviation; each of them where one is not finite, or where the deviation is
    over half of the mean.
    """
    if not all(map(math.isfinite, values)):
        return ", ".join(f"{value:.{digits}f}" for value in values)
    mean = statistics.fmean(values)
    if len(values) == 1:
        return f"{mean:.{digits}f}"
    deviation = statistics.stdev(values)
    if deviation > abs(mean) / 2:
        return ", ".join(f"{value:.{digits}f}" for value in values)
    return f"{mean:.{digits}f} +- {deviation:.{digits}f}"


def markdown(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table, without a line break at the end."""
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def markdown_of(rows: Sequence[dict[str, str]]) -> str:
    """`markdown` of rows that have the headings themselves; nothing for none."""
    return markdown(list(rows[0]), (list(row.values()) for row in rows)) if rows else ""


def show(
    console: Console, heads: Sequence[str], rows: Iterable[Sequence[str]], **options: Any
) -> None:
    """Print a table that is as wide as its numbers, also where the console is narrower: headings,
    and cells beyond 40 characters, are broken between words.

    ``options`` are those of rich's Table.
    """
    cells = [[textwrap.fill(cell, 40) for cell in row] for row in rows]
    table = Table(**options)
    table.width = 1  # rich's own is the console's: it cuts off the ends of numbers, exponents
    for index, (head, *column) in enumerate(zip(heads, *cells, strict=True)):
        lines = [line for cell in column for line in cell.splitlines()]
        width = max(map(len, [*head.split(), *lines]))
        justify = "right" if index else "left"
        table.add_column(textwrap.fill(head, width), justify=justify, min_width=width, no_wrap=True)
        table.width += width + 3
    for row in cells:
        table.add_row(*row)
    console.print(table, crop=False)


def write_rows(path: pathlib.Path, rows: Sequence[dict[str, Any]], digits: int = 4) -> None:
    """A CSV file; numbers to so many digits, nothing where a number is not known or NaN."""

    def cell(value: Any) -> str:
        if value is None or value != value:
            return ""
        return f"{value:.{digits}g}" if isinstance(value, float | np.floating) else str(value)

    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(rows[0])
        writer.writerows([cell(value) for value in row.values()] for row in rows)


def read_rows(path: pathlib.Path) -> list[dict[str, Any]]:
    """Of `write_rows`: numbers where they are numbers, NaN for nothing."""

    def value(cell: str) -> Any:
        try:
            return float(cell or "nan")
        except ValueError:
            return cell

    with path.open(newline="") as file:
        return [{name: value(cell) for name, cell in row.items()} for row in csv.DictReader(file)]
