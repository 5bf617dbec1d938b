# ending: refused
import os

os.symlink("/etc/passwd", "link")
escaped()
