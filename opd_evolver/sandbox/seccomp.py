"""The system calls that a sandboxed program may not make, as a classic BPF program.

A second wall behind the namespaces: no new namespaces or mounts, no tracing, no kernel interfaces
with a history of holes, no sockets but those of the private tree (a vsock knows no network
namespace), and no shared memory outside the limits.
Source: ours; numbers from the kernel's `unistd.h` of each architecture.
"""

from __future__ import annotations

import platform
import struct

ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
# Numbers of (x86_64, aarch64); calls from 424 on have one number everywhere.
DENIED: dict[str, tuple[int, int]] = {
    "ptrace": (101, 117),
    "syslog": (103, 116),
    "personality": (135, 92),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "acct": (163, 89),
    "mount": (165, 40),
    "umount2": (166, 39),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "reboot": (169, 142),
    "init_module": (175, 105),
    "delete_module": (176, 106),
    "quotactl": (179, 60),
    "shmget": (29, 194),
    "semget": (64, 190),
    "msgget": (68, 186),
    "mq_open": (240, 180),
    "kexec_load": (246, 104),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "unshare": (272, 97),
    "perf_event_open": (298, 241),
    "fanotify_init": (300, 262),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "setns": (308, 268),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "kcmp": (312, 272),
    "finit_module": (313, 273),
    "memfd_create": (319, 279),
    "kexec_file_load": (320, 294),
    "bpf": (321, 280),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "pidfd_getfd": (438, 438),
    "mount_setattr": (442, 442),
    "quotactl_fd": (443, 443),
    "memfd_secret": (447, 447),
}
CLONE, CLONE3, SOCKET, SOCKETPAIR = (56, 220), (435, 435), (41, 198), (53, 199)
# CLONE_NEWTIME aside (it shares a bit with the exit signal, and only clone3 and unshare take it).
NEW_NAMESPACE = 0x7E020000
AF_UNIX = 1
EPERM, ENOSYS, EAFNOSUPPORT = 1, 38, 97
X32 = 0x40000000

LOAD, JUMP_EQUAL, JUMP_AT_LEAST, JUMP_ANY_BIT, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
ALLOW, ERRNO, KILL = 0x7FFF0000, 0x00050000, 0x80000000
NUMBER_AT, ARCHITECTURE_AT, FIRST_ARGUMENT_AT = 0, 4, 16


def _instruction(code: int, k: int, yes: int = 0, no: int = 0) -> bytes:
    return struct.pack("=HBBI", code, yes, no, k)


def supported() -> bool:
    """Whether the filter is known for this machine's architecture."""
    return platform.machine() in ARCHITECTURES


def program() -> bytes:
    """The filter as an array of `struct sock_filter`.

    A forbidden call fails with EPERM; `clone3`, whose flags no filter can see, is reported as
    missing, so that the C library falls back to `clone`. A foreign calling convention kills.
    """
    machine = platform.machine()
    column = list(ARCHITECTURES).index(machine)
    out = [
        _instruction(LOAD, ARCHITECTURE_AT),
        _instruction(JUMP_EQUAL, ARCHITECTURES[machine], 1, 0),
        _instruction(RETURN, KILL),
        _instruction(LOAD, NUMBER_AT),
        _instruction(JUMP_AT_LEAST, X32, 0, 1),
        _instruction(RETURN, KILL),
    ]
    for numbers in DENIED.values():
        out += [_instruction(JUMP_EQUAL, numbers[column], 0, 1), _instruction(RETURN, ERRNO | EPERM)]
    out += [_instruction(JUMP_EQUAL, CLONE3[column], 0, 1), _instruction(RETURN, ERRNO | ENOSYS)]
    out += [
        _instruction(JUMP_EQUAL, CLONE[column], 0, 4),
        _instruction(LOAD, FIRST_ARGUMENT_AT),
        _instruction(JUMP_ANY_BIT, NEW_NAMESPACE, 0, 1),
        _instruction(RETURN, ERRNO | EPERM),
        _instruction(RETURN, ALLOW),
    ]
    for numbers in (SOCKET, SOCKETPAIR):
        out += [
            _instruction(JUMP_EQUAL, numbers[column], 0, 4),
            _instruction(LOAD, FIRST_ARGUMENT_AT),
            _instruction(JUMP_EQUAL, AF_UNIX, 1, 0),
            _instruction(RETURN, ERRNO | EAFNOSUPPORT),
            _instruction(RETURN, ALLOW),
        ]
    return b"".join([*out, _instruction(RETURN, ALLOW)])
