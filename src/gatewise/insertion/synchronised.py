"""Networks that are wrapped for distributed training, which synchronises the parameters that it finds when wrapping."""

from torch import nn

from gatewise import errors

# Methods of FullyShardedDataParallel, and of what fully_shard and replicate make of a module. Modules that were not
# built for distributed training lack both, and torch need not have these classes.
_METHODS = ("summon_full_params", "set_requires_gradient_sync")


def check_not_synchronised(model: nn.Module, problem: str, advice: str) -> None:
    """Raise `InvalidTypeError` if a network, or a part of it, is wrapped by DDP or FSDP.

    Args:
        model: the network.
        problem: what the wrapper would not do, as in "would not average ...".
        advice: what to do instead, a sentence.
    """
    modules: dict[str, nn.Module] = dict(model.named_modules())
    for path, module in modules.items():
        kind = type(module)
        if isinstance(module, nn.parallel.DistributedDataParallel) or any(hasattr(kind, name) for name in _METHODS):
            raise errors.InvalidTypeError(f"{path or 'the network'} is a {kind.__name__}, which {problem}. {advice}")
