"""Small pictures of the points of a figure, on one sheet that a page carries with it."""

import base64
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Self

from gatewise.data.decode import fit

Point = tuple[float, float]
SIDE = 32  # pixels of a picture on the sheet


@dataclass(frozen=True)
class Thumbnails:
    """What a page shows when the pointer is near a point of a scatter plot.

    Attributes:
        points: in the figure's data coordinates.
        series: number of the series that each point belongs to; it is passed over while that is not shown.
        labels: what is read with each picture.
        sheet: all pictures as one JPEG, row by row.
        columns: pictures in a row of it.
    """

    points: Sequence[Point]
    series: Sequence[int]
    labels: Sequence[str]
    sheet: bytes
    columns: int

    @classmethod
    def of(cls, pictures: Iterable[Any], points: Sequence[Point], series: Sequence[int], labels: Sequence[str]) -> Self:
        """Lay PIL images of any size on a sheet, one for each point, scaled and cropped to squares of 32 pixels."""
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
        """Return what the page's script needs, each point as shares of the figure's width and height from the top."""
        width, height = figure.bbox.size
        places = figure.axes[0].transData.transform(self.points)
        return {
            "points": [[round(x / width, 4), round(1 - y / height, 4)] for x, y in places.tolist()],
            "series": list(self.series),
            "labels": list(self.labels),
            "sheet": f"data:image/jpeg;base64,{base64.b64encode(self.sheet).decode()}",
            "columns": self.columns,
        }
