# ending: failed
import ctypes

libc = ctypes.CDLL(None)
if libc.prctl(22, 0, 0, 0, 0) == 0 or libc.prctl(4, 1, 0, 0, 0) == 0 or libc.syscall(317, 0, 0, 0) == 0:
    escaped()
