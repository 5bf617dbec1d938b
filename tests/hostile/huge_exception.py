# ending: failed
def f(x):
    raise ValueError("x" * 50_000_000)
