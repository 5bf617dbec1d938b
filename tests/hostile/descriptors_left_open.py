# ending: failed
import os

for fd in range(1 << 16):
    try:
        os.fstat(fd)
    except OSError:
        continue
    if fd > 3:
        escaped()
