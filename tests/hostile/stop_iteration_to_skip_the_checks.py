# ending: failed
def f(x):
    raise StopIteration
