# ending: failed
count = 0
while True:
    open(f"file{count}", "w").close()
    count += 1
    if count > 10_000:
        escaped()
