# ending: failed, out of memory
import mmap


def f(x):
    if mmap.mmap(-1, 10**10):
        escaped()
