"""Networks drawn at random from the blocks that CNNs are made of, and gaters that return given gates."""

from collections.abc import Callable

import torch
from hypothesis import assume
from hypothesis import strategies as st
from torch import Tensor, nn

import gatewise as gw
from gatewise.errors import InvalidValueError

SIZE = 8
CLOSE = {"rtol": 1e-4, "atol": 1e-5}  # outputs of a network that computes less


class Squeeze(nn.Module):
    """Squeeze-and-excitation as part of a plain network."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Conv2d(channels, 4, 1), nn.Conv2d(4, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.fc2(torch.relu(self.fc1(x.mean((2, 3), keepdim=True)))))


class ChannelsLast(nn.Module):
    """A ConvNeXt block's linear layers."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.fc1, self.act, self.fc2 = nn.Linear(channels, width), nn.ReLU(), nn.Linear(width, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x.permute(0, 2, 3, 1)))).permute(0, 3, 1, 2)


class Branches(nn.Module):
    """Two branches side by side, concatenated, and a convolution over both."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.left = nn.Sequential(conv(channels, width, 1), nn.ReLU(), conv(width, 4, 3))
        self.right = nn.Sequential(conv(channels, width, 3), nn.ReLU(), conv(width, 4, 1))
        self.both = conv(8, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.both(torch.cat([self.left(x), self.right(x)], 1))


class Residual(nn.Module):
    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.body(x))


def conv(inputs: int, outputs: int, kernel: int, **options: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, **options)


def norm(channels: int) -> nn.BatchNorm2d:
    layer = nn.BatchNorm2d(channels)
    for parameter in (layer.weight, layer.running_var):
        nn.init.uniform_(parameter, 0.5, 1.5)
    for parameter in (layer.bias, layer.running_mean):
        nn.init.normal_(parameter, std=0.5)
    return layer


def basic(c: int, w: int) -> nn.Module:
    return nn.Sequential(conv(c, w, 3), norm(w), nn.ReLU(), conv(w, c, 3), norm(c))


def bottleneck(c: int, w: int) -> nn.Module:
    return nn.Sequential(
        conv(c, w, 1), norm(w), nn.ReLU(inplace=True), conv(w, w, 3), norm(w), nn.ReLU(inplace=True), conv(w, c, 1)
    )


def inverted(c: int, w: int) -> nn.Module:
    return nn.Sequential(
        conv(c, w, 1), norm(w), nn.Hardswish(), conv(w, w, 3, groups=w), norm(w), nn.ReLU6(), Squeeze(w), conv(w, c, 1)
    )


def grouped(c: int, w: int) -> nn.Module:
    return nn.Sequential(conv(c, w, 1), norm(w), nn.ReLU(), conv(w, w, 3, groups=2), norm(w), nn.ReLU(), conv(w, c, 1))


def parametric(c: int, w: int) -> nn.Module:
    return nn.Sequential(conv(c, w, 3), nn.PReLU(w), conv(w, c, 1))


def in_branch(c: int, w: int) -> nn.Module:
    return nn.Sequential(conv(c, w, 3), norm(w), nn.ReLU(), conv(w, c, 3), norm(c), Squeeze(c))


def normalised_over_channels(c: int, w: int) -> nn.Module:
    return nn.Sequential(conv(c, w, 3), nn.GroupNorm(1, w), nn.ReLU(), conv(w, c, 3))


def reflecting(c: int, w: int) -> nn.Module:
    first = nn.Conv2d(c, w, 3, padding=1, padding_mode="reflect")
    return nn.Sequential(first, norm(w), nn.ReLU(), conv(w, c, 3), norm(c))


def gated(c: int, w: int) -> nn.Module:
    return nn.Sequential(conv(c, w, 3), norm(w), nn.ReLU(), gw.make_gate("gct", w), conv(w, c, 3))


BLOCKS: dict[str, Callable[[int, int], nn.Module]] = {
    function.__name__: function
    for function in (
        basic,
        bottleneck,
        inverted,
        grouped,
        parametric,
        in_branch,
        normalised_over_channels,
        gated,
        reflecting,
        Branches,
        ChannelsLast,
    )
}


def network(blocks: list[str], width: int, *, residual: bool = True) -> nn.Module:
    """Return a classifier of 8 x 8 images with these blocks of 8 channels, `width` inside."""
    bodies = [BLOCKS[name](8, width) for name in blocks]
    wrapped = [Residual(body) if residual else body for body in bodies]
    net = nn.Sequential(conv(3, 8, 3), norm(8), nn.ReLU(), *wrapped, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    net.append(nn.Linear(8, 5))
    return net.eval()


class Scripted(nn.Module):
    """A gater with gates given by `states`: "1" open, "0" closed, "?" depending on the image."""

    def __init__(self, states: str) -> None:
        super().__init__()
        self.states = states

    @classmethod
    def of(cls, letters: str, seed: int = 0) -> Callable[[int], "Scripted"]:
        """Return a function from the number of gates to a gater with states drawn from `letters`."""

        def gater(gates: int) -> Scripted:
            drawn = torch.randint(len(letters), (gates,), generator=torch.Generator().manual_seed(seed)).tolist()
            return cls("".join(letters[index] for index in drawn))

        return gater

    def forward(self, x: Tensor) -> Tensor:
        phase = torch.arange(len(self.states), dtype=torch.float64, device=x.device) * 2.4
        free = torch.sin(1e3 * x.double().mean(tuple(range(1, x.dim())))[:, None] + phase)
        fixed = torch.tensor([{"0": -1.0, "1": 1.0, "?": 0.0}[state] for state in self.states], device=x.device)
        return torch.where(fixed == 0, free, fixed).to(x)


def images(count: int, seed: int = 1) -> Tensor:
    return torch.randn(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))


def gater_net(
    blocks: list[str],
    width: int = 8,
    *,
    seed: int = 0,
    states: str | None = None,
    letters: str = "01?",
    **options: object,
) -> gw.GaterNet:
    """Return a GaterNet on such a network whose gates are scripted, at random if `states` is not given."""
    torch.manual_seed(seed)
    backbone = network(blocks, width)

    gater = Scripted.of(letters, seed) if states is None else Scripted(states)
    return gw.GaterNet(backbone, **{"gater": gater, "image_size": (SIZE, SIZE), **options}).eval()  # type: ignore[arg-type]


# Blocks in a row, the width inside, the seed of weights and gates, the place.
drawn_networks = st.tuples(
    st.lists(st.sampled_from(sorted(BLOCKS)), min_size=1, max_size=3),
    st.sampled_from([4, 8, 12]),
    st.integers(0, 1000),
    st.sampled_from(["inner", "residual"]),
)


def made(drawn: tuple[list[str], int, int, str], **options: object) -> gw.GaterNet:
    """Return the GaterNet that was drawn; the example is left out if it has no filter to gate."""
    blocks, width, seed, sites = drawn
    try:
        return gater_net(blocks, width, seed=seed, sites=sites, **options)  # type: ignore[arg-type]
    except InvalidValueError:
        assume(False)  # blocks without a filter that can be gated there
        raise
