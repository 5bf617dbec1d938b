# ending: failed
def f(x):
    raise GeneratorExit
