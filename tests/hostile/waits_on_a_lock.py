# ending: timed out; slow
import ctypes, threading

ctypes.CDLL(None).syscall(ctypes.c_long(202), ctypes.byref(ctypes.c_int(0)), 0, 0, 0, 0, 0)
threading.Lock().acquire() and threading.Semaphore(0).acquire()
