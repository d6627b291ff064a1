"""How a source is read and divided: the options that `--data` needs where a folder or table does not say it itself."""

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

from gatewise import errors
from gatewise.core import _validation
from gatewise.data.pixel_format import parse_channels, parse_ranges

Kind = Literal["class", "classes", "number"]  # what a task learns of an image
ON_BROKEN = ("stop", "skip")
NO_SPLIT = "none"  # the value of test_split that leaves a test split out


def option(default: Any, description: str, *, none_is_word: bool = False) -> Any:
    """Return a dataclass field with a default and a help text for the command line and the documentation.

    Args:
        default: its default.
        description: the help text.
        none_is_word: whether "none" is one of the texts that the field can be; otherwise None is typed so.
    """
    return dataclasses.field(default=default, metadata={"help": description, "none_is_word": none_is_word})


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How a source is read and divided; each field is also a flag of the command line.

    Attributes:
        stops_at_many_broken: whether many images that cannot be read are an error, also if they are to be skipped.
    """

    stops_at_many_broken: ClassVar[bool] = True

    validation_split: float | str = option(
        0.2,
        "what is for validation: a fraction (held out only where the data has no validation split), the name of a "
        "split, or COLUMN=VALUE of a table",
    )
    test_split: float | str | None = option(
        None,
        "what is scored once, after the last epoch: a fraction, the name of a split, COLUMN=VALUE, or none; by default "
        "the split called test, if validation is another one",
        none_is_word=True,
    )
    split_seed: int = option(0, "seed of the images that are held out; --seed changes none of them")
    group: str | None = option(
        None,
        "column of a table, or a regular expression over the path with one pair of parentheses ('(patient\\d+)_'); "
        "images of one group are never divided",
    )
    image_column: str | None = option(None, "column of a table with the images; none finds it")
    label_column: str | None = option(
        None, "column of a table with the labels, or several (a,b,c) of 0 and 1 or of numbers; none finds it"
    )
    label_delimiter: str | None = option(
        None, "for multilabel, the text between the labels of one image; none takes the first of | ; , and space"
    )
    data_root: str | None = option(None, "folder to which the paths in a table are relative; none finds it")
    channels: str = option(
        "auto",
        "which bands of image files are used: auto (grey if all are, else colour), rgb, gray, all, or numbers from 1 "
        "(4,3,2)",
    )
    value_range: str = option(
        "auto",
        "values that become 0 and 255 (0,4095), one pair or one for each channel joined by +; auto leaves 8 bits as "
        "they are and takes percentiles of deeper training images",
    )
    on_broken: str = option("stop", "stop at an image that cannot be read, or skip it in all runs alike")

    @property
    def label_columns(self) -> list[str]:
        """Names of the columns of the labels, as given; [] if they are found.

        >>> Reading(label_column="cat, dog").label_columns, Reading().label_columns
        (['cat', 'dog'], [])
        """
        return [] if self.label_column is None else [name.strip() for name in self.label_column.split(",")]

    @classmethod
    def like(cls, other: "Reading", **changes: Any) -> Self:
        """Return a reading of this class with the options of another, but for some changes."""
        return cls(**{field.name: getattr(other, field.name) for field in dataclasses.fields(Reading)} | changes)

    @property
    def fractions(self) -> list[float]:
        """The splits that are given as fractions."""
        return [value for value in (self.validation_split, self.test_split) if isinstance(value, int | float)]

    def __post_init__(self) -> None:
        parse_channels(self.channels)
        parse_ranges(self.value_range)
        _validation.check_integer_at_least(0, split_seed=self.split_seed)
        _validation.check_one_of("on_broken", self.on_broken, ON_BROKEN)
        for name in ("validation_split", "test_split"):
            _check_split(name, getattr(self, name))
        if sum(self.fractions) >= 1:
            raise errors.InvalidValueError(
                f"validation_split {self.validation_split} and test_split {self.test_split} leave no images to train "
                f"on. Choose fractions with a sum below 1."
            )


@dataclass(frozen=True, kw_only=True)
class OtherReading(Reading):
    """How images are read on which a trained network is tried: they may lack what only a training needs.

    Attributes:
        classes: the classes of the network.
        stands_for_all: the split that is taken for all, since there is none for training; "" otherwise.
    """

    classes: tuple[str, ...] = ()
    stands_for_all: str = ""


def _check_split(name: str, value: object) -> None:
    """Raise unless a value is a fraction between 0 and 1, or text."""
    if isinstance(value, bool) or not isinstance(value, int | float | str | None):
        raise errors.InvalidTypeError(f"{name} must be a fraction or text, got {_validation.safe_repr(value)}.")
    if name == "validation_split" and value in {None, NO_SPLIT}:
        raise errors.InvalidValueError(
            f"{name} is none, but validation images are needed. Give a fraction such as 0.2, the name of a split, or "
            f"COLUMN=VALUE."
        )
    if isinstance(value, int | float) and not 0 < value < 1:
        raise errors.InvalidValueError(
            f"{name} must be a fraction between 0 and 1, the name of a split, or COLUMN=VALUE, got {value}."
        )
