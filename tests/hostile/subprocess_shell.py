# ending: refused, failed
import subprocess

subprocess.run("touch /tmp/escaped", shell=True, check=True)
escaped()
