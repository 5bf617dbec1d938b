# ending: timed out
import itertools


def f(x):
    return sum(1 for _ in itertools.permutations(range(20)))
