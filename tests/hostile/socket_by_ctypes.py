# ending: failed
import ctypes

if ctypes.CDLL(None).socket(2, 1, 0) >= 0:
    escaped()
