# ending: failed, refused
def f(x):
    value = []
    for _ in range(400 if x == 3 else 100_000):
        value = [value]
    return value
