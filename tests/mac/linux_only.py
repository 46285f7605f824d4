"""Names that Python has on Linux and not on macOS, and functions of glibc that macOS' C library lacks.

From typeshed, which says for each name on which systems it is: `mypy --platform darwin` knows all of them
(tests/test_portable.py runs it). These are the ones that a program like ours may come across; they are
looked for in the source, and taken away where a Mac is played (without_linux.py). Standard library only.
"""

NAMES = {
    "select": """
        EPOLLERR EPOLLET EPOLLEXCLUSIVE EPOLLHUP EPOLLIN EPOLLMSG EPOLLONESHOT EPOLLOUT EPOLLPRI EPOLLRDBAND
        EPOLLRDHUP EPOLLRDNORM EPOLLWRBAND EPOLLWRNORM EPOLL_CLOEXEC POLLMSG POLLRDHUP epoll
        """,
    "os": """
        EFD_CLOEXEC EFD_NONBLOCK EFD_SEMAPHORE GRND_NONBLOCK GRND_RANDOM MFD_ALLOW_SEALING MFD_CLOEXEC
        O_DIRECT O_LARGEFILE O_NOATIME O_PATH O_RSYNC O_TMPFILE POSIX_FADV_DONTNEED POSIX_FADV_NOREUSE
        POSIX_FADV_NORMAL POSIX_FADV_RANDOM POSIX_FADV_SEQUENTIAL POSIX_FADV_WILLNEED P_PIDFD RTLD_DEEPBIND
        SCHED_BATCH SCHED_IDLE SPLICE_F_MORE SPLICE_F_MOVE SPLICE_F_NONBLOCK XATTR_CREATE XATTR_REPLACE
        copy_file_range eventfd eventfd_read eventfd_write fdatasync getrandom getresgid getresuid getxattr
        listxattr memfd_create pidfd_open pipe2 posix_fadvise posix_fallocate removexattr sched_getaffinity
        sched_getparam sched_getscheduler sched_setaffinity sched_setparam sched_setscheduler setns setresgid
        setresuid setxattr splice unshare waitid
        """,
    "signal": """
        SIGCLD SIGPOLL SIGPWR SIGRTMAX SIGRTMIN SIGSTKFLT pidfd_send_signal sigtimedwait sigwaitinfo
        """,
    "mmap": """
        MADV_DODUMP MADV_DOFORK MADV_DONTDUMP MADV_DONTFORK MADV_HUGEPAGE MADV_HWPOISON MADV_MERGEABLE
        MADV_NOHUGEPAGE MADV_REMOVE MADV_UNMERGEABLE MAP_DENYWRITE MAP_EXECUTABLE MAP_POPULATE MAP_STACK
        """,
    "socket": """
        AF_ALG AF_CAN AF_NETLINK AF_PACKET AF_VSOCK MSG_CMSG_CLOEXEC MSG_ERRQUEUE MSG_FASTOPEN MSG_MORE
        SCM_CREDENTIALS SOCK_CLOEXEC SOCK_NONBLOCK SO_BINDTODEVICE SO_DOMAIN SO_INCOMING_CPU SO_MARK
        SO_PASSCRED SO_PASSSEC SO_PEERCRED SO_PEERSEC SO_PRIORITY SO_PROTOCOL TCP_CONGESTION TCP_CORK
        TCP_DEFER_ACCEPT TCP_INFO TCP_KEEPIDLE TCP_LINGER2 TCP_QUICKACK TCP_SYNCNT TCP_USER_TIMEOUT
        TCP_WINDOW_CLAMP
        """,
    "selectors": "EpollSelector",
    "fcntl": """
        F_ADD_SEALS F_EXLCK F_GETPIPE_SZ F_GETSIG F_GET_SEALS F_NOTIFY F_SEAL_GROW F_SEAL_SEAL F_SEAL_SHRINK
        F_SEAL_WRITE F_SETPIPE_SZ F_SETSIG F_SHLCK
        """,
    "resource": "RLIMIT_MSGQUEUE RLIMIT_NICE RLIMIT_RTPRIO RLIMIT_SIGPENDING RUSAGE_THREAD prlimit",
    "time": "CLOCK_BOOTTIME CLOCK_TAI pthread_getcpuclockid",
    "errno": "EBADFD EISNAM ENOTUNIQ EREMOTEIO ERESTART EUCLEAN",
}
LINUX_ONLY = {module: frozenset(names.split()) for module, names in NAMES.items()}

# Called by ctypes. mprotect, memcmp, memset, mlock and madvise are on both; the numbers of advice are not.
GLIBC_ONLY = frozenset(
    """
    capget capset epoll_create1 eventfd explicit_bzero fallocate getauxval getrandom inotify_init1
    mallopt malloc_info malloc_trim memfd_create memfd_secret mremap name_to_handle_at
    open_by_handle_at personality pidfd_open prctl prlimit process_madvise process_vm_readv
    process_vm_writev ptrace renameat2 sched_getaffinity sched_setaffinity secure_getenv setns signalfd
    statx syscall timerfd_create umount2 unshare
    """.split()  # noqa: SIM905  a list of words reads better than a word a line
)

# Where Linux alone keeps them.
PATHS = ("/proc", "/sys", "/dev/shm")
