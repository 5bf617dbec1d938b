"""The only place where model-written code runs. See docs/code.md for the walls and what each of them holds."""

from selfcorrect.tasks.sandbox.sandbox import Sandbox, SandboxWarning, require_isolation
from selfcorrect.tasks.sandbox.types import ExitStatus, Isolation, Limits, Program, Result

__all__ = ["ExitStatus", "Isolation", "Limits", "Program", "Result", "Sandbox", "SandboxWarning", "require_isolation"]
