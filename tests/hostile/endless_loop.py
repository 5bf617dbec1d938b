# ending: timed out
while True:
    pass
