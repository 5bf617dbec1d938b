# ending: refused
import socket

socket.socket(socket.AF_INET, socket.SOCK_STREAM).connect(("1.1.1.1", 53))
escaped()
