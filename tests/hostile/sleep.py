# ending: timed out; slow
import time

time.sleep(3600)
