# ending: timed out, out of memory
import math


def f(x):
    return math.factorial(10**8)
