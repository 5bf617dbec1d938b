# ending: failed
import fcntl, os, select

pipes = []
try:
    while True:
        pipes.append((os.pipe(), select.epoll()))
except OSError:
    pass
for (_, end), _ in pipes:
    fcntl.fcntl(end, fcntl.F_SETFL, os.O_NONBLOCK)
    try:
        while True:
            os.write(end, b"x" * 65536)
    except OSError:
        pass
for number in range(20_000):  # names that are not there fill a cache of the kernel
    try:
        os.stat(f"/usr/lib/{number}")
    except OSError:
        pass
