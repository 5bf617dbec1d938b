# ending: refused, failed
import os

os.setuid(0)
escaped()
