# ending: refused, timed out
def f(x):
    return "x" * 50_000_000
