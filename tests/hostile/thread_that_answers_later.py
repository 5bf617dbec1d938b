# ending: failed
import _thread
import os

_thread.start_new_thread(lambda: os._exit(0), ())
escaped()
