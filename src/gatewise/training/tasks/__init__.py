"""One task per file. Importing this package imports every file in it; each file registers its task."""

from gatewise.core.registry import import_files
from gatewise.training.tasks.base import BatchResults as BatchResults
from gatewise.training.tasks.base import Mistake as Mistake
from gatewise.training.tasks.base import Score as Score
from gatewise.training.tasks.base import Task as Task
from gatewise.training.tasks.registry import TaskSpec as TaskSpec
from gatewise.training.tasks.registry import main_score as main_score
from gatewise.training.tasks.registry import register_task as register_task
from gatewise.training.tasks.registry import score_named as score_named
from gatewise.training.tasks.registry import score_words as score_words
from gatewise.training.tasks.registry import summaries as summaries
from gatewise.training.tasks.registry import task_class as task_class
from gatewise.training.tasks.registry import task_names as task_names

import_files(__name__, __path__)
