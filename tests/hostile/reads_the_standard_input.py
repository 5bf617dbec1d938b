# ending: failed
import sys

if sys.stdin.read() or sys.stdin.buffer.read():
    escaped()
input()
