# ending: failed
import os

os.abort()
