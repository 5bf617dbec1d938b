# ending: failed
import os

source, target = os.open("/dev/zero", os.O_RDONLY), os.open("/tmp/zeros", os.O_CREAT | os.O_RDWR)
for grow in (
    lambda: os.copy_file_range(source, target, 1 << 20),
    lambda: os.posix_fallocate(target, 0, 1 << 25),
    lambda: os.ftruncate(target, 1 << 62),
    lambda: os.write(target, b"x" * (1 << 20)),
):
    try:
        for _ in range(1000):
            if not grow():
                break
    except OSError:
        continue
if os.fstat(target).st_size > 1 << 24:
    escaped()
