# ending: out of memory, timed out
def f(x):
    return len(bytearray(1 << 40))
