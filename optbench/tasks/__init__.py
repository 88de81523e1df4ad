"""Task sequences: the ordered tasks on which one network is trained, as arrays on the device."""

from optbench.tasks.examples import Examples, Parts
from optbench.tasks.family import TaskFamily, TaskSequence
from optbench.tasks.kind import Outline, outline_of

__all__ = ["Examples", "Outline", "Parts", "TaskFamily", "TaskSequence", "outline_of"]
