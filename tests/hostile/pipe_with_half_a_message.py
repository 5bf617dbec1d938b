# ending: failed
import os

os.write(3, b"\x40\0\0\0half")
os._exit(0)
