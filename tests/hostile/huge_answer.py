# ending: refused
def f(x):
    return "x" * 50_000_000
