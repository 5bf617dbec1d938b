# ending: failed
def f(x):
    raise KeyboardInterrupt
