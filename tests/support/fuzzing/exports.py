"""Targets that read exported files."""

from gatewise.exporting import details_of
from gatewise.exporting.prediction import predict
from support.fuzzing.box import Box
from support.fuzzing.runs import everything
from support.fuzzing.target import Call, target


@target(50, exported=True)
def exported_file(box: Box) -> Call:
    file = box.copied("net.onnx")
    file.write_bytes(box.hostile.changed_bytes(file.read_bytes()))
    if box.rng.random() < 0.2:
        file = file.rename(file.with_suffix(box.rng.choice((".onnx", ".pt2", ".bin", ""))))
    picture_file = box.copied("images/PNG-L.png")
    if box.rng.random() < 0.3:
        return lambda: details_of(file)
    return lambda: everything(predict(file, [picture_file]))
