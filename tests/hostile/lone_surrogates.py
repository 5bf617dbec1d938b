# ending: failed
def f(x):
    if x == 3:
        return "\ud800"
    getattr(x, "\udfff" * 100_000)
