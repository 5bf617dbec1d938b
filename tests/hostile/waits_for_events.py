# ending: timed out; slow
import select, signal

signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))
select.epoll().poll()
