"""What the gates `se` and `gc` share: x * factors + offsets, one of each per sample and channel."""

from torch import Tensor

from gatewise.gates.inference_form import InferenceForm, InferencePattern, check_no_gradients
from gatewise.gates.kernels.backend import why_not_fusible
from gatewise.gates.kernels.channels import SharedGradient, scale_channels
from gatewise.gates.registry import Gate


class ChannelScaling(Gate):
    """A gate that at inference overwrites its input where it may, if a kernel can run.

    Attributes:
        backend: "reference" keeps the definition at inference.
    """

    backend: str

    def channel_terms(self, x: Tensor, link: SharedGradient) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Return the arguments of `scale_channels`: x, the factor of each channel and the offset of each channel."""
        raise NotImplementedError

    def why_not_fused(self, x: Tensor) -> str | None:
        """Return the reason why a fused kernel cannot replace this gate for `x`, or None."""
        return why_not_fusible(x)

    def inference_form(self, pattern: InferencePattern) -> InferenceForm | None:
        if self.backend == "reference":
            return None
        return InferenceForm(self._run_in_place, in_place=True) if pattern.owned else InferenceForm(self.forward)

    def _run_in_place(self, x: Tensor) -> Tensor:
        check_no_gradients(x)
        if self.why_not_fused(x) or x.device.type != "cpu":
            return type(self).forward(self, x)
        x, factors, offsets = self.channel_terms(x, SharedGradient(x))
        return scale_channels(x, factors, offsets, out=x)
