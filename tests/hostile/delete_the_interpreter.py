# ending: failed
import os
import sys

try:
    os.unlink(sys.executable)
except OSError:
    raise ValueError("no") from None
escaped()
