# ending: failed
import ctypes

ctypes.CDLL(None).getenv.restype = ctypes.c_char_p
if ctypes.CDLL(None).getenv(b"CANARY"):
    escaped()
