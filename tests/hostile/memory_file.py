# ending: refused
import os

os.memfd_create("hidden")
escaped()
