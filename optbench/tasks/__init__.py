"""Task sequences: the ordered tasks one network is trained on, as arrays that already sit on the device."""

from optbench.tasks.examples import Examples, Parts
from optbench.tasks.family import TaskFamily, TaskSequence

__all__ = ["Examples", "Parts", "TaskFamily", "TaskSequence"]
