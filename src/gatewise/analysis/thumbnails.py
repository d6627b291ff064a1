"""Thumbnails of the points of a figure, as one image that is embedded in a page."""

import base64
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Self

from gatewise.data.decode import fit

Point = tuple[float, float]
SIDE = 32  # of a thumbnail in pixels


@dataclass(frozen=True)
class Thumbnails:
    """Pictures that a page shows when the pointer is near a point of a scatter plot.

    Attributes:
        points: coordinates of the points, in the data coordinates of the axes.
        series: number of the series of each point; points of hidden series are skipped.
        labels: text shown with each picture.
        sheet: all pictures in one JPEG, row by row.
        columns: number of pictures in a row of `sheet`.
    """

    points: Sequence[Point]
    series: Sequence[int]
    labels: Sequence[str]
    sheet: bytes
    columns: int

    @classmethod
    def of(cls, pictures: Iterable[Any], points: Sequence[Point], series: Sequence[int], labels: Sequence[str]) -> Self:
        """Combine PIL images of any size, one per point, on one sheet, scaled and cropped to squares of 32 pixels."""
        from PIL import Image

        columns = max(1, round(len(points) ** 0.5))
        sheet = Image.new("RGB", (SIDE * columns, SIDE * -(-len(points) // columns)))
        for number, picture in enumerate(pictures):
            row, column = divmod(number, columns)
            sheet.paste(fit(picture, SIDE), (SIDE * column, SIDE * row))
        buffer = io.BytesIO()
        sheet.save(buffer, format="JPEG", quality=80)
        return cls(points, series, labels, buffer.getvalue(), columns)

    def for_page(self, figure: Any) -> dict[str, Any]:
        """Return the data for the page's script; points become fractions of the figure's size, from the top left."""
        width, height = figure.bbox.size
        places = figure.axes[0].transData.transform(self.points)
        return {
            "points": [[round(x / width, 4), round(1 - y / height, 4)] for x, y in places.tolist()],
            "series": list(self.series),
            "labels": list(self.labels),
            "sheet": f"data:image/jpeg;base64,{base64.b64encode(self.sheet).decode()}",
            "columns": self.columns,
        }
