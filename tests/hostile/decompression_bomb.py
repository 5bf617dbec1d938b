# ending: out of memory, refused
import zlib


def f(x):
    bomb = zlib.compress(zlib.compress(b"\0" * 10_000_000))
    return zlib.decompress(zlib.decompress(bomb)) * 100
