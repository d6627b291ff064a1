"""Mutants of gatewise.exporting."""

from mutants import drop_call, remove, replace

CHANGES = {
    "exporting/formats/onnx.py": {
        "Onnx.write": {
            "free axes have no names": replace("(axes,)", "None"),
        },
    },
    "exporting/formats/registry.py": {
        "register_format": {
            "two formats share a suffix": replace("name == known.name or suffix == known.suffix", "name == known.name"),
        },
    },
    "exporting/pixel_scale.py": {
        "check_pixel_scale": {
            "mean and std of pixels from 0 to 1": replace("max(mean) <= 1", "False"),
        },
    },
    "exporting/reader.py": {
        "opened": {
            "an archive of torch.export is opened": replace(
                "form is None or form.why_not_opened is not None", "form is None"
            ),
        },
    },
    "exporting/job.py": {
        "Job.write": {
            "a file for torch is not read again": replace(
                "agreement(reference, chosen.open(file), self.compared)", "agreement(reference, network, self.compared)"
            ),
        },
        "Job.write_routes": {
            "routes that no image takes are not compared": remove(
                "check_agreement(out, agreement(reference, chosen.open(file), compared[:1]))"
            ),
        },
        "_temporary_file": {
            "a failed export removes the old file": drop_call("with_name"),
        },
        "_by_route": {
            "each route is quantised over all images": replace("images[route == number]", "images"),
        },
    },
    "exporting/agreement.py": {
        "check_agreement": {
            "other gates accepted": replace(
                "difference > _TOLERANCE or results['flipped'] > _FLIPPED * results['images']",
                "difference > _TOLERANCE",
            ),
            "different logits accepted": replace(
                "difference > _TOLERANCE or results['flipped'] > _FLIPPED * results['images']",
                "results['flipped'] > _FLIPPED * results['images']",
            ),
        },
    },
    "exporting/forms.py": {
        "chosen_form": {
            "a file of other forms than asked for": replace("form != 'masked'", "False"),
            "a network with routes is written masked": replace(
                "routes is not None or any(of_routes.values())", "False"
            ),
            "options of routes are ignored": replace("is_given and form != 'routes'", "False"),
        },
    },
    "exporting/global_pooling.py": {
        "_keeps_axes": {
            "a mean that drops its axes is pooled": replace("not keeps", "False"),
        },
    },
    "exporting/quantisation.py": {
        "Int8.results": {
            "int8 scored in float32": replace("_score(quantised, self.run)", "_score(plain, self.run)"),
        },
    },
    "exporting/route_graph.py": {
        "_axes_of_image": {
            "maps of any size are written into those of the image": replace(
                "dimension.dim_param and dimension.dim_param not in sides", "False"
            ),
        },
    },
    "exporting/runtime_bench.py": {
        "_Forms.file": {
            "bench makes other files than export": replace("constant=self.images", "constant=8"),
        },
        "_advice": {
            "a network without its gates is recommended": replace("forms.dense_is_another", "False"),
        },
        "_fastest": {
            "int8 is never recommended": replace("any_precision or key[0] == exact", "key[0] == exact"),
            "int8 is compared with dense in int8": replace("PRECISIONS", "reversed(PRECISIONS)"),
        },
        "_with_speed": {
            "gates that save no time are not named": replace("1 / ratio >= _GAIN", "False"),
            "the verdict divides medians": replace(
                "times[dense].times(times[best]).median_s", "times[dense].median_s / times[best].median_s"
            ),
        },
        "bench_runtimes": {
            "an absent runtime is found late": remove("package(name)"),
        },
    },
    "exporting/runtimes.py": {
        "_compiled": {
            "the choice of routes is compiled": replace("not isinstance(copied, RoutedNet)", "True"),
        },
    },
    "exporting/writer.py": {
        "_image_values": {
            "images stay on the GPU": drop_call("cpu"),
            "images keep their precision": drop_call("float"),
        },
        "_in_float32": {
            "networks that Python cannot copy are not exported": replace(
                "full_copy(net)", "__import__('copy').deepcopy(net)"
            ),
            "networks keep their precision": replace("t.dtype not in _OTHER_PRECISIONS", "True"),
            "autocast around a network is exported": replace("FORWARD_OF_ACCELERATE in vars(net)", "False"),
        },
        "_routes": {
            "equal routes are written twice": drop_call("unique"),
        },
        "_check_format_has": {
            "int8 with a format that has none": replace("not chosen.quantises or form == 'skip'", "form == 'skip'"),
        },
        "export_run": {
            "ranges from the validation images": drop_call("run.of('train')", nth=2),
        },
        "export": {
            "networks of torch.jit are exported": replace("isinstance(net, torch.jit.ScriptModule)", "False"),
            "the network is left in eval mode": replace("evaluation_mode(net)", "torch.no_grad()"),
        },
        "_checked_output": {
            "an output without an entry for each image is exported": replace(
                "found[0].shape[:1] != batch.shape[:1]", "False"
            ),
            "the first of several outputs is exported": replace("len(found) != 1", "not found"),
        },
    },
    "exporting/program.py": {
        "exported_program": {
            "the batch of an exported file is fixed": replace(
                "{0: torch.export.Dim('batch', min=1, max=2 ** 16)}", "{}"
            ),
            "the last axis of volumes is fixed": replace("range(2, example.dim())", "(2, 3)"),
            "the size of images to segment is fixed": replace("free_size", "False"),
        },
    },
}
