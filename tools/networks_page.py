"""Define the networks of the tests, and write the page that lists the places found in each.

PYTHONPATH=.:tests python tools/networks_page.py > docs/networks.md
"""

import json
import re
import warnings
from collections import Counter
from dataclasses import dataclass

import timm
import torch
import torchvision
from torch import Tensor, nn

import gatewise as gw
from gatewise.graph import Graph, Places, place_names
from tools.timm_networks import RESULTS, summary

VERSIONS = f"timm {timm.__version__} and torchvision {torchvision.__version__.partition('+')[0]}"

_SEVERAL_CALLS = "its layer is called n times, and not each call is such a place"

# Reasons for skipping a candidate, without the layers in brackets, with numbers replaced by n, and their letters.
REASONS = {
    "its channels are read elsewhere too": "a",
    "its channels are a concatenation of maps": "b",
    "its channels are a sum of maps": "c",
    "its channels are mixed before they are read": "d",
    "its map is split or reshaped from another one": "e",
    "its channels are those of the network's input": "f",
    "no layer starts or ends at its map": "g",
    "both branches of the addition have depth n: neither of them is a shortcut": "h",
    "the shallow branch of the addition has depth n: it is not a shortcut": "i",
    "the branches of the addition start from different chunks of a split map": "j",
    "one branch of the addition has only a normalisation: both branches are parts of one layer": "k",
    "no layer ends the branch": "l",
    "no layer ends the stage": "m",
    _SEVERAL_CALLS: "n",
}


@dataclass(frozen=True)
class Network:
    """One network of the tests.

    Attributes:
        name: name in its library.
        library: "timm" or "torchvision".
        shape: shape of the input, (N, C, *S).
        slow: whether its tests are marked as slow.
        training_only: prefix of the paths of modules that run in training mode only.
    """

    name: str
    library: str = "timm"
    shape: tuple[int, ...] = (2, 3, 64, 64)
    slow: bool = False
    training_only: str | None = None

    def build(self) -> nn.Module:
        """Return the network in eval mode, with random weights; branches that are initialised to zero are not."""
        torch.manual_seed(0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # from the libraries, about their own defaults
            if self.library == "timm":
                model = timm.create_model(self.name)
            else:
                options = {"init_weights": False} if self.name == "googlenet" else {}
                options |= {"weights_backbone": None} if "lraspp" in self.name or "deeplab" in self.name else {}
                model = torchvision.models.get_model(self.name, weights=None, **options)
        for name, parameter in model.named_parameters():
            if not name.endswith("bias") and parameter.abs().max() < 1e-3:  # a last norm or a layer scale
                nn.init.uniform_(parameter, 0.5, 1.5)
        return model.eval()

    def image(self) -> Tensor:
        """Return an input with a fixed seed."""
        return torch.randn(self.shape, generator=torch.Generator().manual_seed(1))


def _timm(names: str, **options: object) -> list[Network]:
    return [Network(name, **options) for name in names.split()]


NETWORKS = [
    *_timm("convnext_atto darknet17 dla46_c edgenext_xx_small fastvit_t8 ghostnet_050 hrnet_w18_small"),
    *_timm("mobilenetv3_small_050 regnetx_002 repvgg_a0 resnest14d resnet10t seresnet18 starnet_s050"),
    *_timm("levit_128s", shape=(1, 3, 224, 224)),
    *_timm(
        "cspresnet50 densenet121 dpn48b gernet_s hgnet_tiny lcnet_035 mobileone_s0 mobilevit_xxs nfnet_l0", slow=True
    ),
    *_timm("regnety_002 res2net50_14w_8s resnetv2_50 skresnet18 tinynet_e tresnet_m vgg11_bn", slow=True),
    *_timm("inception_v3 inception_v4", shape=(1, 3, 96, 96), slow=True),
    *_timm("efficientnet_lite0 fbnetc_100 hardcorenas_a mixnet_s mnasnet_small mobilenetv2_035 resnext26ts", slow=True),
    *_timm("rexnet_100 selecsls42 vovnet39a xception41", slow=True),
    Network("resnet18", "torchvision"),
    Network("shufflenet_v2_x0_5", "torchvision"),
    Network("mobilenet_v3_small", "torchvision"),
    Network("squeezenet1_1", "torchvision"),
    Network("r3d_18", "torchvision", (1, 3, 8, 32, 32)),
    Network("deeplabv3_resnet50", "torchvision", slow=True),
    Network("googlenet", "torchvision", slow=True, training_only="aux"),
    Network("lraspp_mobilenet_v3_large", "torchvision", slow=True),
]


def cell(places: Places) -> str:
    """Return "found", or "found (skipped)" with the reasons as letters, or in words if they have none.

    >>> cell(Places())
    '0'
    """
    texts = [re.sub(r"\b\d+\b", "n", skipped.reason.partition(" (")[0]) for skipped in places.skipped]
    texts = [_SEVERAL_CALLS if "is called n times" in text else text for text in texts]
    reasons = Counter(REASONS.get(text, f" {text}") for text in texts)
    left_out = ", ".join(f"{count}{letter}" for letter, count in sorted(reasons.items()))
    return f"{len(places.found)} ({left_out})" if left_out else str(len(places.found))


def row(network: Network, graph: Graph) -> str:
    """Return the network's table row."""
    cells = [cell(gw.find_places(graph, place)) for place in place_names(marked=False)]
    return f"| {network.name} | {network.library} | {' | '.join(cells)} |"


def page(rows: list[str]) -> str:
    """Return the page as Markdown."""
    legend = "\n".join(f"- {letter}: {reason}" for reason, letter in REASONS.items())
    return f"""# Networks

This page lists the *places* found in {len(rows)} networks: the positions where a gate can be inserted. A *gate* is a
small module that rescales the channels of a feature map or adds context to them. gatewise has no rule for any of these
networks by name. `tests/integration/test_any_network.py` checks each network at every place that it has: new `gct`
gates do not change the output, bit for bit; trained ones change it; a plain checkpoint loads; `undo` restores the state
dict.

Each cell is the number of places. In brackets are the numbers of candidates that were skipped, with a letter for the
reason; `insertion.skipped` names them. Written by `make docs` with {VERSIONS}.

| network | from | {" | ".join(f"`{place}`" for place in place_names(marked=False))} |
| --- | --- | {" | ".join("---" for _ in place_names(marked=False))} |
{chr(10).join(rows)}

Reasons for skipping a candidate (n stands for a number):

{legend}

If a network has no such place, `insert_gates` raises an error. `residual_end` is missing in networks without additions
(VGG, DenseNet, VoVNet), in networks that add parallel forms of one layer (RepVGG, MobileOne), and where only a part of
the channels has a shortcut (ReXNet). `inner` is missing if the input of every convolution has other consumers too.
Every network has `before_conv` and `stage_end`.

## Every architecture of timm

{summary(json.loads(RESULTS.read_text()))}
## Other inputs

The graph of a network is not read if its input is not a single tensor, as for a detector with a list of images.
`before_conv` needs no graph. For the other places insert into the backbone:

```python
gw.insert_gates(detector, "gct")  # before every convolution of the detector
gw.insert_gates(detector.backbone.body, "gc", include=r"layer[234]\\.")  # global context in c3 to c5
```
"""


def main() -> None:
    """Build all networks and print the page."""
    rows = [row(network, Graph(network.build(), network.image())) for network in NETWORKS]
    print(page(rows), end="")


if __name__ == "__main__":
    main()
