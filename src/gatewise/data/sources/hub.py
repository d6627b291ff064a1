"""The data sets of the Hugging Face hub, and folders in its layout: hub:NAME."""

# pyright: basic

from typing import Any

from gatewise.core import _validation
from gatewise.core.hub_connection import cache_if_unreachable
from gatewise.core.reasons import as_data_error
from gatewise.data.dataset_rows import labelled_rows
from gatewise.data.folders import Location
from gatewise.data.sources.registry import LabelledSource, LabelledSplit, register_source

HUB = "hub:"  # what `--data` starts with
_ADVICE = "Check the name, and the connection to the internet."


@register_source("hub", help=f"{HUB}NAME (on the Hugging Face hub)", order=30)
class Hub(LabelledSource):
    """A data set that the library `datasets` can load: of the hub, or a folder in its layout.

    Rows are read from the library's memory-mapped cache, so the data may be larger than memory.
    """

    has_columns = True

    def matches(self, location: Location) -> bool:
        return location.text.startswith(HUB)

    def read_labelled(self, location: Location) -> dict[str, LabelledSplit]:
        name = location.text.removeprefix(HUB)
        datasets = _validation.import_optional("datasets", f"the hub's data set {name!r}", extra="hub")
        # the network and file layers of the library can raise any error
        with as_data_error("datasets", f"cannot load {name!r}", _ADVICE), cache_if_unreachable():
            found: Any = datasets.load_dataset(name)
        return labelled_rows(datasets, name, found, location.reading)
