"""Compare gates over several seeds: train and measure (`run`), then write a table and a report (`report`)."""

from gatewise.comparison.report import table as table
from gatewise.comparison.run import compare as compare
