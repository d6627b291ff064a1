"""Mutants of gatewise.inference."""

from mutants import drop_call, replace

CHANGES = {
    "inference/forms.py": {
        "FactorSlot.take": {
            "inference: factors remain for the next image": replace(
                "kept is not None and kept[0] is x", "kept is not None"
            ),
        },
        "check_no_gradients": {
            "inference: gradients of overwritten maps": replace("torch.is_grad_enabled() and x.requires_grad", "False"),
        },
        "FusedNormReluGate._factor_slot": {
            "inference: a hook on the gate sees no factors": replace(
                "self.reader is None or count_hooks(self.gate, 'output') or count_hooks(self.reader.layer, 'input') > 1",
                "self.reader is None or count_hooks(self.reader.layer, 'input') > 1",
            ),
            "inference: a hook on the convolution sees no factors": replace(
                "self.reader is None or count_hooks(self.gate, 'output') or count_hooks(self.reader.layer, 'input') > 1",
                "self.reader is None or count_hooks(self.gate, 'output')",
            ),
        },
        "FusedNormReluGate._affine": {
            "inference: shift without the mean": replace("-self.norm.running_mean.to(dtype)", "0"),
        },
    },
    "inference/optimize.py": {
        "InferenceNet.undo": {
            "inference: undo leaves forms": drop_call("layer.__dict__.pop('forward', None)"),
        },
        "_calls_of_gates.reached": {
            "called gates: the second call is the first": replace(
                "layer if straight and path not in calls else ''", "layer if straight else calls.get(path) or ''"
            ),
        },
        "_fold": {
            "inference: norms are not folded": replace(
                "norm is not None and (count_hooks(layer, 'output') or not _foldable(norm))", "norm is not None"
            ),
        },
        "_prove": {
            "inference: outputs are not compared": replace("not error <= bound", "error != error"),
        },
    },
}
