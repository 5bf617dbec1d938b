# ending: failed
import os
import sys

places = {"/root", "/home", "/Users", "/mnt", "/var", "/srv", "/opt", os.path.expanduser("~")}
above = os.path.dirname(sys.base_prefix)
while above not in ("/", "/usr"):  # what lies beside the interpreter
    places.add(above)
    above = os.path.dirname(above)
for place in places:
    try:
        seen = os.listdir(place)
    except OSError:
        continue
    if any(not sys.base_prefix.startswith(os.path.join(place, name)) for name in seen):
        escaped()
