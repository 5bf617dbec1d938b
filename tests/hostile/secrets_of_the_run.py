# ending: failed
import os, sys

said = repr((dict(os.environ), sys.argv, sys.path, os.uname().nodename, os.getcwd()))
for name in ("/etc/passwd", "/etc/shadow", "/etc/hostname", "/etc/resolv.conf", "/dev/mem", "/dev/tty", "/dev/ptmx", "/dev/fuse", "/dev/kvm", "/dev/shm", "/run", "/sys"):  # fmt: skip
    try:
        os.open(name, os.O_RDONLY)
    except OSError:
        continue
    escaped()
if "CANARY" in said or "selfcorrect/src" in said:
    escaped()
