"""Places for gates, one kind per file. Importing this package imports every file in it; each registers its places."""

from gatewise.core.registry import import_files

import_files(__name__, __path__)
