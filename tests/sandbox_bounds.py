"""Programs that take what they can get and say how far they came; each stops by itself where it would hurt."""

from __future__ import annotations

FORKS = """
import os, signal, sys
most, children = int(sys.argv[1]), []
try:
    while len(children) < most:
        child = os.fork()
        if child == 0:
            signal.pause()
        children.append(child)
except OSError:
    pass
print(len(children), flush=True)
for child in children:
    os.kill(child, signal.SIGKILL)
"""

THREADS = """
import sys, threading
most, wait, n = int(sys.argv[1]), threading.Event(), 0
threading.stack_size(65536)
try:
    while n < most:
        threading.Thread(target=wait.wait, daemon=True).start(); n += 1
except RuntimeError:
    pass
print(n, flush=True)
wait.set()
"""

MEMORY = """
import sys
most, held = int(sys.argv[1]), []
try:
    while len(held) * 4 < most:
        held.append(bytearray(4 << 20))
except MemoryError:
    pass
print(len(held) * 4)
"""

DISK = """
import sys
most, n = int(sys.argv[1]), 0
try:
    while n < most:
        with open(f"file-{n}", "wb") as file:
            file.write(b"x" * (1 << 20))
        n += 1
except OSError:
    pass
print(n)
"""
ONE_FILE = """
import signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
most, n = int(sys.argv[1]), 0
try:
    with open("file", "wb", buffering=0) as file:
        while n < most:
            n += file.write(b"x" * (1 << 20)) / (1 << 20)
except OSError:
    pass
print(int(n))
"""
OPEN_FILES = """
import os, sys
most, held = int(sys.argv[1]), []
try:
    while len(held) < most:
        held.append(os.open("/dev/null", os.O_RDONLY))
except OSError:
    pass
print(len(held))
"""
