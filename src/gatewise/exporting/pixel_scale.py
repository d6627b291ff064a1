"""The scale of pixels that mean and standard deviation refer to."""

from collections.abc import Sequence

from gatewise import errors


def check_pixel_scale(channels: int, mean: Sequence[float] | None, std: Sequence[float] | None) -> None:
    """Raise if mean or std, of pixels from 0 to 255, do not fit the channels or are of pixels from 0 to 1.

    Raises:
        InvalidValueError: another number of values than channels, or values such as 0.485 and 0.229.

    >>> check_pixel_scale(1, [127.5], [127.5])
    """
    for name, values in (("mean", mean), ("std", std)):
        if values is not None and len(values) != channels:
            raise errors.InvalidValueError(
                f"{name} must have one value for each of {channels} channels, got {list(values)}."
            )
    if mean is not None and std is not None and max(mean) <= 1 and max(std) < 1:
        scaled = [round(255 * value, 3) for value in (*mean, *std)]
        raise errors.InvalidValueError(
            f"mean and std are of pixels from 0 to 255, got {list(mean)} and {list(std)}. Multiply them by 255: mean "
            f"{scaled[:channels]}, std {scaled[channels:]}."
        )
