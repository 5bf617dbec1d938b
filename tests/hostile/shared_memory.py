# ending: refused, failed
from multiprocessing import shared_memory

shared_memory.SharedMemory("left_behind", create=True, size=1 << 20)
escaped()
