"""Export a trained network to ONNX, and classify images without torch.

    python examples/predict_with_onnx_alone.py [--smoke]            trains, exports, and predicts in another process
    python examples/predict_with_onnx_alone.py FILE.onnx IMAGE...   predicts: needs onnxruntime, numpy and pillow only

The file contains the names of the classes and the normalisation. This takes about half a minute; --smoke takes
seconds.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path


def predict(file: str, image: str) -> str:
    """Return the class of an image. You can copy this function into your own program."""
    import numpy as np
    import onnxruntime
    from PIL import Image, ImageOps

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    details = json.loads(session.get_modelmeta().custom_metadata_map["gatewise"])
    height, width = details["image_size"]
    picture = Image.open(image).convert("L" if details["in_chans"] == 1 else "RGB")
    picture = ImageOps.fit(picture, (width, height))
    pixels = np.asarray(picture, np.float32).reshape(1, height, width, details["in_chans"]).transpose(0, 3, 1, 2)
    mean, std = (np.array(details[key], np.float32).reshape(1, -1, 1, 1) for key in ("mean", "std"))
    logits = session.run(["logits"], {"image": (pixels - mean) / std})[0]
    return details["classes"][logits[0].argmax()]


def export(folder: Path, epochs: int) -> tuple[Path, list[Path]]:
    """Train a network with gct, export it, and return the file and four validation images as PNG files."""
    import gatewise as gw
    from gatewise.data import load_dataset
    from gatewise.exporting import export_run

    gw.train(gw.Recipe(data="digits", model="resnet20", gate="gct", epochs=epochs), folder / "run")
    file = folder / "digits.onnx"
    found = export_run(folder / "run", file, to="onnx")
    print(f"{found['bytes']:,} bytes; logits differ by {found['difference']:.0e} on {found['images']} images")
    images = load_dataset("digits").validation
    pictures = [folder / f"{number}.png" for number in range(4)]
    for number, picture in enumerate(pictures):
        images.picture(number).save(picture)
    return file, pictures


if len(sys.argv) > 2:
    for image in sys.argv[2:]:
        print(f"{image}: {predict(sys.argv[1], image)}")
    print(f"torch was loaded: {'torch' in sys.modules}")
else:
    file, pictures = export(Path(tempfile.mkdtemp()), epochs=1 if "--smoke" in sys.argv else 8)
    subprocess.run([sys.executable, __file__, file, *pictures], check=True)
