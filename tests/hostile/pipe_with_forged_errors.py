# ending: failed, refused, timed out
import os, struct

ERRORS = (
    '["StopIteration","x",""]', '["KeyboardInterrupt","x",""]', '["SystemExit","SystemExit","0"]', '["GeneratorExit","x",""]',
    '["ExceptionGroup","x",""]', '["__import__","os",""]', '["exit","x",""]', '["AssertionError","x",""]',
)  # fmt: skip


def say(body):
    os.write(3, struct.pack("<I", len(body)) + body)


say(b'{"value":null}')
for error in ERRORS:
    say(b'{"raised":' + error.encode() + b"}")
while True:
    pass
