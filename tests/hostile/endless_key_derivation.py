# ending: timed out, out of memory
import hashlib


def f(x):
    return hashlib.pbkdf2_hmac("sha512", b"", b"x", 2**31 - 1)
