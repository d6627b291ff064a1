"""The name of `gatewise.integrations.timm` in 0.1.0."""

from gatewise.integrations.timm import PRESETS as PRESETS
from gatewise.integrations.timm import TAG as TAG
