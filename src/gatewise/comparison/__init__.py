"""Train networks with each gate and each seed, and report which gate helped."""

from gatewise.comparison.command_comparison import compare_command as compare_command
from gatewise.comparison.judging import judge as judge
from gatewise.comparison.result_table import table as table
from gatewise.comparison.run import compare as compare
