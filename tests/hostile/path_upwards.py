# ending: failed
import os

os.chdir("/tmp")
for _ in range(50):
    os.chdir("..")
if (
    set(os.listdir("."))
    - {"bin", "dev", "etc", "lib", "lib32", "lib64", "sandbox", "tmp", "usr"}
    - {__import__("sys").base_prefix.split("/")[1]}
):
    escaped()
