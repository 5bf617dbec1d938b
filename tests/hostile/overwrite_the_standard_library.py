# ending: failed
import os

for name in (os.__file__, "/sandbox/inside/server.py", "/usr/bin/env"):
    try:
        open(name, "a").close()
    except OSError:
        continue
    escaped()
