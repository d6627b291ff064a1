"""Train one network from a recipe, with checkpoints, evaluation and progress display."""

from gatewise.training.distributed import Processes as Processes
from gatewise.training.evaluation import Evaluation as Evaluation
from gatewise.training.evaluation import evaluate as evaluate
from gatewise.training.learner import build_model as build_model
from gatewise.training.loop import train as train
from gatewise.training.progress import Progress as Progress
from gatewise.training.recipe import Recipe as Recipe
from gatewise.training.run_folder import check_run_format as check_run_format
from gatewise.training.run_folder import holds_run as holds_run
from gatewise.training.run_folder import is_finished as is_finished
from gatewise.training.signals import Interrupted as Interrupted
from gatewise.training.tasks import TITLES as TITLES
from gatewise.training.tasks import BatchResults as BatchResults
from gatewise.training.tasks import make_task as make_task
from gatewise.training.tasks import pixel_classes as pixel_classes
from gatewise.training.tasks import pixel_hits as pixel_hits
