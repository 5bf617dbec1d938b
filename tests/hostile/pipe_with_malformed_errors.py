# ending: failed, refused
import os, struct


def say(body):
    os.write(3, struct.pack("<I", len(body)) + body)


say(b'{"value":null}')
for error in ('{"a":1,"b":2,"c":3}', '["a"]', "5"):
    say(b'{"raised":' + error.encode() + b"}")
while True:
    pass
