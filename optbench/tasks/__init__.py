"""Task sequences: the ordered tasks one network is trained on, as arrays that already sit on the device."""

from optbench.tasks.examples import Examples, Parts
from optbench.tasks.family import TaskFamily, TaskSequence
from optbench.tasks.kind import Outline, outline_of

__all__ = ["Examples", "Outline", "Parts", "TaskFamily", "TaskSequence", "outline_of"]
