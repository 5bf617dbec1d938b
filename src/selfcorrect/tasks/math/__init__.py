"""Mathematics tasks: problems, reference answers, and the verifier of written answers."""
