# ending: failed, out of memory, timed out
import sys

sys.setrecursionlimit(10**9)


class Deep:
    def __getattr__(self, name):
        return getattr(self, name + "x")


def f(x):
    return Deep().a
