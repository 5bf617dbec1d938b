# ending: timed out, out of memory
import unicodedata


def f(x):
    while True:
        unicodedata.normalize("NFD", "\u0300\u0316" * 10**6)
