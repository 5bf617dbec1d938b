# ending: timed out, out of memory
from fractions import Fraction


def f(x):
    value = Fraction(x, 3)
    while True:
        value = value * value + Fraction(1, 7)
