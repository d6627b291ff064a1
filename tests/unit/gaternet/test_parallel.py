"""A GaterNet in several threads, and in the replicas of nn.DataParallel."""

import threading
from typing import Any

import pytest
import torch
from torch.testing import assert_close

import gatewise as gw
from gatewise.errors import InvalidTypeError
from support import parallel
from support.routed_nets import backbone, images

KINDS = ["light", "local", "routes"]


def net_of(kind: str) -> Any:
    """Return a net whose gates, and norms of routes, differ between images."""
    torch.manual_seed(3)
    options: dict[str, Any] = {"routes": 2} if kind == "routes" else {"gater": kind}
    net = gw.GaterNet(backbone(), image_size=(8, 8), **options).eval()
    norms = net.selection.norms.parameters() if net.selection else ()
    with torch.no_grad():
        for parameter in (*net.gater.parameters(), *norms):
            parameter.normal_()
    return net


@pytest.mark.parametrize("kind", [*KINDS, "skip"])
@torch.no_grad()
def test_threads_do_not_see_gates_of_each_other(kind: str) -> None:
    """The second forward waits, if it can, in the middle of the backbone until the first has ended."""
    net = net_of("light" if kind == "skip" else kind)
    net = gw.skip_closed_filters(net, "skip") if kind == "skip" else net
    inputs = [(image, net.routes[[row]].float()) if kind == "routes" else (image,) for row, image in two_images()]
    expected = [net(*own) for own in inputs]
    assert not torch.equal(*expected)
    reached, ended, found = threading.Event(), threading.Event(), list[Any]()
    second = threading.Thread(target=torch.no_grad()(lambda: found.append(net(*inputs[1]))))

    def hold(*_: Any) -> None:
        if threading.current_thread() is second:
            reached.set()
            ended.wait()
        elif second.ident is None:
            second.start()
            reached.wait(0.5)

    middle = (net.net if kind == "skip" else net).backbone[3]
    handle = middle.register_forward_pre_hook(hold)
    try:
        first = net(*inputs[0])
    finally:
        ended.set()
        second.join()
        handle.remove()
    assert_close([first, *found], expected)


def two_images() -> list[tuple[int, torch.Tensor]]:
    return [*enumerate(images(2).split(1))]


@pytest.mark.parametrize("kind", KINDS)
def test_replicas_of_data_parallel_compute_the_same(kind: str) -> None:
    net = net_of(kind)
    with torch.no_grad():
        for replica in parallel.on_cpu(net):
            assert_close(replica(images()), net(images()))


@pytest.mark.parametrize("kind", KINDS)
def test_replicas_of_data_parallel_do_not_train(kind: str) -> None:
    for replica in parallel.on_cpu(net_of(kind).train()):
        with pytest.raises(InvalidTypeError, match=r"nn\.DataParallel cannot train.*DistributedDataParallel"):
            replica(images())


def test_replicas_of_skipping_net_raise() -> None:
    with torch.no_grad(), pytest.raises(InvalidTypeError, match=r"nn\.DataParallel cannot run a skipping net"):
        parallel.on_cpu(gw.skip_closed_filters(net_of("light"), "skip"))[0](images())
