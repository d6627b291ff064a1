"""Write a network in one form to a file, after the file was compared with the network."""

import io
import os
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from gatewise import errors
from gatewise.core.files import write_atomically
from gatewise.core.loaders import Loader
from gatewise.core.log_filters import without_logs_of
from gatewise.core.reasons import reason_of
from gatewise.exporting.agreement import agreement, check_agreement
from gatewise.exporting.formats.registry import Format
from gatewise.exporting.forms import Readable, WithGates
from gatewise.exporting.program import exported_program
from gatewise.exporting.quantisation import Int8
from gatewise.graph.unreadable import values_decide
from gatewise.inference import ConditionalNet, compact
from gatewise.inference.routed import RoutedNet


@dataclass(frozen=True)
class Job:
    """A network to export.

    Attributes:
        net: the network, in eval mode on the CPU.
        example: images with which it is traced.
        compared: images on which its outputs are compared.
        constant: images over which constant gates are found.
        details: metadata to store, without the form.
        output: name of the first output in the file.
        any_size: whether images may have any size.
        readable: function from the logits to the first output of the file; None keeps them.
    """

    net: Any
    example: Tensor
    compared: Iterable[Tensor]
    constant: Loader
    details: dict[str, Any]
    output: str = "logits"
    any_size: bool = False
    readable: Callable[[Tensor], Tensor] | None = None

    def write(
        self, out: Path, chosen: Format, form: str, int8: Int8 | None, say: Callable[[str], None]
    ) -> dict[str, Any]:
        """Write the file if its outputs are those of the network, and return the results of `export_run`."""
        reference = self._in_form("compact" if form == "compact" else "masked", say)
        network = self._in_form(form, say) if form == "skip" else reference
        say(f"exporting to {chosen.name}")
        content = self.content(network, chosen, {**self.details, "form": form}, self.output)
        with _temporary_file(out) as file:
            write_atomically(file, content)
            say("comparing with the network")
            results = check_agreement(out, agreement(reference, chosen.open(file), self.compared))
            if int8 is not None:
                say("quantising")
                plain = chosen.open(file)
                chosen.quantise(file, int8.ranges)
                results |= int8.results(plain, chosen.open(file))
            write_atomically(out, file.read_bytes())
        return {"file": str(out), "to": chosen.name, "form": form, "bytes": out.stat().st_size, **results}

    def write_routes(
        self,
        out: Path,
        chosen: Format,
        routed: RoutedNet,
        int8: Int8 | None,
        say: Callable[[str], None],
        *,
        split: bool = False,
    ) -> dict[str, Any]:
        """Write one file with all routes, or with `split` one for each and one that chooses; see `write`."""
        details = {**self.details, "form": "routes", "routes": routed.count}
        say(f"exporting {routed.count} routes to {chosen.name}")
        chooser = self.content(routed.chooser, chosen, details, "route")
        networks = [self.content(self._readable(net), chosen, details, self.output) for net in routed.networks]
        compared = list(self.compared)
        say("comparing each route with the network")
        for number, content in enumerate(networks):
            with _temporary_file(_beside(out)) as file:
                write_atomically(file, content)
                reference = self._readable(_WithPattern(self.net, routed.chooser.patterns[number]))
                check_agreement(out, agreement(reference, chosen.open(file), compared[:1]))
        whole = self._readable(_WithChosenGates(self.net, routed.chooser))
        with _temporary_file(out) as file:
            write_atomically(file, chosen.compose(chooser, networks, details, self.output))
            say("comparing with the network")
            plain = chosen.open(file)
            results = check_agreement(out, agreement(whole, plain, compared))
            results["images_of_routes"] = _images_of_routes(routed, compared)
            if int8 is not None:
                say("quantising each route")
                networks = [
                    _quantised(out, chosen, content, images)
                    for content, images in zip(networks, _by_route(routed, int8.ranges), strict=True)
                ]
                write_atomically(file, chosen.compose(chooser, networks, details, self.output))
                results |= int8.results(plain, chosen.open(file))
            files = {out: file.read_bytes()}
        if split:
            named = {"chooser": chooser} | {f"route{number}": content for number, content in enumerate(networks)}
            files = {out.with_name(f"{out.stem}.{name}{out.suffix}"): content for name, content in named.items()}
        for path, content in files.items():
            write_atomically(path, content)
        size = sum(len(content) for content in files.values())
        results = {"to": chosen.name, "form": "routes", "routes": routed.count, "bytes": size, **results}
        return {"file": str(next(iter(files))), **({"files": [*map(str, files)]} if split else {}), **results}

    def content(self, network: nn.Module, chosen: Format, details: dict[str, Any], output: str) -> bytes:
        """Return the content of a file with this network."""
        example = self.example if len(self.example) > 1 else torch.cat([self.example, self.example])
        forms = chosen.takes_export_forms
        with _naming_what_failed(chosen):
            program = exported_program(network, example, free_size=self.any_size, export_forms=forms)
            return chosen.write(program, details, output)

    def _in_form(self, form: str, say: Callable[[str], None]) -> nn.Module:
        """Return the network in the given form, with the outputs of the file, in eval mode."""
        if form == "skip":
            return self._readable(ConditionalNet(self.net))
        if form == "compact":
            say("finding constant gates")
            return self._readable(WithGates(compact(self.net, self.constant)))
        return self._readable(WithGates(self.net))

    def _readable(self, network: nn.Module) -> nn.Module:
        """Return a network with the first output of the file, in eval mode."""
        return (network if self.readable is None else Readable(network, self.readable)).eval()


class _WithPattern(nn.Module):
    """Run a GaterNet with the same gates, (gates,), for all images: (N, C, H, W) -> output."""

    def __init__(self, net: Any, pattern: Tensor) -> None:
        super().__init__()
        self.net, self.pattern = net, pattern

    def forward(self, image: Tensor) -> Any:
        return self.net(image, self.pattern.expand(len(image), -1))


class _WithChosenGates(nn.Module):
    """Run a GaterNet with the gates of the chosen routes: (N, C, H, W) -> output, gates."""

    def __init__(self, net: Any, chooser: nn.Module) -> None:
        super().__init__()
        self.net, self.chooser = net, chooser

    def forward(self, image: Tensor) -> tuple[Any, Tensor]:
        return cast(tuple[Any, Tensor], self.net.forward_with_gates(image, self.chooser(image)[1]))


@torch.no_grad()
def _images_of_routes(routed: RoutedNet, batches: Iterable[Tensor]) -> list[int]:
    """Return how many images take each route."""
    counts = torch.zeros(routed.count, dtype=torch.long)
    for images in batches:
        counts += routed.chooser(images)[0].bincount(minlength=routed.count)
    return [int(count) for count in counts]


@torch.no_grad()
def _by_route(routed: RoutedNet, batches: Iterable[Tensor]) -> list[list[Tensor]]:
    """Return for each route the images that take it, in batches; all images if none does."""
    everything = list(batches)
    chosen = [routed.chooser(images)[0] for images in everything]
    found: list[list[Tensor]] = []
    for number in range(routed.count):
        own = [images[route == number] for images, route in zip(everything, chosen, strict=True)]
        found.append([images for images in own if len(images)] or everything)
    return found


def _quantised(out: Path, chosen: Format, content: bytes, images: Iterable[Tensor]) -> bytes:
    """Return the content of a file after quantisation over some images."""
    with _temporary_file(_beside(out)) as file:
        write_atomically(file, content)
        chosen.quantise(file, images)
        return file.read_bytes()


@contextmanager
def _naming_what_failed(chosen: Format) -> Generator[None]:
    """Convert exceptions of torch to one line."""
    failed = f"cannot write this network for {chosen.name}"
    try:
        with without_logs_of("torch"), redirect_stderr(io.StringIO()):  # torch also prints the graph
            yield
    except errors.GatewiseError:
        raise
    except Exception as error:  # an operation that torch or the format does not have
        if not values_decide(error):
            raise errors.InvalidValueError(
                f"torch {failed} ({reason_of(error)}). Choose another format (to) or form."
            ) from None
        raise errors.InvalidValueError(
            f"torch {failed}: values that it computes decide which operations run, as in `if x.sum() > 0`. Choose by "
            f"operations on tensors, such as torch.where."
        ) from None


def _beside(out: Path) -> Path:
    return out.with_stem(f"{out.stem}-route")


@contextmanager
def _temporary_file(out: Path) -> Generator[Path]:
    """Yield the path of a temporary file next to `out`, which is deleted at the end."""
    temporary = out.with_name(f".{os.getpid()}.{out.name}")
    try:
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)
