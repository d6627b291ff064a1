"""Train one network: the recipe, the loop, and what it shows meanwhile."""

from gatewise.training.interruption import Interrupted as Interrupted
from gatewise.training.loop import train as train
from gatewise.training.progress import Progress as Progress
from gatewise.training.recipe import Recipe as Recipe
