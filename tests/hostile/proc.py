# ending: failed
import os

for name in (
    "/proc/self/maps",
    "/proc/self/fd/3",
    "/proc/1/root/etc/passwd",
    "/proc/1/mem",
    "/proc/sys/kernel/core_pattern",
):
    try:
        os.open(name, os.O_RDONLY)
    except OSError:
        continue
    escaped()
