"""Tasks: problems, the verdict of an answer, and the script of the conversation.

A task is any object with the members of `Task`. Installed packages offer more under the entry point
group ``selfcorrect.tasks``; `get_task` finds them by name.
"""

from selfcorrect.tasks.base import Task, available_tasks, get_task

__all__ = ["Task", "available_tasks", "get_task"]
