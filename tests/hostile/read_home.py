# ending: failed
import os
import sys

for place in ("/root", "/home", "/work", "/Users", "/mnt", "/var", "/srv", "/opt", os.path.expanduser("~")):
    try:
        seen = os.listdir(place)
    except OSError:
        continue
    if any(not sys.base_prefix.startswith(os.path.join(place, name)) for name in seen):
        escaped()
