"""Tasks: problems, verifiers and the scripts of their conversations.

A task is any object with the members of `Task`. Other packages can register tasks under the entry-point
group ``selfcorrect.tasks``; `get_task` finds them by name.
"""

from selfcorrect.tasks.base import Task, available_tasks, get_task

__all__ = ["Task", "available_tasks", "get_task"]
