# ending: failed
E = type("A" * 3_900_000, (Exception,), {"__module__": "builtins", "__qualname__": "q" * 3_900_000})


def f(x):
    raise E("m" * 3_900_000)
