"""Several processes as one: who does which share, and what they tell each other."""
