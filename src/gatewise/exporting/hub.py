"""Share trained networks as folders or on the Hugging Face Hub: weights, `config.json` and a model card."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from huggingface_hub import ModelCard, ModelHubMixin, snapshot_download  # pyright: ignore[reportUnknownVariableType]
from torch import Tensor, nn

from gatewise import errors
from gatewise.core.hub_connection import cache_if_unreachable
from gatewise.core.reasons import as_data_error
from gatewise.core.run_files import CONFIG, WEIGHTS
from gatewise.exporting.model_card import model_card
from gatewise.gates.spec import ModelSpec
from gatewise.models.network_functions import network_function
from gatewise.models.serialization import details_in, load_model, save_model
from gatewise.models.stored_spec import abridged, as_stored
from gatewise.training.runs import Run

_CARD = "README.md"
_WRITTEN = (WEIGHTS, CONFIG, _CARD)  # in this order: the config holds the checksum of the weights


class PretrainedNet(nn.Module, ModelHubMixin):
    """A trained network with the metadata to rebuild it: (N, C, H, W) normalised images -> output of the network.

    `save_pretrained(folder)` writes `model.safetensors`, `config.json` and a model card, for a run with its results.
    `from_pretrained(folder or "user/name")` rebuilds the network; a folder needs no internet connection.
    `push_to_hub("user/name")` uploads it. All three take the options of `huggingface_hub.ModelHubMixin`.
    `gatewise predict` and `load_model` read the same folders.

    Args:
        network: the trained network.
        spec: specification that `make_model` builds the network from, for example "resnet50+gct".
        details: further entries of `config.json`: num_classes, in_chans and image_size if `make_model` needs them;
            classes, mean and std for `gatewise predict`.

    Attributes:
        network: the trained network.
        config: `spec` and `details`, as in `config.json`.

    Raises:
        DataError: on saving, if `spec` does not build this network.

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
        self._run: Run | None = None

    @classmethod
    def of_run(cls, run: str | Path) -> Self:
        """Open a run folder of `train` or `compact`; raise `DataError` if the run is damaged or has not finished."""
        opened = Run.open(run)
        opened.check_image_entries()
        _ = opened.metrics, opened.predictions  # read now: the folder may be gone when the card is written
        net = cls._of(opened.network(), opened.config)
        net._run = opened
        if opened.task.any_size:
            net.config["scale"] = opened.scale
        return net

    @classmethod
    def _of(cls, network: nn.Module, config: Mapping[str, Any]) -> Self:
        return cls(network, as_stored(config["spec"]), **details_in(config))

    def forward(self, x: Tensor) -> Any:
        return self.network(x)

    @property
    def spec(self) -> ModelSpec:
        """Specification of the network."""
        return ModelSpec.from_dict(self.config["spec"])

    def generate_model_card(self, *_: Any, **__: Any) -> ModelCard:
        """Return the model card: with results for a run, otherwise only the name of the network."""
        header = f"---\nlibrary_name: gatewise\n---\n\n# {abridged(self.spec)}\n"
        return ModelCard(header if self._run is None else model_card(self._run))

    def save_pretrained(
        self, save_directory: str | Path, *, repo_id: str | None = None, push_to_hub: bool = False, **options: Any
    ) -> str | None:
        """Write weights, `config.json` and model card to a folder; an existing model card is kept.

        The files are moved into the folder only after all are written and the network has been rebuilt from them.

        Args:
            save_directory: folder to write.
            repo_id: name on the hub; None takes the name of the folder.
            push_to_hub: whether to upload the folder as well.
            options: for `push_to_hub`.

        Returns:
            The URL of the upload, or None.

        Raises:
            DataError: `spec` does not build this network.
            InvalidValueError: `spec` names a function of the user that was not imported by
                `gatewise.models.import_network`.
        """
        if (function := self.spec.function) is not None:
            network_function(function)
        folder = Path(save_directory)
        existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.is_dir())
        with tempfile.TemporaryDirectory(prefix=".", dir=existing) as temporary:
            self._write(Path(temporary), folder)
            folder.mkdir(parents=True, exist_ok=True)
            for file in _WRITTEN:
                if file != _CARD or not (folder / file).exists():
                    Path(temporary, file).replace(folder / file)
        return self.push_to_hub(repo_id or folder.resolve().name, **options) if push_to_hub else None

    def _write(self, temporary: Path, folder: Path) -> None:
        details = {key: value for key, value in self.config.items() if key != "spec"}
        save_model(temporary, self.network, self.spec, details)
        try:
            load_model(temporary)
        except errors.GatewiseError as error:
            reason = str(error).replace(f"{temporary}/", "")
            raise errors.DataError(
                f"{folder} was not written: {abridged(self.spec)} does not build this network ({reason})"
            ) from None
        (temporary / _CARD).write_text(str(self.generate_model_card()), "utf-8")

    @classmethod
    def from_pretrained(  # pyright: ignore[reportIncompatibleMethodOverride]  (no further options: the mixin would pass them to the constructor)
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
        token: str | bool | None = None,
    ) -> Self:
        """Rebuild a network, in eval mode, from a folder or from "user/name" on the hub.

        The options after the name are those of `huggingface_hub.snapshot_download`.

        Raises:
            DataError: there is no such folder and no such name on the hub, or a file is damaged.
        """
        folder = Path(pretrained_model_name_or_path)
        if not folder.is_dir():
            name = str(pretrained_model_name_or_path)
            options: dict[str, Any] = {"revision": revision, "cache_dir": cache_dir, "token": token}
            options |= {"force_download": force_download, "local_files_only": local_files_only}
            problem = "is not a folder, and cannot be downloaded from the hub"
            # errors of files, names and connections
            with as_data_error(repr(name), problem, of=(OSError, ValueError)), cache_if_unreachable():
                folder = Path(str(snapshot_download(name, allow_patterns=list(_WRITTEN), **options)))
        return cls._of(*load_model(folder)).eval()
