"""Export a trained network to a file for other runtimes (`writer`), and open such files (`reader`)."""

from gatewise.exporting.reader import Exported as Exported
from gatewise.exporting.reader import details_of as details_of
from gatewise.exporting.reader import opened as opened
from gatewise.exporting.writer import agreement as agreement
from gatewise.exporting.writer import export_run as export_run
