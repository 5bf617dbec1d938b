# ending: failed
import threading

while True:
    threading.Thread(target=lambda: [None for _ in iter(int, 1)]).start()
