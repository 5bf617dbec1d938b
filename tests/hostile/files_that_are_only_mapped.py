# ending: failed
import mmap, os

for number in range(4):
    fd = os.open(f"/tmp/{number}", os.O_CREAT | os.O_RDWR)
    os.ftruncate(fd, 1 << 24)
    area = mmap.mmap(fd, 1 << 24)
    for place in range(0, 1 << 24, 4096):
        area[place] = 1
