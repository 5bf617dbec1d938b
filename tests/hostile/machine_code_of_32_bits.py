# ending: failed, refused
import ctypes, mmap, platform

if platform.machine() == "x86_64":
    memory = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    memory.write(bytes.fromhex("b802000000cd80c3"))  # fork by interrupt 0x80
    if ctypes.CFUNCTYPE(ctypes.c_long)(ctypes.addressof(ctypes.c_char.from_buffer(memory)))() >= 0:
        escaped()
