# ending: failed
total = 0
for number in range(100):
    with open(f"file{number}", "wb", buffering=0) as file:
        total += file.write(b"x" * 1_000_000)
        if total > 50_000_000:
            escaped()
