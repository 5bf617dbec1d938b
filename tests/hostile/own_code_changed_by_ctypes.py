# ending: failed
import ctypes

ctypes.memset(id(7), 0, 24)
ctypes.memset(id(None), 255, 16)


def f(x):
    return 7
