"""A table for terminals, Markdown, and pages, where it can be sorted."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Cell:
    """One cell: the text that is shown, and the number or text that it is sorted by."""

    text: str
    order: float | str = ""


@dataclass(frozen=True)
class Table:
    """Column names and rows of cells."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]

    def markdown(self) -> str:
        r"""Return the table as Markdown.

        >>> print(Table(["a", "b"], [[Cell("1"), Cell("x|y")]]).markdown())
        | a | b |
        | --- | --- |
        | 1 | x\|y |
        """
        lines = [list(self.columns), ["---"] * len(self.columns), *([cell.text for cell in row] for row in self.rows)]
        return "\n".join(f"| {' | '.join(text.replace('|', chr(92) + '|') for text in line)} |" for line in lines)


def matrix_table(corner: str, names: Sequence[str], values: Sequence[Sequence[float]], form: str) -> Table:
    """Return a square matrix as a table, with the same names for rows and columns.

    Args:
        corner: title of the column with the names of the rows.
        names: names of rows and columns.
        values: rows of numbers.
        form: format of the numbers as shown.

    >>> print(matrix_table("class", ["a", "b"], [[1, 2], [3, 4000]], ",").markdown())
    | class | a | b |
    | --- | --- | --- |
    | a | 1 | 2 |
    | b | 3 | 4,000 |
    """
    rows = [
        [Cell(name), *(Cell(f"{value:{form}}", value) for value in of_row)]
        for name, of_row in zip(names, values, strict=True)
    ]
    return Table([corner, *names], rows)
