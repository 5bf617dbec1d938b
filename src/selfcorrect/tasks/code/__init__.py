"""Programs: problems, the program in an answer, and its verdict from the sandbox."""
