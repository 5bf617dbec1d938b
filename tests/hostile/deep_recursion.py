# ending: failed, timed out
def f(x):
    return f(x + 1)
