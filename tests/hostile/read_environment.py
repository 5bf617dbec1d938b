# ending: failed
import os

if "CANARY" in os.environ or b"CANARY" in os.environb or os.getenv("CANARY"):
    escaped()
for name in ("/proc/self/environ", "/proc/1/environ"):
    try:
        open(name, "rb").read()
    except OSError:
        continue
    escaped()
