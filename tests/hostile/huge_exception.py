# ending: failed, timed out
def f(x):
    raise ValueError("x" * 50_000_000)
