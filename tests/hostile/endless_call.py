# ending: timed out
def f(x):
    while True:
        x += 1
