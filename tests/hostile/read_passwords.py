# ending: failed
for name in ("/etc/passwd", "/etc/shadow", "/etc/hostname", "/etc/hosts"):
    try:
        open(name).read()
    except FileNotFoundError:
        continue
    escaped()
