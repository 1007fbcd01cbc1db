"""Runs as a process of its own: makes the namespaces and the private tree, drops every right, runs one program.

Started by file name with `python -I -S`, so it imports the standard library alone. Three processes:
this one stays outside to wait and to kill; its child is process 1 of the new pid namespace, with
which every process inside dies; the grandchild becomes the program.
It does what bubblewrap does, for machines without it. Even when root starts it, the program runs as
an unprivileged user of the host, since process limits do not bind root.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import select
import signal
import struct
import sys
from types import FrameType
from typing import Any, NoReturn

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_BIND, MS_REC, MS_PRIVATE = 1, 2, 4, 8, 4096, 16384, 1 << 18
MNT_DETACH, AT_FDCWD, AT_RECURSIVE, SYS_MOUNT_SETATTR = 2, -100, 0x8000, 442
ATTR_READ_ONLY, ATTR_NOSUID, ATTR_NODEV, ATTR_NOEXEC = 1, 2, 4, 8
# New mount, cgroup, uts, ipc, user, pid and net namespaces.
NAMESPACES = 0x00020000 | 0x02000000 | 0x04000000 | 0x08000000 | 0x10000000 | 0x20000000 | 0x40000000
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP = 1, 4, 24, 38, 22
SECCOMP_FILTER, CAPABILITY_VERSION_3 = 2, 0x20080522
OUTSIDE = "/outside"
SETUP_FAILED = 125

libc = ctypes.CDLL(None, use_errno=True)


def checked(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def prctl(option: int, *values: Any) -> int:
    padded = [ctypes.c_ulong(value) if isinstance(value, int) else value for value in (*values, 0, 0, 0)[:4]]
    return int(libc.prctl(option, *padded))


def mount(source: str | None, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    raw = [None if text is None else os.fsencode(text) for text in (source, target, kind, options)]
    checked(libc.mount(raw[0], raw[1], raw[2], ctypes.c_ulong(flags), raw[3]), f"mount {target}")


def set_attributes(target: str, attributes: int, *, recursive: bool) -> None:
    """Add mount attributes; recursively where a bound folder holds other mounts."""
    wanted = struct.pack("=QQQQ", attributes, 0, 0, 0)
    flags = AT_RECURSIVE if recursive else 0
    called = libc.syscall(SYS_MOUNT_SETATTR, AT_FDCWD, os.fsencode(target), flags, wanted, len(wanted))
    checked(called, f"mount_setattr {target}")


def enter_namespaces(nobody: int) -> None:
    """New namespaces for this process and its children; root maps an unprivileged user of the host beside itself."""
    uid, gid = os.geteuid(), os.getegid()
    me, (ready_r, ready_w) = os.getpid(), os.pipe()
    helper = os.fork() if uid == 0 else None
    if helper == 0:
        # Only a process outside, with the rights of root, may map two users.
        os.close(ready_w)
        if os.read(ready_r, 1):
            for name in ("uid_map", "gid_map"):
                with open(f"/proc/{me}/{name}", "w") as file:
                    file.write(f"0 0 1\n{nobody} {nobody} 1\n")
        os._exit(0)
    checked(libc.unshare(NAMESPACES), "unshare")
    if helper is not None:
        os.write(ready_w, b"1")
        if os.waitpid(helper, 0)[1] != 0:
            raise OSError("the user map could not be written")
    else:
        for name, text in (("setgroups", "deny"), ("uid_map", f"{nobody} {uid} 1"), ("gid_map", f"{nobody} {gid} 1")):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)
    os.close(ready_r)
    os.close(ready_w)


def bind(source: str, target: str) -> None:
    """Show a host path read-only at `target`."""
    source = OUTSIDE + source
    if os.path.isdir(source):
        os.makedirs(target, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        os.close(os.open(target, os.O_CREAT | os.O_WRONLY, 0o644))
    mount(source, target, None, MS_BIND | MS_REC)
    set_attributes(target, ATTR_READ_ONLY | ATTR_NOSUID | ATTR_NODEV, recursive=True)


def device(name: str) -> None:
    """Show one harmless device of the host."""
    target = f"/dev/{name}"
    os.close(os.open(target, os.O_CREAT | os.O_WRONLY, 0o666))
    mount(f"{OUTSIDE}/dev/{name}", target, None, MS_BIND)
    set_attributes(target, ATTR_NOSUID | ATTR_NOEXEC, recursive=False)


def build_tree(spec: dict[str, Any]) -> None:
    """A new root in memory with what `spec` names; the host's is gone afterwards."""
    quiet = MS_NOSUID | MS_NODEV
    mount(None, "/", None, MS_REC | MS_PRIVATE)
    mount("tmpfs", "/tmp", "tmpfs", quiet, "mode=755,size=1m,nr_inodes=512")
    os.mkdir(f"/tmp{OUTSIDE}")
    checked(libc.pivot_root(b"/tmp", os.fsencode(f"/tmp{OUTSIDE}")), "pivot_root")
    os.chdir("/")
    for source, target in spec["binds"]:
        bind(source, target)
    for target in spec["covers"]:
        mount("tmpfs", target, "tmpfs", quiet | MS_RDONLY, "mode=755,size=4k,nr_inodes=2")
    for target in ("/dev", "/proc", spec["work"]):
        os.mkdir(target)
    for name in spec["devices"]:
        device(name)
    for aim, target in spec["symlinks"]:
        os.symlink(aim, target)
    owner = f"uid={spec['nobody']},gid={spec['nobody']},mode=700"
    mount("tmpfs", spec["work"], "tmpfs", quiet, f"{owner},size={spec['disk_bytes']},nr_inodes={spec['files']}")
    # Processes alone, without the kernel's tables, and without process 1, which it may not trace. A container that
    # masks its own /proc may mount no new one: then there is none at all.
    libc.mount(b"proc", b"/proc", b"proc", ctypes.c_ulong(quiet | MS_NOEXEC | MS_RDONLY), b"hidepid=2,subset=pid")
    checked(libc.umount2(os.fsencode(OUTSIDE), MNT_DETACH), "umount the host's tree")
    os.rmdir(OUTSIDE)
    set_attributes("/", ATTR_READ_ONLY, recursive=False)


def die_with_parent(lifeline: int) -> None:
    """Be killed when the process outside dies, and die if it is dead already: its end of the pipe is closed."""
    checked(prctl(PR_SET_PDEATHSIG, signal.SIGKILL), "pdeathsig")
    waiting = select.poll()
    waiting.register(lifeline, 0)
    if waiting.poll(0):
        os._exit(SETUP_FAILED)


def drop_rights(spec: dict[str, Any]) -> None:
    """Become nobody, without capabilities, without a way to new ones, behind the system call filter."""
    if os.geteuid() == 0:
        os.setgroups([])
    for capability in range(64):
        if prctl(PR_CAPBSET_DROP, capability) < 0:
            break
    os.setresgid(*[spec["nobody"]] * 3)
    os.setresuid(*[spec["nobody"]] * 3)
    header, empty = struct.pack("=Ii", CAPABILITY_VERSION_3, 0), struct.pack("=6I", *[0] * 6)
    checked(libc.capset(header, empty), "capset")
    checked(prctl(PR_SET_NO_NEW_PRIVS, 1), "no_new_privs")
    # Else the program could read this process, which has its user.
    checked(prctl(PR_SET_DUMPABLE, 0), "dumpable")


def set_filter(code: bytes) -> None:
    """Install the system call filter."""
    held = ctypes.create_string_buffer(code, len(code))

    class Program(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("code", ctypes.c_void_p))

    program = Program(len(code) // 8, ctypes.addressof(held))
    checked(prctl(PR_SET_SECCOMP, SECCOMP_FILTER, ctypes.byref(program)), "seccomp")


def set_limits(limits: dict[str, int]) -> None:
    """Hard limits of the program and all its children."""
    for name, value in limits.items():
        resource.setrlimit(getattr(resource, name), (value, value))


def write_files(spec: dict[str, Any]) -> None:
    for name, text in spec["content"].items():
        path = os.path.join(spec["work"], name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(bytes.fromhex(text))


def become_program(spec: dict[str, Any], ready: int) -> NoReturn:
    """Say that the set-up held, keep no descriptor but the three, run."""
    os.setsid()
    os.chdir(spec["work"])
    for number in range(1, signal.NSIG):
        if number not in (signal.SIGKILL, signal.SIGSTOP) and signal.getsignal(number) is not None:
            signal.signal(number, signal.SIG_DFL)
    set_limits(spec["limits"])
    os.write(ready, b"1")
    os.closerange(3, 1 << 16)
    os.execve(spec["argv"][0], [os.fsencode(word) for word in spec["argv"]], spec["environment"])


def process_one(spec: dict[str, Any], ready: int, lifeline: int) -> NoReturn:
    """Process 1 of the namespace: set up, start the program, reap; when it ends, so does everything inside."""
    die_with_parent(lifeline)
    checked(libc.sethostname(b"sandbox", 7), "sethostname")
    build_tree(spec)
    drop_rights(spec)
    die_with_parent(lifeline)  # again: a change of user forgets it
    write_files(spec)
    set_filter(bytes.fromhex(spec["seccomp"]))
    program = os.fork()
    if program == 0:
        become_program(spec, ready)
    for number in range(3):
        os.close(number)
    while True:
        pid, status = os.wait()
        if pid == program:
            code = os.waitstatus_to_exitcode(status)
            os._exit(code if code >= 0 else 128 - code)


def guarded(spec: dict[str, Any], ready: int, lifeline: int) -> NoReturn:
    """`process_one`; whatever fails before the program starts is told on stderr."""
    try:
        process_one(spec, ready, lifeline)
    except BaseException as error:
        os.write(2, f"{type(error).__name__}: {error}".encode())
        os._exit(SETUP_FAILED)


def main(spec_fd: int, ready: int, parent: int) -> int:
    """Wait for the namespace to end, all of it; SIGTERM kills it."""
    checked(prctl(PR_SET_PDEATHSIG, signal.SIGKILL), "pdeathsig")
    if os.getppid() != parent:
        return SETUP_FAILED
    os.umask(0o022)
    with os.fdopen(spec_fd, "rb") as file:
        spec = json.load(file)
    with open("/proc/self/oom_score_adj", "w") as file_of_score:
        file_of_score.write("1000")
    enter_namespaces(spec["nobody"])
    lifeline, held = os.pipe()
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    child = os.fork()
    if child == 0:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
        os.close(held)
        guarded(spec, ready, lifeline)

    def kill(number: int, frame: FrameType | None) -> None:
        os.kill(child, signal.SIGKILL)

    signal.signal(signal.SIGTERM, kill)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
    os.close(ready)
    for number in range(3):
        os.close(number)
    _, status = os.waitpid(child, 0)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    os._exit(main(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])))
