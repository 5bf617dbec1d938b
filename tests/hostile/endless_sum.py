# ending: timed out
def f(x):
    return sum(range(10**18))
