# ending: failed
import os

depth = 0
while True:
    os.mkdir("d")
    os.chdir("d")
    depth += 1
    if depth > 10_000:
        escaped()
