"""The 15 common corruptions of images in five strengths (Hendrycks and Dietterich, ICLR 2019).

From 64 pixels on, images are corrupted by the package imagecorruptions-imaug as in ImageNet-C. Smaller images get the
constants of CIFAR-10-C, which that package does not have; the operations are the same.
"""

# pyright: basic

import contextlib
import io
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gatewise import errors
from gatewise.core import _validation

KINDS = {
    "noise": ("gaussian_noise", "shot_noise", "impulse_noise"),
    "blur": ("defocus_blur", "glass_blur", "motion_blur", "zoom_blur"),
    "weather": ("snow", "frost", "fog", "brightness"),
    "digital": ("contrast", "elastic_transform", "pixelate", "jpeg_compression"),
}
CORRUPTIONS = tuple(name for names in KINDS.values() for name in names)
STRENGTHS = (1, 2, 3, 4, 5)
SMALL = 64  # sides below this have the constants of CIFAR-10-C
_SIDE = 32.0  # of the images of CIFAR-10-C, to which the displacements of elastic_transform refer


def corrupted(pixels: Tensor, corruption: str, strength: int, number: int) -> Tensor:
    """Return a corrupted image; the result depends on the arguments only.

    Args:
        pixels: (C, H, W), 0 to 255, with one or three channels.
        corruption: a name in `CORRUPTIONS`.
        strength: 1 to 5.
        number: number of the image, which seeds the corruption.

    Raises:
        InvalidValueError: another name, strength or number of channels.
        MissingExtraError: the package is not installed.
    """
    _validation.check_one_of("corruption", corruption, CORRUPTIONS)
    _validation.check_one_of("strength of a corruption", strength, STRENGTHS)
    if pixels.shape[0] not in {1, 3}:
        raise errors.InvalidValueError(
            f"corruptions are defined for images of one or three channels, got {pixels.shape[0]}. Omit --corruptions."
        )
    library = _validation.import_optional("imagecorruptions.corruptions", "corruptions", "corruptions")
    image = pixels.round().clamp(0, 255).to(torch.uint8).expand(3, -1, -1).permute(1, 2, 0).contiguous().numpy()
    seed = zlib.crc32(f"{corruption} {strength} {number}".encode())
    with _seeded(seed):
        if min(image.shape[:2]) < SMALL:
            found = _SMALL[corruption](library, image / 255, _CONSTANTS[corruption][strength - 1]) * 255
        else:
            found = _large(library, image, corruption, strength, seed)
    whole = torch.from_numpy(np.clip(np.asarray(found), 0, 255).astype(np.uint8)).permute(2, 0, 1)
    return whole[: len(pixels)].to(pixels.dtype)


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed numpy's global generator, which the package uses, and restore its state afterwards."""
    state = np.random.get_state()
    np.random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(state)


def _large(library: Any, image: np.ndarray, corruption: str, strength: int, seed: int) -> Any:
    from PIL import Image

    own_seed = {"seed": seed} if corruption in {"glass_blur", "impulse_noise"} else {}
    return getattr(library, corruption)(Image.fromarray(image), strength, **own_seed)


# For small images: a function of the package, an image in [0, 1], (H, W, 3), and a constant; the result is in [0, 1].


def _gaussian_noise(library: Any, x: np.ndarray, c: float) -> np.ndarray:  # noqa: ARG001
    return np.clip(x + np.random.normal(size=x.shape, scale=c), 0, 1)


def _shot_noise(library: Any, x: np.ndarray, c: float) -> np.ndarray:  # noqa: ARG001
    return np.clip(np.random.poisson(x * c) / c, 0, 1)


def _impulse_noise(library: Any, x: np.ndarray, c: float) -> np.ndarray:  # noqa: ARG001
    drawn = np.random.uniform(size=x.shape)
    return np.where(drawn < c / 2, 0.0, np.where(drawn < c, 1.0, x))


def _defocus_blur(library: Any, x: np.ndarray, c: tuple[float, float]) -> np.ndarray:
    return np.clip(library.cv2.filter2D(x, -1, library.disk(radius=c[0], alias_blur=c[1])), 0, 1)


def _glass_blur(library: Any, x: np.ndarray, c: tuple[float, int, int]) -> np.ndarray:  # noqa: ARG001
    sigma, reach, rounds = c
    x = _smooth(x, sigma)
    height, width = x.shape[:2]
    for _ in range(rounds):
        for row in range(height - 1 - reach, reach - 1, -1):
            for column in range(width - 1 - reach, reach - 1, -1):
                right, down = np.random.randint(-reach, reach, size=2)
                other = row + down, column + right
                x[row, column], x[other] = x[other].copy(), x[row, column].copy()
    return np.clip(_smooth(x, sigma), 0, 1)


def _motion_blur(library: Any, x: np.ndarray, c: tuple[int, float]) -> np.ndarray:
    return np.clip(library._motion_blur(x, radius=c[0], sigma=c[1], angle=np.random.uniform(-45, 45)), 0, 1)


def _zoom_blur(library: Any, x: np.ndarray, c: float) -> np.ndarray:
    factors = np.arange(1, c, 0.01)
    zoomed = [_zoomed(library, x, factor) for factor in factors]
    return np.clip((x + sum(zoomed)) / (len(factors) + 1), 0, 1)


def _snow(library: Any, x: np.ndarray, c: tuple[float, float, float, float, int, float, float]) -> np.ndarray:
    mean, deviation, zoom, threshold, radius, sigma, kept = c
    layer = np.random.normal(size=(*x.shape[:2], 1), loc=mean, scale=deviation)
    layer = _zoomed(library, layer, zoom)[..., 0]
    layer = np.clip(np.where(layer < threshold, 0, layer), 0, 1)
    layer = library._motion_blur(layer, radius=radius, sigma=sigma, angle=np.random.uniform(-135, -45))[..., None]
    grey = x @ np.array([[0.299], [0.587], [0.114]])
    paler = kept * x + (1 - kept) * np.maximum(x, 1.5 * grey + 0.5)
    return np.clip(paler + layer + np.rot90(layer, k=2).reshape(layer.shape), 0, 1)


def _frost(library: Any, x: np.ndarray, c: tuple[float, float]) -> np.ndarray:
    import importlib.resources

    folder = importlib.resources.files("imagecorruptions") / "frost"
    names = sorted(file.name for file in folder.iterdir() if file.name.endswith((".png", ".jpg")))
    data = (folder / names[np.random.randint(len(names))]).read_bytes()
    picture = library.cv2.imdecode(np.frombuffer(data, np.uint8), library.cv2.IMREAD_COLOR)
    scale = max(0.2, *(want / have for have, want in zip(picture.shape, x.shape[:2], strict=False)))
    picture = library.cv2.resize(picture, (0, 0), fx=scale, fy=scale)[..., ::-1] / 255
    top, left = (np.random.randint(0, have - want + 1) for have, want in zip(picture.shape, x.shape[:2], strict=False))
    return np.clip(c[0] * x + c[1] * picture[top : top + x.shape[0], left : left + x.shape[1]], 0, 1)


def _fog(library: Any, x: np.ndarray, c: tuple[float, float]) -> np.ndarray:
    amount, decay = c
    side = 1 << (max(x.shape[:2]) - 1).bit_length()
    layer = library.plasma_fractal(mapsize=side, wibbledecay=decay)[: x.shape[0], : x.shape[1], None]
    return np.clip((x + amount * layer) * x.max() / (x.max() + amount), 0, 1)


def _brightness(library: Any, x: np.ndarray, c: float) -> np.ndarray:
    hsv = library.sk.color.rgb2hsv(x)
    hsv[..., 2] = np.clip(hsv[..., 2] + c, 0, 1)
    return library.sk.color.hsv2rgb(hsv)


def _contrast(library: Any, x: np.ndarray, c: float) -> np.ndarray:  # noqa: ARG001
    mean = x.mean((0, 1), keepdims=True)
    return np.clip((x - mean) * c + mean, 0, 1)


def _elastic_transform(library: Any, x: np.ndarray, c: tuple[float, float, float]) -> np.ndarray:
    amount, sigma, affine = (part * min(x.shape[:2]) / _SIDE for part in c)
    height, width = x.shape[:2]
    centre, side = np.array([height // 2, width // 2]), min(height, width) // 3
    corners = (centre + side * np.array([[1, 1], [1, -1], [-1, -1]])).astype(np.float32)
    moved = corners + np.random.uniform(-affine, affine, size=corners.shape).astype(np.float32)
    matrix = library.cv2.getAffineTransform(corners, moved)
    x = library.cv2.warpAffine(x, matrix, (width, height), borderMode=library.cv2.BORDER_REFLECT_101)
    if not amount:
        return np.clip(x, 0, 1)
    down, right = (_smooth(np.random.uniform(-1, 1, (height, width)), sigma, truncate=3.0) * amount for _ in range(2))
    rows, columns = np.mgrid[:height, :width]
    found = [
        library.map_coordinates(x[..., channel], (rows + down, columns + right), order=1, mode="reflect")
        for channel in range(3)
    ]
    return np.clip(np.stack(found, -1), 0, 1)


def _pixelate(library: Any, x: np.ndarray, c: float) -> np.ndarray:  # noqa: ARG001
    image, box = _as_picture(x), 4  # PIL.Image.Resampling.BOX
    small = image.resize((max(1, int(x.shape[1] * c)), max(1, int(x.shape[0] * c))), box)
    return np.asarray(small.resize(image.size, box)) / 255


def _jpeg_compression(library: Any, x: np.ndarray, c: int) -> np.ndarray:  # noqa: ARG001
    from PIL import Image

    buffer = io.BytesIO()
    _as_picture(x).save(buffer, "JPEG", quality=c)
    return np.asarray(Image.open(buffer)) / 255


def _as_picture(x: np.ndarray) -> Any:
    from PIL import Image

    return Image.fromarray((255 * x).round().astype(np.uint8))


def _smooth(x: np.ndarray, sigma: float, truncate: float = 4.0) -> np.ndarray:
    """Blur rows and columns by a Gaussian."""
    from scipy.ndimage import gaussian_filter

    return gaussian_filter(x, (sigma, sigma, *(0,) * (x.ndim - 2)), mode="nearest", truncate=truncate)


def _zoomed(library: Any, x: np.ndarray, factor: float) -> np.ndarray:
    """Return the centre of an image, enlarged to the size of the image."""
    large = library.clipped_zoom(x, factor)
    top, left = ((have - want) // 2 for have, want in zip(large.shape[:2], x.shape[:2], strict=True))
    return large[max(0, top) :, max(0, left) :][: x.shape[0], : x.shape[1]]


_SMALL: dict[str, Callable[[Any, np.ndarray, Any], np.ndarray]] = {name: globals()[f"_{name}"] for name in CORRUPTIONS}
_CONSTANTS: dict[str, list[Any]] = {  # of CIFAR-10-C, by strength
    "gaussian_noise": [0.04, 0.06, 0.08, 0.09, 0.10],  # standard deviation
    "shot_noise": [500, 250, 100, 75, 50],  # photons for the value 1
    "impulse_noise": [0.01, 0.02, 0.03, 0.05, 0.07],  # share of values
    "defocus_blur": [(0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)],  # radius, blur of the disk
    "glass_blur": [(0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)],  # sigma, reach, rounds
    "motion_blur": [(6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)],  # radius, sigma
    "zoom_blur": [1.06, 1.11, 1.16, 1.21, 1.26],  # largest factor, in steps of 0.01
    "snow": [  # mean, deviation, zoom, threshold, radius, sigma, share of the image
        (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
        (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
        (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
        (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
        (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
    ],
    "frost": [(1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)],  # shares of the image and of the frost
    "fog": [(0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)],  # amount, decay of the fractal
    "brightness": [0.05, 0.1, 0.15, 0.2, 0.3],  # added to the value
    "contrast": [0.75, 0.5, 0.4, 0.3, 0.15],  # factor
    "elastic_transform": [  # displacement, sigma, affine displacement in pixels of an image of 32 x 32
        (0, 0, 2.56),
        (1.6, 6.4, 2.24),
        (2.56, 1.92, 1.92),
        (3.2, 1.28, 1.6),
        (3.2, 0.96, 0.96),
    ],
    "pixelate": [0.95, 0.9, 0.85, 0.75, 0.65],  # factor of the sides
    "jpeg_compression": [80, 65, 58, 50, 40],  # quality
}
