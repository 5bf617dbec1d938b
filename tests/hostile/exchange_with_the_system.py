# ending: failed
import ctypes, os

libc = ctypes.CDLL(None, use_errno=True)
os.mkdir("/tmp/mine")
for theirs in (b"/usr", b"/dev", b"/sandbox", b"/", b"/tmp"):
    for flags in (0, 2, 4):
        if theirs != b"/tmp" and libc.renameat2(-100, b"/tmp/mine", -100, theirs, flags) == 0:
            escaped()
for attempt in (
    lambda: os.mkfifo("/tmp/pipe"),
    lambda: os.mknod("/tmp/null", 0o20666, 259),
    lambda: os.setxattr("/tmp", "user.a", b"1"),
    lambda: os.chown("/tmp", 1, 1),
    lambda: os.chmod("/tmp/mine", 0o4777),
    lambda: os.open("/usr", os.O_TMPFILE | os.O_RDWR),
    lambda: os.truncate("/sandbox/guest/judge.py", 0),
    lambda: os.utime("/usr/bin/env", (0, 0)),
    lambda: os.listdir(os.open("/proc", os.O_PATH)),
):
    try:
        attempt()
    except OSError:
        continue
    escaped()
