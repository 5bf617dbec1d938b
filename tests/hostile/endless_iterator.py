# ending: failed, timed out
import itertools


def f(x):
    return itertools.count()
