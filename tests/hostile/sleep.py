# ending: timed out
import time

time.sleep(3600)
