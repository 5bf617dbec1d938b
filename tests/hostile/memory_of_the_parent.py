# ending: failed
import ctypes

libc = ctypes.CDLL(None)
buffer = ctypes.create_string_buffer(64)
if libc.ptrace(16, 1, 0, 0) == 0 or libc.process_vm_readv(1, buffer, 1, buffer, 1, 0) >= 0:
    escaped()
