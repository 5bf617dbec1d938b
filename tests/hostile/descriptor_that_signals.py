# ending: failed
import ctypes, fcntl, os

libc = ctypes.CDLL(None, use_errno=True)
for command, argument in ((8, 1), (10, 9), (15, 0), (1024, 0), (1026, 1), (1031, 1 << 20), (1033, 1)):
    for fd in (0, 3):  # owners, signals, leases, notices, pipe sizes, seals
        if libc.fcntl(fd, command, argument) != -1:
            escaped()
for request in (0x5412, 0x540E, 0x5410, 0x8901, 0x5421, 0x5452, 0xC0045878):
    for fd in (0, 3):  # keys typed into a terminal, controlling terminals, owners, the file system's own
        if libc.ioctl(fd, request, ctypes.create_string_buffer(64)) != -1:
            escaped()
