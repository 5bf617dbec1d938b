"""Code tasks: problems, program extraction, and verdicts from the sandbox."""
