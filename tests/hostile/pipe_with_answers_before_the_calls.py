# ending: failed, timed out
import os, struct


def say(body):
    os.write(3, struct.pack("<I", len(body)) + body)


say(b'{"value":null}')
for number in range(9):
    say(b'{"value":["r",%d]}' % number)
    say(b'{"value":true}')
while True:
    pass
