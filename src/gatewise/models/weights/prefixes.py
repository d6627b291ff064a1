"""Prefixes before the names of a network's tensors: those of wrappers, trainers, and modules around a network."""

import re
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass

# components that torch's wrappers insert into names, wherever the wrapped module is
_INSERTED = re.compile(r"(?:^|(?<=\.))(?:_orig_mod|_checkpoint_wrapped_module|_fsdp_wrapped_module)\.")
_PARALLEL = re.compile(r"(?<=\.)module\.")  # DataParallel around a part of the network
_COPIES = {"ema", "teacher", "momentum", "averaged", "average", "swa", "shadow", "target", "slow", "key", "k", "old"}


@dataclass(frozen=True)
class Prefix:
    """How names in a file become names of a network: `removed` is taken from the front, then `added` is put there.

    >>> Prefix("model.", "net.").own("model.conv.weight"), Prefix("model.").own("optimizer.conv")
    ('net.conv.weight', None)
    """

    removed: str = ""
    added: str = ""
    without_parallel: bool = False

    def own(self, name: str) -> str | None:
        """Return the network's name for a name in the file, or None if it has another prefix."""
        if not name.startswith(self.removed):
            return None
        rest = self.added + name[len(self.removed) :]
        return _PARALLEL.sub("", rest) if self.without_parallel else rest

    @property
    def is_copy(self) -> bool:
        """Whether it names a copy of a network that a trainer keeps, such as a moving average."""
        return not _COPIES.isdisjoint(re.split(r"[._]", self.removed.lower()))

    def notes(self) -> list[str]:
        """Return what to tell the user about it."""
        removed = [f"the prefix {self.removed!r} was removed from the names in the file"] if self.removed else []
        inside = ["'module.' was removed inside names"] if self.without_parallel else []
        return removed + ([f"the network's own prefix {self.added!r} was added"] if self.added else []) + inside


def prefixes(names: Collection[str], own: Collection[str]) -> list[Prefix]:
    """Return the prefixes that may relate names of a file to those of a network, the shortest first.

    Only whole components are prefixes. What is removed is in front of at least half as many names as the network has;
    what is added is in front of all names of the network.

    >>> found = prefixes(["model.context_module.weight", "model.head.bias"], ["context_module.weight", "head.bias"])
    >>> [prefix.removed for prefix in found]
    ['', 'model.', 'model.head.', 'model.context_module.']
    """
    of_file, of_network = _counted(names), _counted(own)
    removed = [prefix for prefix, count in of_file.items() if 2 * count >= len(own)]
    added = [prefix for prefix, count in of_network.items() if count == len(own)]
    own_parallel = any(_PARALLEL.search(name) for name in own)
    forms = [False, True] if not own_parallel and any(_PARALLEL.search(name) for name in names) else [False]
    found = [Prefix(one, other, form) for form in forms for one in ["", *removed] for other in ["", *added]]
    return sorted(found, key=lambda prefix: (len(prefix.removed) + len(prefix.added), prefix.without_parallel))


def _counted(names: Iterable[str]) -> Counter[str]:
    return Counter(name[: dot.end()] for name in names for dot in re.finditer(r"\.", name))


def without_inserted(name: str) -> str:
    """Remove the components that torch.compile, checkpointing and FSDP insert into the names of a state dict.

    >>> without_inserted("_orig_mod.stem._orig_mod.bias")
    'stem.bias'
    """
    return _INSERTED.sub("", name)
