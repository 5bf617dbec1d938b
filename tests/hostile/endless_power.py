# ending: timed out, out of memory
def f(x):
    return 99**98**97
