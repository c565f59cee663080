"""What a model is trained and measured for: the texts of its batches, and the names of its figures.

Adding a task: one file with a subclass of `Task` and one import here.
"""

from videoclip.tasks.base import Measure, Task, Texts
from videoclip.tasks.recognition import Recognition, class_names
from videoclip.tasks.retrieval import Retrieval

__all__ = ["Measure", "Recognition", "Retrieval", "Task", "Texts", "class_names"]
