# ending: failed
import ctypes, platform

ALLOWED = {
    *range(0, 26), 28, *range(32, 40), 60, 63, 72, *range(74, 78), *range(79, 85), 87, 89, *range(95, 101),
    102, 104, 107, 108, 110, 111, 115, 121, 124, 127, 128, 131, 137, 138, 158, 186, 201, 202, 204, 217, 219,
    *range(228, 234), 257, 258, *range(262, 265), 267, *range(269, 272), 273, 274, 280, 281, 285, *range(290,
    294), 302, 316, 318, 324, 326, 332, *range(334, 337), 436, 439,
}  # fmt: skip
libc = ctypes.CDLL(None, use_errno=True)
if platform.machine() == "x86_64":
    for number in range(600):  # clone3, io_uring, keyctl, bpf, pidfd_open, userfaultfd, fsopen, handles, ...
        if number in ALLOWED:
            continue
        ctypes.set_errno(0)
        if libc.syscall(ctypes.c_long(number), *[ctypes.c_long(0)] * 6) != -1 or ctypes.get_errno() != 1:
            raise LookupError(f"escaped: {number}")
