# ending: refused
import os

body = b"[" * 100_000
os.write(3, len(body).to_bytes(4, "little") + body)
