"""Export networks to files of other runtimes, share them, and predict with them."""

from gatewise.exporting.reader import Exported as Exported
from gatewise.exporting.reader import details_of as details_of
from gatewise.exporting.reader import opened as opened
from gatewise.exporting.writer import agreement as agreement
from gatewise.exporting.writer import export_run as export_run
