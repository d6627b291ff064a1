"""Wrap every network by DDP or FSDP2, give each of two processes half a batch, and save gradients and state.

torchrun --standalone --nproc-per-node 2 tools_in_processes.py ddp|fsdp FILE

If a process fails, the text of the error is saved.
"""

import sys
from typing import Any

import torch
from torch import distributed, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

import gatewise as gw
from support.compatible_networks import KINDS, batch, labels, loss_of, made, train
from support.random_networks import Residual


def whole(tensor: Any) -> Any:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def by_ddp(net: nn.Module) -> nn.Module:
    return DistributedDataParallel(net)


def by_fsdp(net: nn.Module) -> nn.Module:
    """Shard each residual unit, then the rest, as is usual."""
    mesh = init_device_mesh("cpu", (distributed.get_world_size(),))
    for unit in [module for module in net.modules() if isinstance(module, Residual)]:
        fully_shard(unit, mesh=mesh)
    return fully_shard(net, mesh=mesh)


WRAPPERS = {"ddp": by_ddp, "fsdp": by_fsdp}


def outputs(net: nn.Module, wrapper: str) -> Any:
    """Return what the network gives in eval mode, of a GaterNet the gates too."""
    if not isinstance(net, gw.GaterNet):
        return net.eval()(batch()).detach()
    if wrapper == "fsdp":
        register_fsdp_forward_method(net, "forward_with_gates")
    return [output.detach() for output in net.eval().forward_with_gates(batch())]


def result_of(kind: str, wrapper: str) -> dict[str, Any]:
    """Run one forward and backward on this process's half of the batch; everything returned is whole."""
    net = train(made(kind))
    wrapped = WRAPPERS[wrapper](net)
    half = slice(distributed.get_rank(), None, distributed.get_world_size())
    loss = loss_of(wrapped, batch()[half], labels()[half])
    loss.backward()
    return {
        "gradients": {name: whole(parameter.grad) for name, parameter in net.named_parameters()},
        "state": get_model_state_dict(net, options=StateDictOptions(full_state_dict=True)),
        "sharded": all(isinstance(parameter, DTensor) for parameter in net.parameters()),
        "output": outputs(net, wrapper),  # last, for the root keeps what it gathers
    }


def main(wrapper: str, file: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo")
    found: dict[str, Any] = {}
    for kind in KINDS:
        try:
            found[kind] = result_of(kind, wrapper)
        except Exception as error:  # reported to the caller
            found[kind] = f"{type(error).__name__}: {error}"
    if distributed.get_rank() == 0:
        torch.save(found, file)
    distributed.barrier()
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
