# ending: failed
import os

if os.system("true") == 0:
    escaped()
