# ending: refused, timed out
import os

os.memfd_create("hidden")
escaped()
