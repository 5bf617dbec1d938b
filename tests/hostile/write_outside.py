# ending: failed
import sys

for place in (
    "/",
    "/etc/",
    "/usr/",
    "/usr/lib/",
    "/sandbox/",
    "/sandbox/inside/",
    "/dev/",
    "/dev/shm/",
    "/var/tmp/",
    sys.prefix + "/",
):
    try:
        open(place + "escaped", "w").close()
    except OSError:
        continue
    escaped()
