# ending: refused, failed
import os

os.setpriority(os.PRIO_PROCESS, 1, 19)
escaped()
