# ending: failed
import ctypes

libc = ctypes.CDLL(None)
if 0 in (libc.kill(-1, 9), libc.kill(1, 9), libc.killpg(0, 9)):
    escaped()
