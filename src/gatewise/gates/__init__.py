"""Gates, one per file, with their registry.

Importing this package imports every file in it; each file registers its gate.
"""

from gatewise.core.registry import import_files

import_files(__name__, __path__)
