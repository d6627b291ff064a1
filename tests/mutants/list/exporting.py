"""Mutants of gatewise.exporting."""

from mutants import drop_call, replace

CHANGES = {
    "exporting/reader.py": {
        "opened": {
            "an archive of torch.export is opened": replace(
                "if file.suffix != '.onnx':\n    ...",
                "if file.suffix == '.pt2':\n    return Exported(file, torch.export.load(file).module(), '')\nif file.suffix != '.onnx':\n    ...",
            ),
        },
    },
    "exporting/writer.py": {
        "export_run": {
            "a file for torch is not read again": replace(
                "_reopened(file, to)", "_reopened(file, to) if to == 'onnx' else network"
            ),
        },
        "_temporary_file": {
            "a failed export removes the old file": drop_call("with_name"),
        },
        "_check_agreement": {
            "other gates accepted": replace(
                "results['difference'] > _TOLERANCE or results['flipped'] > _FLIPPED * results['images']",
                "results['difference'] > _TOLERANCE",
            ),
            "different logits accepted": replace(
                "results['difference'] > _TOLERANCE or results['flipped'] > _FLIPPED * results['images']",
                "results['flipped'] > _FLIPPED * results['images']",
            ),
        },
        "_quantised": {
            "int8 scored in float32": replace("_score(small, run)", "_score(plain, run)"),
            "ranges from the validation images": drop_call("run.of('train')"),
        },
        "exported_program": {
            "the batch of an exported file is fixed": replace(
                "{0: torch.export.Dim('batch', min=1, max=2 ** 16)}", "{}"
            ),
            "the size of images to segment is fixed": replace("free_size", "False"),
        },
    },
}
