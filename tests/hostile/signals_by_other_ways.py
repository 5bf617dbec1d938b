# ending: failed
import ctypes, platform

libc = ctypes.CDLL(None, use_errno=True)
room = ctypes.create_string_buffer(128)
if platform.machine() == "x86_64":
    for call in ((129, 1, 9, room), (297, 1, 1, 9, room), (200, 1, 9), (234, 1, 1, 9), (62, -1, 9), (424, 3, 9, 0, 0), (222, 0, room, room)):  # fmt: skip
        if libc.syscall(*[ctypes.c_long(part) if isinstance(part, int) else part for part in call]) != -1:
            escaped()
