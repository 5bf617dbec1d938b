# ending: timed out; slow
import os, struct, time

os.write(3, struct.pack("<I", 14) + b'{"value":null}' + struct.pack("<I", 4_000_000))
while True:
    os.write(3, b" ")
    time.sleep(0.0001)
