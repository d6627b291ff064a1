"""Export networks to files of other runtimes, share them, and predict with them."""

from gatewise.exporting.agreement import agreement as agreement
from gatewise.exporting.formats.registry import Exported as Exported
from gatewise.exporting.formats.registry import Format as Format
from gatewise.exporting.formats.registry import metadata as metadata
from gatewise.exporting.formats.registry import register_format as register_format
from gatewise.exporting.reader import details_of as details_of
from gatewise.exporting.reader import opened as opened
from gatewise.exporting.writer import export_run as export_run
