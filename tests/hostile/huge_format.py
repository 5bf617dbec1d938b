# ending: out of memory, timed out
def f(x):
    return "%*d" % (2**31 - 1, 1)
