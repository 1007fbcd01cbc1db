"""Attacks on the sandbox. Each prints ESCAPED for what it reached and `held` at its end; all are harmless."""

from __future__ import annotations

READ = """
import sys
for path in sys.argv[1:]:
    try:
        open(path).read(1); print("ESCAPED", path)
    except OSError:
        pass
print("held")
"""

WRITE = """
import os, sys
for folder in sys.argv[1:]:
    try:
        with open(os.path.join(folder, "opd-planted"), "w") as file:
            file.write("x")
        print("ESCAPED", folder)
    except OSError:
        pass
print("held")
"""

LINKS = """
import os, sys
secret = sys.argv[1]
ways = {"link": secret, "up": "../../../../../../../.." + secret, "root": "/proc/self/root" + secret,
        "one": "/proc/1/root" + secret, "cwd": "/proc/self/cwd/../../../../../../.." + secret}
for name, aim in ways.items():
    try:
        os.symlink(aim, name)
        print("ESCAPED", name, open(name).read(1))
    except OSError:
        pass
print("held")
"""

CONNECT = """
import socket, sys
try:
    socket.create_connection(("127.0.0.1", int(sys.argv[1])), 1).close(); print("ESCAPED tcp")
except OSError:
    pass
try:
    held = socket.socket(socket.AF_UNIX); held.connect("\\0" + sys.argv[2]); print("ESCAPED abstract unix socket")
except OSError:
    pass
for family in (socket.AF_INET, socket.AF_INET6, socket.AF_NETLINK, getattr(socket, "AF_VSOCK", 40)):
    try:
        socket.socket(family, socket.SOCK_DGRAM); print("ESCAPED", family)
    except OSError:
        pass
print("held")
"""

CONNECT_BASH = """
{ exec 3<> "/dev/tcp/127.0.0.1/$1"; } 2> /dev/null && echo ESCAPED
echo held
"""

DESCRIPTORS = """
import os
for number in range(3, 256):
    try:
        if os.read(number, 64).startswith(b"top secret"):
            print("ESCAPED", number)
    except OSError:
        pass
print("held")
"""

ENVIRONMENT = """
import glob, os, sys
places = [str(dict(os.environ))]
for path in glob.glob("/proc/[0-9]*/environ"):
    try:
        places.append(open(path, errors="replace").read())
    except OSError:
        pass
if any(sys.argv[1] in place for place in places):
    print("ESCAPED")
print("held")
"""

PROCESSES = """
import os, sys
marker, victim = sys.argv[1].encode(), int(sys.argv[2])
for name in os.listdir("/proc"):
    if name.isdigit() and int(name) != os.getpid():
        try:
            if open(f"/proc/{name}/cmdline", "rb").read().startswith(marker):
                print("ESCAPED cmdline")
        except OSError:
            pass
try:
    os.kill(victim, 0); print("ESCAPED signal 0")
except OSError:
    pass
print("held")
"""

TRACE = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
PTRACE_TRACEME, PTRACE_SEIZE = 0, 0x4206
if libc.ptrace(PTRACE_SEIZE, int(sys.argv[1]), None, None) == 0:
    print("ESCAPED seize")
class Piece(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))
here, there = ctypes.create_string_buffer(b"word"), ctypes.create_string_buffer(4)
ours, theirs = Piece(ctypes.addressof(there), 4), Piece(ctypes.addressof(here), 4)
if libc.process_vm_readv(os.getpid(), ctypes.byref(ours), 1, ctypes.byref(theirs), 1, 0) == 4:
    print("ESCAPED process_vm_readv")
# A process that can be written to works for the program: it must be as limited.
for pid in ("1", str(os.getppid())):
    try:
        open(f"/proc/{pid}/mem", "r+b").close()
        if open(f"/proc/{pid}/limits").read() != open("/proc/self/limits").read():
            print("ESCAPED through process", pid)
    except OSError:
        pass
print("held")
"""

# Its mounts would break the machine that runs the control: only a program told `isolated` tries them, never as root.
KERNEL = """
import ctypes, os, sys
isolated = sys.argv[1:] == ["isolated"]
libc = ctypes.CDLL(None, use_errno=True)
def tried(name, call):
    child = os.fork()
    if child == 0:
        os._exit(0 if call() >= 0 else 1)
    if os.waitpid(child, 0)[1] == 0:
        print("ESCAPED", name)
user, mounts, net, pid, ipc = 0x10000000, 0x20000, 0x40000000, 0x20000000, 0x08000000
flags = {"user": user, "mounts": mounts, "net": net, "pid": pid, "ipc": ipc, "both": user | mounts}
for name, flag in flags.items():
    tried(f"unshare {name}", lambda: libc.unshare(flag))
tried("clone", lambda: libc.syscall(56 if os.uname().machine == "x86_64" else 220, user | 17, 0, 0, 0, 0))
def in_new_user(call): return lambda: -1 if libc.unshare(user | mounts) < 0 else call()
tried("mount", in_new_user(lambda: libc.mount(b"tmpfs", os.getcwd().encode(), b"tmpfs", 0, None)))
tried("bind", in_new_user(lambda: libc.mount(b"/", os.getcwd().encode(), None, 4096, None)))
if isolated and os.geteuid() != 0:
    tried("mount here", lambda: libc.mount(b"/proc", os.getcwd().encode(), None, 4096, None))
    tried("remount", lambda: libc.mount(None, b"/", None, 32, None))
    tried("umount", lambda: libc.umount2(b"/proc", 2))
tried("chroot", in_new_user(lambda: libc.chroot(b".")))
tried("setns", lambda: libc.setns(os.open("/proc/self/ns/user", os.O_RDONLY), 0))
tried("shmget", lambda: libc.shmctl(libc.shmget(0, 4096, 0o1600), 0, None))
tried("memfd", lambda: libc.memfd_create(b"x", 0))
tried("syslog", lambda: libc.klogctl(10, None, 0))
tried("keyctl", lambda: libc.syscall(250 if os.uname().machine == "x86_64" else 219, 0, -3, 1))
print("held")
"""

RIGHTS = """
import os
status = dict(line.split(":", 1) for line in open("/proc/self/status") if ":" in line)
if status["NoNewPrivs"].strip() != "1": print("ESCAPED new privileges")
if status["Seccomp"].strip() != "2": print("ESCAPED no filter")
for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
    if int(status[name], 16): print("ESCAPED", name)
if os.geteuid() == 0: print("ESCAPED root")
else:
    for call in (os.setuid, os.setgid, os.seteuid):
        try:
            call(0); print("ESCAPED", call.__name__)
        except OSError:
            pass
for folder in ("/usr/bin", "/usr/lib"):
    if not os.statvfs(folder).f_flag & os.ST_NOSUID: print("ESCAPED setuid files in", folder)
    if not os.statvfs(folder).f_flag & os.ST_RDONLY: print("ESCAPED writable", folder)
print("held")
"""

# Arguments: the namespaces of the machine.
PLACE = """
import os, sys
for name in ("user", "mnt", "pid", "net", "ipc", "uts", "cgroup"):
    if os.readlink(f"/proc/self/ns/{name}") in sys.argv[1:]: print("ESCAPED namespace", name)
own = {"bin", "lib", "lib32", "lib64", "usr", "etc", "dev", "proc", "python", "tmp", "work"}
for name in sorted(set(os.listdir("/")) - own): print("ESCAPED into", name)
for name in sorted(set(os.listdir("/etc")) - {"ld.so.cache", "alternatives"}): print("ESCAPED into etc", name)
print("held")
"""

DEVICES = """
import os, stat
for kind, number in ((stat.S_IFCHR, os.makedev(1, 1)), (stat.S_IFBLK, os.makedev(7, 0))):
    try:
        os.mknod("node", 0o600 | kind, number); print("ESCAPED made a node"); os.unlink("node")
    except OSError:
        pass
for name in sorted(set(os.listdir("/dev")) - {"null", "zero", "full", "random", "urandom", "fd", "shm"}):
    print("ESCAPED", name)
print("held")
"""

# A daemon with a name of its own: detached, its own session, no pipe of ours. `$2`: keeps our stdout open.
DAEMON = """
if [ "$2" = open ]; then
  (setsid bash -c 'exec -a "$0" sleep 30' "$1" &)
else
  (setsid bash -c 'exec -a "$0" sleep 30' "$1" > /dev/null 2>&1 < /dev/null &)
fi
sleep 0.2
echo held
"""

FORK_BOMB = ":(){ :|:& };: ; sleep 20"
SIGNALS = """
import os, signal, sys
victim, other, outside = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
for pid in (victim, -victim):
    try:
        os.kill(pid, signal.SIGTERM); print("ESCAPED", pid)
    except OSError:
        pass
if os.readlink("/proc/self/ns/pid") == outside:
    print("ESCAPED into the machine's pids"); sys.exit()
# From here on only in another pid namespace: everything there is, process 1 and the parent included.
for pid in (other, os.getppid(), 1, -1, 0):
    for number in (signal.SIGHUP, signal.SIGUSR1):
        try:
            signal.signal(number, signal.SIG_IGN); os.kill(pid, number)
        except OSError:
            pass
try:
    os.kill(1, signal.SIGKILL)
except OSError:
    pass
print("held")
"""
