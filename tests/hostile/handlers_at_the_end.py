# ending: failed
import atexit
import sys
import time


class Late:
    def __del__(self):
        time.sleep(3600)


late = Late()
atexit.register(time.sleep, 3600)
sys.excepthook = sys.unraisablehook = lambda *_: time.sleep(3600)


def f(x):
    return None
