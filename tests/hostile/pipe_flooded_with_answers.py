# ending: failed, timed out
import os

body = b'{"value":["i",7]}'
while True:
    os.write(3, len(body).to_bytes(4, "little") + body)
