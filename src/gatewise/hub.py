"""Trained networks as folders to share: `config.json`, `model.safetensors` and a model card, offline or on a hub."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from huggingface_hub import ModelCard, ModelHubMixin, snapshot_download  # pyright: ignore[reportUnknownVariableType]
from torch import Tensor, nn

from gatewise import errors
from gatewise.model_card import Results, model_card
from gatewise.serialization import CONFIG, WEIGHTS, details_in, load_model, save_model
from gatewise.spec import ModelSpec

_CARD = "README.md"
_WRITTEN = (WEIGHTS, CONFIG, _CARD)  # in this order: the config holds the checksum of the weights


class PretrainedNet(nn.Module, ModelHubMixin):
    """A trained network and all that is needed to build it again: (N, C, H, W) normalised images -> its output.

    `save_pretrained(folder)` writes `model.safetensors`, `config.json` and, for a run, a model card with its results;
    `from_pretrained(folder or "user/name")` builds it again, from a folder without a network connection;
    `push_to_hub("user/name")` shares it. These are huggingface_hub's, with all their options. A folder is also what
    `gatewise predict` and `load_model` take.

    Args:
        network: to be shared.
        spec: what builds it, as `make_model` takes it: "resnet50+gct".
        details: what else is to be known: num_classes, in_chans and image_size as far as `make_model` is to be told;
            for predictions also classes, mean and std.

    Refused at saving, with `DataError`: a network that is not what `spec` builds.

    Attributes:
        network: itself.
        config: `spec` and `details`, as `config.json` has them.

    >>> import gatewise as gw
    >>> net = PretrainedNet(gw.make_model("resnet20+gct", num_classes=7), "resnet20+gct", num_classes=7)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = net.save_pretrained(folder)
    ...     again = PretrainedNet.from_pretrained(folder)
    >>> again.config["num_classes"], bool((again.network.fc.bias == net.network.fc.bias).all())
    (7, True)
    """

    def __init__(self, network: nn.Module, spec: str | ModelSpec, **details: Any) -> None:
        super().__init__()
        self.network = network
        self.config = {"spec": ModelSpec.parse(spec).to_dict() if isinstance(spec, str) else spec.to_dict(), **details}
        self._results: Results | None = None

    @classmethod
    def of_run(cls, run: str | Path) -> Self:
        """Open a run folder that `train` or `compact` wrote; with `DataError` refused: damaged, not ended."""
        network, config = load_model(run)
        net = cls._of(network, config)
        net._results = Results.of(Path(run), config)
        if net._results.recipe.task == "segment":
            net.config["scale"] = net._results.recipe.image_size
        return net

    @classmethod
    def _of(cls, network: nn.Module, config: Mapping[str, Any]) -> Self:
        return cls(network, ModelSpec.from_dict(config["spec"]), **details_in(config))

    def forward(self, x: Tensor) -> Any:
        return self.network(x)

    @property
    def spec(self) -> ModelSpec:
        """What builds the network."""
        return ModelSpec.from_dict(self.config["spec"])

    def generate_model_card(self, *_: Any, **__: Any) -> ModelCard:
        """Return the card: of a run with its results, otherwise the name of the network alone."""
        told = f"---\nlibrary_name: gatewise\n---\n\n# {self.spec}\n"
        return ModelCard(told if self._results is None else model_card(self._results))

    def save_pretrained(
        self, save_directory: str | Path, *, repo_id: str | None = None, push_to_hub: bool = False, **options: Any
    ) -> str | None:
        """Write the folder; files appear in it only when all are written and the network was built again from them.

        A model card that is there already is kept.
        """
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".", dir=folder) as beside:
            self._write(Path(beside), folder)
            for file in _WRITTEN:
                if file != _CARD or not (folder / file).exists():
                    Path(beside, file).replace(folder / file)
        return self.push_to_hub(repo_id or folder.resolve().name, **options) if push_to_hub else None

    def _write(self, beside: Path, folder: Path) -> None:
        details = {key: value for key, value in self.config.items() if key != "spec"}
        save_model(beside, self.network, self.spec, details)
        try:
            load_model(beside)
        except errors.GatewiseError as error:
            reason = str(error).replace(f"{beside}/", "")
            raise errors.DataError(
                f"{folder} was not written: {self.spec} does not build this network ({reason})"
            ) from None
        (beside / _CARD).write_text(str(self.generate_model_card()))

    @classmethod
    def from_pretrained(  # pyright: ignore[reportIncompatibleMethodOverride]  (the rest would be for the constructor)
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
        token: str | bool | None = None,
    ) -> Self:
        """Build a network again, in eval mode, from a folder or from the hub's "user/name"; see `load_model`.

        Refused with `DataError`: what is neither, and damaged files.
        """
        folder = Path(pretrained_model_name_or_path)
        if not folder.is_dir():
            name = str(pretrained_model_name_or_path)
            asked: dict[str, Any] = {"revision": revision, "cache_dir": cache_dir, "token": token}
            asked |= {"force_download": force_download, "local_files_only": local_files_only}
            try:
                folder = Path(str(snapshot_download(name, allow_patterns=list(_WRITTEN), **asked)))
            except (OSError, ValueError) as error:  # all that huggingface_hub raises of files, names and connections
                reason = " ".join(str(error).split())[:200]
                raise errors.DataError(
                    f"there is no folder {name!r} here, and the hub did not give a network of that name: {reason}"
                ) from error
        return cls._of(*load_model(folder)).eval()
