"""One export format per file. Importing this package imports every file in it; each file registers its format."""

import importlib
import pkgutil

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
