# ending: failed, refused
import fcntl, os

fcntl.fcntl(3, fcntl.F_SETFL, os.O_NONBLOCK)


def f(x):
    return "y" * 3_000_000
