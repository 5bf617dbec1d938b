# ending: failed
import signal

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
with open("big", "wb", buffering=0) as file:
    while True:
        if file.write(b"x" * 1_000_000) == 0 or file.tell() > 100_000_000:
            escaped()
