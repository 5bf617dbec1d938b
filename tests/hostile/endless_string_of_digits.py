# ending: timed out, out of memory
import sys

sys.set_int_max_str_digits(0)


def f(x):
    return int("9" * 10**8)
