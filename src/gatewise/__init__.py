"""Channel gates for convolutional networks: insert them, train them, compare them fairly.

Every public name is imported on first use: `import gatewise` alone loads neither torch nor optional dependencies.
`__init__.pyi` lists them.
"""

# pyright: basic

import importlib.util
from pathlib import Path
from typing import Any

import lazy_loader

# Modules that moved are found by the names that they had in 0.1.0, such as gatewise.presets.
__path__.append(str(Path(__file__).parent / "integrations/former_names"))

_public_name, _, __all__ = lazy_loader.attach_stub(__name__, __file__)


def __getattr__(name: str) -> Any:
    """Import a public name, or a package such as `gatewise.inference`, on first use."""
    if name == "PretrainedNet":
        from gatewise.core import _validation

        _validation.import_optional("huggingface_hub", name, "hub")
    if name in __all__:
        return _public_name(name)
    if not name.startswith("_") and importlib.util.find_spec(f"gatewise.{name}"):
        return importlib.import_module(f"gatewise.{name}")
    raise AttributeError(f"module 'gatewise' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
