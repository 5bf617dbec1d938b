"""The sandbox, the only place where model-written code runs. docs/code.md describes its layers of isolation."""

from selfcorrect.tasks.sandbox.sandbox import Sandbox, SandboxWarning, require_isolation
from selfcorrect.tasks.sandbox.types import ExitStatus, Isolation, Limits, Program, Result

__all__ = ["ExitStatus", "Isolation", "Limits", "Program", "Result", "Sandbox", "SandboxWarning", "require_isolation"]
