# ending: failed
import ctypes

ctypes.string_at(0)
