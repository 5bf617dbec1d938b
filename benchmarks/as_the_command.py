"""Import this before torch: threads and memory are then those of the command line, which a script would not have by itself."""

from selfcorrect.cli import console

console.set_environment()
console.keep_freed_memory()
