# ending: failed
def f(x):
    return f(x + 1)
