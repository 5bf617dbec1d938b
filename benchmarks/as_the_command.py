"""Import this before torch, so that a script has the command line's threads and memory settings."""

from selfcorrect import runtime

runtime.set_environment()
runtime.keep_freed_memory()
