# ending: out of memory, refused
import zlib


def f(x):
    bomb = zlib.compress(zlib.compress(b"\0" * 100_000_000))
    return zlib.decompress(zlib.decompress(bomb)) * 20
