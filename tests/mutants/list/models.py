"""Mutants of gatewise.models."""

from mutants import drop_call, flip, off_by_one, remove, replace

CHANGES = {
    "models/build.py": {
        "build_backbone": {
            "a seeded network forgets its options": replace(
                "_backbone(spec.model, options)",
                "_backbone(spec.model, options if seed is None else spec.model_options)",
            ),
            "a network is built without its gates": remove(
                "insert_all(model, tuple((choice for choice in spec.gates if not choice.is_gater)))"
            ),
            "the specs option overrides the argument": replace(
                "{**spec.model_options, **options}", "{**options, **spec.model_options}"
            ),
            "the call overrides the text": replace("(given := spec.model_options.get(name, value)) != value", "False"),
        },
        "_check_no_file_options": {
            "a spec opens files": replace("options.get(option)", "False"),
        },
    },
    "models/cifar_resnet.py": {
        "ChannelPadding.forward": {
            "padding puts the zeros before the channels": replace(
                "(0, 0, 0, 0, 0, self.channels)", "(0, 0, 0, 0, self.channels, 0)"
            ),
            "padding takes the odd positions": replace(
                "x[:, :, ::self.stride, ::self.stride]",
                "x[:, :, self.stride - 1::self.stride, self.stride - 1::self.stride]",
            ),
        },
        "_shortcut": {
            "the kind of shortcut is ignored": replace("SHORTCUTS[kind]", "_projection"),
        },
        "BasicBlock.forward": {
            "the shortcut is omitted": replace("self.bn2(self.conv2(y)) + self.shortcut(x)", "self.bn2(self.conv2(y))"),
        },
        "BottleneckBlock.__init__": {
            "a bottleneck is half as wide as its output": replace("outputs // EXPANSION", "outputs // 2"),
            "a bottleneck takes its stride in the first convolution": replace(
                "self.conv1 = nn.Conv2d(inputs, inner, 1, bias=False)",
                "self.conv1, stride = (nn.Conv2d(inputs, inner, 1, stride, bias=False), 1)",
            ),
        },
        "CifarResNet.__init__": {
            "the first stage halves the resolution too": replace("1 if stage == 0 else 2", "2"),
        },
    },
    "models/families.py": {
        "": {
            "the ResNet-164 of GaterNet is the usual one": replace(
                "ResNetConfig(blocks=(18, 18, 18), widths=(16, 128, 256), bottleneck=True)",
                "ResNetConfig(blocks=(18, 18, 18), widths=(64, 128, 256), stem=16, bottleneck=True)",
            ),
            "the full network is built small": replace(
                "{'u2net': FULL, 'u2net_small': SMALL}", "{'u2net': SMALL, 'u2net_small': SMALL}"
            ),
            "heavy import": replace("import inspect", "import inspect; import timm"),
        },
        "_wider_form": {
            "a budget of parameters is ignored": replace("parameters is None", "True"),
            "the wider network has no room for the gater": replace(
                "form.parameter_count(**options) + form.gater_parameter_count(**images)",
                "form.parameter_count(**options)",
            ),
        },
        "_scaled_form": {
            "scaled networks forget their width": replace("wider", "False"),
        },
        "_gated_u2net": {
            "the sides are gated": remove("include='\\\\.conv$'"),
            "the shortcut's convolution is not gated": replace("'\\\\.conv$'", "'\\\\d\\\\.conv$'"),
        },
        "_stride_first": {
            "stride left in the 3x3": replace(
                "block.conv1.stride, block.conv2.stride = (block.conv2.stride, block.conv1.stride)", "pass"
            ),
        },
        "_basic": {
            "one block too few": replace("(depth - 2) // 6", "(depth - 2) // 6 - 1"),
        },
    },
    "models/form.py": {
        "ResNetConfig.gater_parameter_count": {
            "the gater's size is counted without its second layer": replace("(8 + 1) * self.gates", "self.gates"),
        },
        "ResNetConfig.wider": {
            "the largest network below the budget counts as the nearest": replace(
                "low if budget - count(low) <= count(high) - budget else high", "low"
            ),
        },
        "ResNetConfig._scaled.scaled": {
            "widths are rounded down": replace("step * width + widest", "step * width"),
        },
    },
    "models/segmenter.py": {
        "Segmenter.__init__": {
            "any stride accepted": remove("_validation.check_one_of('output_stride', output_stride, STRIDES)"),
        },
        "Segmenter.forward": {
            "the head sees the map without context": replace("self.context(last)", "last"),
            "the auxiliary head reads the last map": replace(
                "self.auxiliary(middle)", "self.auxiliary(last[:, :middle.shape[1]])"
            ),
            "the auxiliary map comes in eval mode": replace(
                "self.training and self.auxiliary is not None", "self.auxiliary is not None"
            ),
        },
        "Segmenter.pretrained_cfg": {
            "timm's normalisation of a backbone forgotten": replace("self.backbone.pretrained_cfg", "{}"),
        },
        "make_segmenter": {
            "the seed moves the global generator": replace("seeded(seed)", "seeded(None)"),
            "a place with context_at is accepted": replace("gate.is_gater or gate.place", "gate.is_gater"),
            "without a seed all weights are alike": replace("seeded(seed)", "seeded(seed or 0)"),
        },
        "_features": {
            "the stride is not passed on": replace("{'output_stride': output_stride}", "{}"),
            "the stride of a backbone is not checked": replace(
                "not set(features[-1].shape[2:]) <= expected or len(features) < _MIN_FEATURES",
                "len(features) < _MIN_FEATURES",
            ),
            "three maps are enough": replace(
                "not set(features[-1].shape[2:]) <= expected or len(features) < _MIN_FEATURES",
                "not set(features[-1].shape[2:]) <= expected",
            ),
            "probing trains the backbone": replace(
                "with evaluation_mode(backbone), torch.no_grad():\n    ...", "with torch.no_grad():\n    ..."
            ),
            "unknown backbones reach timm": replace(
                "'/' not in name and ':' not in name and (base not in known)", "False"
            ),
            "pretrained is forgotten": replace("pretrained", "False", nth=1),
        },
        "_late_layers": {
            "stages begin at c2": replace("features[-_MIN_FEATURES]", "features[-_MIN_FEATURES - 1]"),
            "stages begin at c4": off_by_one("-_MIN_FEATURES"),
        },
        "_head": {
            "dropout is fixed": replace("nn.Dropout2d(dropout)", "nn.Dropout2d(0.1)"),
            "dropout takes positions": replace("nn.Dropout2d", "nn.Dropout"),
        },
        "_resized": {
            "the map is scaled with aligned corners": flip("False"),
        },
    },
    "models/u2net.py": {
        "": {
            "the fifth encoder is not dilated": replace("(7, 6, 5, 4)", "(7, 6, 5, 4, 4)"),
            "the middle of the last decoder is 32 wide": replace(
                "((256, 512), (128, 256), (64, 128), (32, 64), (16, 64))",
                "((256, 512), (128, 256), (64, 128), (32, 64), (32, 64))",
            ),
        },
        "ResidualU.__init__": {
            "the bottom is not dilated": replace("[1] * (height - 1) + [2]", "[1] * height"),
            "the decoder of RSU-4F is not dilated": replace("dilations[step]", "1"),
        },
        "ResidualU.forward": {
            "the bottom is pooled": replace("0 < step < len(self.down) - 1", "0 < step"),
            "the shortcut is the input's": replace("x + shortcut", "x"),
        },
        "U2Net.forward": {
            "the sides are in another order": drop_call("reversed"),
            "eval mode gives seven maps": replace("(fused, *sides) if self.training else fused", "(fused, *sides)"),
        },
        "_halved": {
            "pooling floors": flip("True"),
        },
        "_resized": {
            "corners are aligned": flip("False"),
        },
    },
    "models/scaling.py": {
        "_widths_of_timm": {
            "an option that scales nothing": replace("narrow < _parameters_of(spec, images) < wide", "True"),
        },
        "_with_widths": {
            "widths are no multiples": replace("unit * max(1, round(width * factor / unit))", "round(width * factor)")
        },
        "_constructor_arguments": {"defaults of a constructor unknown": remove("seen[0].apply_defaults()")},
        "nearest_width": {
            "the last width instead of the nearest": replace("abs(math.log(pair[0] / target))", "pair[0]"),
            "each width measured again": replace("str(spec) not in found", "True"),
        },
    },
    "models/network_functions.py": {
        "network_function": {"a network function needs no import": replace("name not in _imported", "False")},
        "import_network": {
            "modules of the working folder not found": remove("sys.path.insert(0, here)"),
            "any attribute is a network": replace("not callable(function)", "False"),
        },
        "build_with_function": {"anything is a network": replace("not isinstance(network, nn.Module)", "False")},
    },
    "models/create.py": {
        "with_gates": {
            "gates of a run not inserted": remove("insert_all(network, choices)"),
            "gates of the network count as those of a run": replace(
                "isinstance(gate, gate_spec(choice.name).gate)", "True"
            ),
        },
    },
}
