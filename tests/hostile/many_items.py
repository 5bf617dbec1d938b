# ending: failed, refused, timed out
def f(x):
    return [None] * 900_000
