# ending: refused
import os

while True:
    os.write(3, b"\xff" * 4096)
