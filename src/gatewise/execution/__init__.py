"""Run a trained network without the filters that are closed: removed for good, or skipped image by image."""

from gatewise.execution.compact import Compaction as Compaction
from gatewise.execution.compact import compact as compact
from gatewise.execution.restructure import restructure as restructure
