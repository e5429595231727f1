"""The child's side of the sandbox: give up rights first, then import and run the job.

On Linux: resource limits; a seccomp filter against sockets, other programs, other processes, mounts and tracing;
Landlock for files (reads: Python, its packages and what was named; writes: the job's own folder). Where the kernel
lacks one of these, and on other systems, an audit hook of Python refuses the same events: that stops ordinary code,
not code that calls the system behind Python's back. `doctor` and the docs say which apply.
"""

from __future__ import annotations

import ctypes
import errno
import importlib
import json
import os
import platform
import struct
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP = 38, 22
_ALLOW, _KILL, _REFUSE = 0x7FFF0000, 0x80000000, 0x00050000
_CLONE_THREAD = 0x10000
# System calls that are refused: their numbers on x86_64 and on aarch64, - where there is none.
_REFUSED = """
socket 41 198, connect 42 203, bind 49 200, listen 50 201, accept 43 202, accept4 288 242, sendto 44 206,
sendmsg 46 211, sendmmsg 307 269, execve 59 221, execveat 322 281, fork 57 -, vfork 58 -, ptrace 101 117,
process_vm_readv 310 270, process_vm_writev 311 271, kcmp 312 272, mount 165 40, umount2 166 39, pivot_root 155 41,
chroot 161 51, setns 308 268, unshare 272 97, bpf 321 280, perf_event_open 298 241, add_key 248 217,
request_key 249 218, keyctl 250 219, init_module 175 105, finit_module 313 273, delete_module 176 106, reboot 169 142,
kexec_load 246 104, kexec_file_load 320 294, userfaultfd 323 282, io_uring_setup 425 425, io_uring_enter 426 426,
io_uring_register 427 427, rt_sigqueueinfo 129 138, rt_tgsigqueueinfo 297 240, pidfd_send_signal 424 424,
pidfd_open 434 434, pidfd_getfd 438 438, tkill 200 130, open_tree 428 428, move_mount 429 429, fsopen 430 430,
fsconfig 431 431, fsmount 432 432, mount_setattr 442 442
"""
_ARCHITECTURES = ("x86_64", "aarch64")
_AUDIT_ARCH = (0xC000003E, 0xC00000B7)
_CLONE, _CLONE3, _KILL_CALL, _TGKILL, _PRLIMIT = (56, 220), (435, 435), (62, 129), (234, 131), (302, 261)
_READ_ALWAYS = (
    "/usr",
    "/lib",
    "/lib64",
    "/lib32",
    "/opt",
    "/bin",
    "/dev/null",
    "/dev/urandom",
    "/dev/random",
    "/dev/zero",
    "/etc/ld.so.cache",
    "/etc/localtime",
    "/etc/mime.types",
    "/etc/nsswitch.conf",
    "/etc/passwd",
    "/etc/python3",
    "/proc/cpuinfo",
    "/proc/meminfo",
    "/proc/stat",
    "/proc/sys",
    "/proc/filesystems",
    "/proc/version",
    "/sys/devices/system",
    "/sys/fs/cgroup",
    "/nix/store",
)


def main(settings: Mapping[str, Any]) -> None:
    """Confine this process, run the job, leave `reply.json`."""
    folder = Path(settings["folder"])
    _limit(settings)
    read = [
        *_READ_ALWAYS,
        f"/proc/{os.getpid()}",
        sys.prefix,
        sys.base_prefix,
        *settings["path"],
        *settings["readable"],
    ]
    bound = [_landlock(read, str(folder)), _seccomp()]
    if not all(bound):
        _audit(folder)
    sys.excepthook = lambda kind, error, trace: _reply(folder, _failure(error))  # whatever a stranger's code raises
    module, _, function = settings["job"].partition(":")
    job = getattr(importlib.import_module(module), function)
    _reply(folder, job(settings["arguments"], folder))


def _reply(folder: Path, answer: Mapping[str, Any]) -> None:
    (folder / "reply.json").write_text(json.dumps(answer), "utf-8")
    os._exit(0)  # no exit handlers of strangers


def _failure(error: BaseException) -> dict[str, Any]:
    """The answer for an exception; refusals by the system are told apart, wherever in the chain they are."""
    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in chain and len(chain) < 8:
        chain.append(cause)
        cause = cause.__cause__ or cause.__context__
    forbidden = [e for e in chain if isinstance(e, OSError) and e.errno in (errno.EPERM, errno.EACCES)]
    problem = getattr(error, "problem", None)
    text = problem if isinstance(problem, str) else f"{type(error).__name__}: {error}".removesuffix(": ")
    return {"error": (f"{type(forbidden[0]).__name__}: {forbidden[0]}" if forbidden else text)[:2000],
            "remedy": str(getattr(error, "remedy", ""))[:500], "forbidden": bool(forbidden)}


def _limit(settings: Mapping[str, Any]) -> None:
    try:
        import resource
    except ImportError:  # not a POSIX system: the parent's clock and the audit hook remain
        return
    seconds = int(settings["seconds"]) * 4 + 1  # of processor time, over several threads
    for kind, value in ((resource.RLIMIT_DATA, settings["memory"]), (resource.RLIMIT_FSIZE, settings["written"]),
                        (resource.RLIMIT_CORE, 0), (resource.RLIMIT_CPU, seconds), (resource.RLIMIT_NOFILE, 1024)):
        _, hard = resource.getrlimit(kind)
        wanted = int(value) if hard == resource.RLIM_INFINITY else min(int(value), hard)
        resource.setrlimit(kind, (wanted, wanted))


def _libc() -> Any:
    return ctypes.CDLL(None, use_errno=True)


def _seccomp() -> bool:
    if sys.platform != "linux" or platform.machine() not in _ARCHITECTURES or struct.calcsize("P") != 8:
        return False
    column = _ARCHITECTURES.index(platform.machine())
    refused = [int(e.split()[1 + column]) for e in _REFUSED.split(",") if e.split()[1 + column] != "-"]

    def instruction(code: int, jt: int, jf: int, k: int) -> bytes:
        return struct.pack("=HBBI", code, jt, jf, k)

    load, equal, at_least, bits, answer = 0x20, 0x15, 0x35, 0x45, 0x06
    deny = _REFUSE | errno.EPERM
    program = [instruction(load, 0, 0, 4), instruction(equal, 1, 0, _AUDIT_ARCH[column])]
    program += [instruction(answer, 0, 0, _KILL), instruction(load, 0, 0, 0)]
    program += [instruction(at_least, 0, 1, 0x40000000), instruction(answer, 0, 0, deny)]  # the x32 numbers
    for number in refused:
        program += [instruction(equal, 0, 1, number), instruction(answer, 0, 0, deny)]
    program += [instruction(equal, 0, 1, _CLONE3[column]), instruction(answer, 0, 0, _REFUSE | errno.ENOSYS)]
    program += [
        instruction(equal, 0, 4, _CLONE[column]),
        instruction(load, 0, 0, 16),
        instruction(bits, 1, 0, _CLONE_THREAD),
        instruction(answer, 0, 0, deny),
        instruction(answer, 0, 0, _ALLOW),
    ]
    me = os.getpid()
    for call, target in ((_KILL_CALL, me), (_TGKILL, me), (_PRLIMIT, 0)):  # on this process only
        program += [
            instruction(equal, 0, 4, call[column]),
            instruction(load, 0, 0, 16),
            instruction(equal, 1, 0, target),
            instruction(answer, 0, 0, deny),
            instruction(answer, 0, 0, _ALLOW),
        ]
    program.append(instruction(answer, 0, 0, _ALLOW))
    code = ctypes.create_string_buffer(b"".join(program))
    header = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(program), ctypes.addressof(code)))
    libc = _libc()
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        return False
    return bool(libc.prctl(_PR_SET_SECCOMP, 2, ctypes.c_void_p(ctypes.addressof(header)), 0, 0) == 0)


def _landlock(readable: list[str], writable: str) -> bool:
    if sys.platform != "linux" or platform.machine() not in _ARCHITECTURES:
        return False
    libc = _libc()
    version = libc.syscall(444, None, 0, 1)
    if version < 1:
        return False
    every = (1 << 13) - 1
    every |= (1 << 13) if version >= 2 else 0  # refer
    every |= (1 << 14) if version >= 3 else 0  # truncate
    every |= (1 << 15) if version >= 5 else 0  # device control
    network, scoped = (3 if version >= 4 else 0), (3 if version >= 6 else 0)
    attribute = struct.pack("=QQQ", every, network, scoped)[: 8 if version < 4 else 16 if version < 6 else 24]
    ruleset = libc.syscall(444, ctypes.c_char_p(attribute), len(attribute), 0)
    if ruleset < 0:
        return False
    read_file, read_folder = 1 << 2, (1 << 2) | (1 << 3)
    for path, rights in (
        *((p, read_folder) for p in readable),
        (writable, every & ~1),
        ("/dev/null", (1 << 1) | (1 << 2)),
    ):
        if path in ("", "/") or not os.path.exists(path):
            continue
        flags = getattr(os, "O_PATH", 0) | os.O_CLOEXEC
        descriptor = os.open(path, flags)
        if not os.path.isdir(path):
            rights &= read_file | (1 << 1) | ((1 << 14) if version >= 3 else 0)
        rule = struct.pack("=Qi", rights, descriptor)
        libc.syscall(445, ruleset, 1, ctypes.c_char_p(rule), 0)
        os.close(descriptor)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        return False
    done = libc.syscall(446, ruleset, 0) == 0
    os.close(ruleset)
    return bool(done)


def _audit(folder: Path) -> None:
    """Refuse the same in Python alone."""
    refused = (
        "socket.",
        "subprocess.",
        "os.system",
        "os.exec",
        "os.posix_spawn",
        "os.spawn",
        "os.fork",
        "os.kill",
        "pty.",
        "os.startfile",
        "webbrowser.",
        "ftplib.",
        "smtplib.",
        "urllib.",
    )
    inside = str(folder) + os.sep
    changes = ("os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate", "os.chmod",
               "os.chown", "shutil.")

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "socket.gethostname" or event == "socket.__new__":
            return
        if event.startswith(refused):
            raise PermissionError(errno.EPERM, f"{event} is not allowed here")
        if event == "open" or event.startswith(changes):
            path, flags = arguments[0], arguments[2] if event == "open" and len(arguments) > 2 else os.O_WRONLY
            writes = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_APPEND)
            if writes and isinstance(path, str | bytes):
                full = os.path.realpath(os.fsdecode(path))
                if not full.startswith(inside) and full != os.devnull:
                    raise PermissionError(errno.EACCES, f"writing {full} is not allowed here")

    sys.addaudithook(hook)


def isolation() -> tuple[str, ...]:
    """What confines a child on this system, for `doctor`: tried in a child of its own, so that nothing changes here."""
    kinds = ["time limit", "audit hook"]
    if os.name == "posix":
        kinds.insert(0, "resource limits")
    if sys.platform == "linux" and platform.machine() in _ARCHITECTURES:
        if _libc().syscall(444, None, 0, 1) >= 1:
            kinds.insert(0, "landlock")
        if Path("/proc/sys/kernel/seccomp").exists():
            kinds.insert(0, "seccomp")
    return tuple(kinds)
