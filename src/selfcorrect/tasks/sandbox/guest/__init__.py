"""The code that runs inside a sandbox. It uses only the standard library, because no other package is visible there."""
