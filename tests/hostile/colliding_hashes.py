# ending: timed out, failed, refused
import os, struct

step = (1 << 61) - 1
items = ",".join(f'["i","{hex(number * step)}"]' for number in range(60_000))
os.write(3, struct.pack("<I", 14) + b'{"value":null}')
body = memoryview(('{"value":["s",[' + items + "]]}").encode())
os.write(3, struct.pack("<I", len(body)))
while body:
    body = body[os.write(3, body) :]
while True:
    pass
