"""One data source per file. Importing this package imports every file in it; each file registers its source."""

from gatewise.core.registry import import_files

import_files(__name__, __path__)
