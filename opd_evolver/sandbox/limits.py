"""What a sandboxed run may use, and what it came to."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from opd_evolver.records import Record

Language = Literal["python", "bash"]
LANGUAGES: tuple[Language, ...] = ("python", "bash")
Mode = Literal["bubblewrap", "namespaces"]
MODES: tuple[Mode, ...] = ("bubblewrap", "namespaces")


class Limits(Record):
    """Most that one run may take. A fork bomb takes at most `processes` times `memory_bytes` until `wall_s`.

    Attributes:
        wall_s: seconds from the end of the set-up until the whole namespace is killed.
        cpu_s: CPU seconds of one process.
        memory_bytes: address space of one process.
        processes: processes and threads at a time.
        disk_bytes: the private tree, which lies in memory.
        files: files and folders in the private tree (bubblewrap sets no such limit).
        file_bytes: one written file.
        open_files: descriptors of one process.
        output_bytes: stdout and stderr together; the run is killed beyond.
        input_bytes: code, arguments and files together.
    """

    wall_s: float = Field(5.0, gt=0)
    cpu_s: int = Field(3, gt=0)
    memory_bytes: int = Field(192 << 20, gt=0)
    processes: int = Field(16, gt=0)
    disk_bytes: int = Field(16 << 20, gt=0)
    files: int = Field(1024, gt=0)
    file_bytes: int = Field(4 << 20, gt=0)
    open_files: int = Field(64, ge=16)
    output_bytes: int = Field(64 << 10, gt=0)
    input_bytes: int = Field(1 << 20, gt=0)


class Outcome(Record):
    """How a run ended.

    Attributes:
        exit_code: the program's own, or 128 + n when signal n ended it, as a shell says it.
        stdout: at most `Limits.output_bytes` together with stderr; bytes that are no UTF-8 become U+FFFD.
        stderr: as above.
        timed_out: the wall time was over.
        truncated: it said more than `Limits.output_bytes`.
        killed_by: `wall time`, `output`, or the name of the signal that ended it; None when it ended by itself.
    """

    exit_code: int
    stdout: str = ""
    stderr: str = ""
    timed_out: bool = False
    truncated: bool = False
    killed_by: str | None = None
