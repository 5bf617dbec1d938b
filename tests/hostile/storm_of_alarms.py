# ending: timed out
import signal

signal.signal(signal.SIGALRM, lambda *found: None)
signal.setitimer(signal.ITIMER_REAL, 1e-6, 1e-6)
while True:
    pass
