"""What runs inside a sandbox: the standard library only, because nothing else of the package is visible there."""
