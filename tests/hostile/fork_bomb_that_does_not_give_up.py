# ending: timed out
import os

while True:
    try:
        if os.fork() == 0:
            escaped()
    except OSError:
        pass
