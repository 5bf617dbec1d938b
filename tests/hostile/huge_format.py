# ending: out of memory
def f(x):
    return "%*d" % (2**31 - 1, 1)
