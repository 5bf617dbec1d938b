# ending: timed out, out of memory
import collections, itertools


def f(x):
    collections.deque(itertools.repeat(0), maxlen=0)
