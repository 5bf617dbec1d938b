# ending: refused, failed
import os

os.posix_spawn("/bin/true", ["true"], {})
escaped()
