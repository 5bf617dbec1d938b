"""Single-turn environments of the library `verifiers` as tasks; only `task` is imported outside separate processes."""
