"""Train one network from a recipe, with checkpoints, evaluation and progress display."""

from gatewise.training.distributed import Processes as Processes
from gatewise.training.evaluation import Evaluation as Evaluation
from gatewise.training.evaluation import evaluate as evaluate
from gatewise.training.from_recipe import build_model as build_model
from gatewise.training.from_recipe import train as train
from gatewise.training.progress import Progress as Progress
from gatewise.training.recipe import Recipe as Recipe
from gatewise.training.run_folder import check_run_format as check_run_format
from gatewise.training.run_folder import holds_run as holds_run
from gatewise.training.run_folder import is_finished as is_finished
from gatewise.training.signals import Interrupted as Interrupted
from gatewise.training.tasks import BatchResults as BatchResults
from gatewise.training.tasks import Mistake as Mistake
from gatewise.training.tasks import Score as Score
from gatewise.training.tasks import Task as Task
from gatewise.training.tasks import TaskSpec as TaskSpec
from gatewise.training.tasks import register_task as register_task
from gatewise.training.tasks import score_named as score_named
from gatewise.training.tasks import task_class as task_class
from gatewise.training.tasks import task_names as task_names
