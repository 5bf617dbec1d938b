# ending: failed, refused
import ctypes, mmap, platform


def run(code):
    memory = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    memory.write(bytes.fromhex(code))
    return ctypes.CFUNCTYPE(ctypes.c_long)(ctypes.addressof(ctypes.c_char.from_buffer(memory)))()


if platform.machine() == "x86_64":  # a fork without the C library, and one of the calls called x32
    if run("b8390000000f05c3") >= 0 or run("b8390000400f05c3") >= 0:
        escaped()
