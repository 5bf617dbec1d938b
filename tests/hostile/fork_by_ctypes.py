# ending: failed
import ctypes

libc = ctypes.CDLL(None)
if libc.fork() >= 0 or libc.vfork() >= 0 or libc.syscall(56, 17, 0, 0, 0, 0) >= 0 or libc.syscall(435, 0, 0) >= 0:
    escaped()
