# ending: failed
import os

for name in ("/sys/kernel", "/dev/mem", "/dev/vda", "/dev/sda", "/dev/kmsg", "/dev/tty", "/dev/shm", "/dev/pts/ptmx"):
    try:
        os.open(name, os.O_RDONLY)
    except OSError:
        continue
    escaped()
