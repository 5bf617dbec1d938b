# ending: failed
import itertools


def f(x):
    return itertools.count()
