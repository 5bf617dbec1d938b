# ending: failed, timed out
def f(x):
    return range(10**18) if x > 0 else 1 << 15_000_000
