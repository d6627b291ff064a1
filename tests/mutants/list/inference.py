"""Mutants of gatewise.inference."""

from mutants import drop_call, remove, replace

CHANGES = {
    "gates/inference_form.py": {
        "check_no_gradients": {
            "inference: gradients of overwritten maps": replace("torch.is_grad_enabled() and x.requires_grad", "False"),
        },
    },
    "gates/channel_scaling.py": {
        "ChannelScaling.inference_form": {
            "called gates: se writes over a map that others read": replace("pattern.owned", "True"),
        },
    },
    "gates/gated_channel_transform.py": {
        "GatedChannelTransform.inference_form": {
            "inference: the definition is replaced": replace("self.backend == 'reference'", "False"),
        },
    },
    "inference/forms.py": {
        "GateBeforeConvolution._pays": {
            "inference: maps without a kernel are timed": remove(
                "if self.form.factors(x.clone()) is None:\n    return False"
            ),
        },
        "FactorSlot.take": {
            "inference: factors remain for the next image": replace(
                "kept is not None and kept[0] is x", "kept is not None"
            ),
        },
        "GateBeforeConvolution._observed": {
            "inference: a hook on the gate sees no factors": replace(
                "count_hooks(self.gate, 'output') > 0 or count_hooks(self.reader.layer, 'input') > 1",
                "count_hooks(self.reader.layer, 'input') > 1",
            ),
            "inference: a hook on the convolution sees no factors": replace(
                "count_hooks(self.gate, 'output') > 0 or count_hooks(self.reader.layer, 'input') > 1",
                "count_hooks(self.gate, 'output') > 0",
            ),
        },
        "NormOnly.terms": {
            "inference: shift without the mean": replace(
                "scale_and_shift(self.norm, dtype)", "(scale_and_shift(self.norm, dtype)[0], self.norm.bias)"
            ),
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
        "_place": {
            "inference: the ReLU that a gate applies runs too": remove("if form.relu:\n    ..."),
        },
        "_prove": {
            "inference: outputs are not compared": replace("not error <= bound", "error != error"),
        },
    },
}
