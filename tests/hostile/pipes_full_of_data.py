# ending: failed, timed out
import os

held = []
while True:
    held.append(os.pipe())
    os.write(held[-1][1], b"x" * 4096)
    if len(held) > 1000:
        escaped()
