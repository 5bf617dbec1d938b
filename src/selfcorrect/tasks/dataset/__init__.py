"""Any data set as a task: columns, a template for the problem, and a verifier by name."""
