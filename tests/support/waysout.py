"""Every way out of a containment that we know of, tried: `python3 waysout.py FACTS [WAY...]`, of the standard library alone.

FACTS is JSON: what there is outside to be reached. Each way is tried in a process of its own; the answer is a line of JSON,
way -> `out` when it got through, else the error that kept it. Outside, where nothing keeps it, those in `OPEN` say `out`: that
is how the test knows that a way is one. What is not in there is not to be tried outside, where it might work.
"""

import ctypes
import json
import os
import signal
import socket
import struct
import sys
import urllib.request
from collections.abc import Callable
from typing import Any

LIBC = ctypes.CDLL(None, use_errno=True)
MACHINE = os.uname().machine
FACTS: dict[str, Any] = {}
WAYS: dict[str, Callable[[], None]] = {}
TRY_S = 5


def way(function: Callable[[], None]) -> Callable[[], None]:
    WAYS[function.__name__] = function
    return function


def call(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def syscall(numbers: dict[str, int], *arguments: Any) -> int:
    return call(LIBC.syscall(numbers[MACHINE], *arguments))


def greet(family: int, address: Any, kind: int = socket.SOCK_STREAM) -> None:
    """Through when somebody answers."""
    with socket.socket(family, kind) as one:
        one.settimeout(3)
        one.connect(address)
        one.send(b"hello")
        if one.recv(16) != b"outside":
            raise OSError("no answer")


# -- the network ---------------------------------------------------------------------------------------------------------


@way
def an_address_of_the_host() -> None:
    greet(socket.AF_INET, (FACTS["address"], FACTS["tcp"]))


@way
def another_port_of_the_hosts_loopback() -> None:
    greet(socket.AF_INET, ("127.0.0.1", FACTS["tcp"]))


@way
def ipv6() -> None:
    greet(socket.AF_INET6, ("::1", FACTS["tcp6"]))


@way
def a_name_server_over_udp() -> None:
    greet(socket.AF_INET, (FACTS["address"], FACTS["udp"]), socket.SOCK_DGRAM)


@way
def a_name_server_over_udp_and_ipv6() -> None:
    greet(socket.AF_INET6, ("::1", FACTS["udp6"]), socket.SOCK_DGRAM)


@way
def quic() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        one.sendto(b"\xc0\x00\x00\x00\x01", (FACTS["address"], 443))


@way
def raw_ip() -> None:
    socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP).close()


@way
def raw_ethernet() -> None:
    socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0).close()


@way
def the_hypervisor_by_vsock() -> None:
    socket.socket(40, socket.SOCK_STREAM).close()


@way
def a_family_with_high_bits() -> None:
    """The kernel takes 32 of the 64 bits; a filter that compares all of them would not see it."""
    os.close(syscall({"x86_64": 41, "aarch64": 198}, ctypes.c_uint64(40 | 1 << 32), 1, 0))


@way
def no_proxy_variables() -> None:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"http://{FACTS['address']}:{FACTS['tcp']}/", timeout=3) as answer:
        answer.read()


@way
def a_network_interface_of_its_own() -> None:
    """Without a capability nobody makes an interface; with one, it would still lead nowhere."""
    link = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
    body = struct.pack("=BBHiII", 0, 0, 0, 0, 0, 0) + struct.pack("=HH8s", 12, 3, b"dummy99\0") + struct.pack("=HH", 16, 18)
    body += struct.pack("=HH6sxx", 10, 1, b"dummy\0")
    link.send(struct.pack("=IHHII", 16 + len(body), 16, 0x0605, 1, 0) + body)
    number = struct.unpack_from("=i", link.recv(4096), 16)[0]
    if number:
        raise OSError(-number, os.strerror(-number))
    LIBC.system(b"ip link del dummy99")


# -- sockets of the file system and beside it ----------------------------------------------------------------------------


@way
def an_abstract_unix_socket() -> None:
    greet(socket.AF_UNIX, "\0" + FACTS["abstract"])


@way
def a_unix_socket_in_tmp() -> None:
    greet(socket.AF_UNIX, FACTS["tmp_socket"])


@way
def controls_socket() -> None:
    greet(socket.AF_UNIX, FACTS["home"] + "/run/control.sock")


@way
def a_doors_own_socket() -> None:
    greet(socket.AF_UNIX, FACTS["home"] + "/run/door-1.sock")


@way
def a_socket_in_the_working_folder() -> None:
    greet(socket.AF_UNIX, FACTS["work"] + "/deep/er/agent.sock")


@way
def a_socket_under_another_name() -> None:
    os.link(FACTS["work"] + "/deep/er/agent.sock", FACTS["work"] + "/other.sock")
    try:
        greet(socket.AF_UNIX, FACTS["work"] + "/other.sock")
    finally:
        os.unlink(FACTS["work"] + "/other.sock")


@way
def the_socket_that_a_variable_names() -> None:
    greet(socket.AF_UNIX, os.environ["SSH_AUTH_SOCK"])


@way
def an_inherited_descriptor() -> None:
    for number in range(3, 256):
        try:
            with socket.socket(fileno=os.dup(number)) as one:
                one.settimeout(3)
                one.send(b"hello")
                if one.recv(16) == b"outside":
                    return
        except OSError:
            continue
    raise OSError("there is none")


@way
def shared_memory_by_its_number() -> None:
    call(LIBC.shmget(FACTS["shm"], 16, 0))


@way
def shared_memory_by_its_name() -> None:
    open(FACTS["dev_shm"]).close()


# -- other processes -----------------------------------------------------------------------------------------------------


@way
def ptrace_of_an_outside_process() -> None:
    call(LIBC.ptrace(16, FACTS["pid"], None, None))
    os.waitpid(FACTS["pid"], 0)
    LIBC.ptrace(17, FACTS["pid"], None, None)


@way
def a_signal_to_an_outside_process() -> None:
    os.kill(FACTS["pid"], 0)


@way
def the_root_of_an_outside_process() -> None:
    os.listdir(f"/proc/{FACTS['pid']}/{'root'}")


@way
def the_environment_of_an_outside_process() -> None:
    open(f"/proc/{FACTS['pid']}/environ", "rb").close()


@way
def a_descriptor_of_an_outside_process() -> None:
    handle = os.pidfd_open(FACTS["pid"])
    os.close(syscall({"x86_64": 438, "aarch64": 438}, handle, 1, 0))


@way
def the_namespaces_of_an_outside_process() -> None:
    with open(f"/proc/{FACTS['pid']}/ns/net") as there:
        call(LIBC.setns(there.fileno(), 0x40000000))


@way
def ptrace_of_process_1() -> None:
    call(LIBC.ptrace(0x4206, 1, None, None))


@way
def the_memory_of_process_1() -> None:
    open("/proc/1/mem", "rb").close()


@way
def the_root_of_process_1() -> None:
    os.listdir("/proc/1/" "root")


@way
def the_descriptors_of_process_1() -> None:
    """User id 0 may count them; what they are is another matter."""
    for number in range(16):
        try:
            os.readlink(f"/proc/1/fd/{number}")
        except FileNotFoundError:
            continue


@way
def the_namespaces_of_process_1() -> None:
    with open("/proc/1/ns/mnt") as there:
        call(LIBC.setns(there.fileno(), 0x00020000))


@way
def the_namespaces_of_its_parent() -> None:
    """What a handle of a namespace says of the one above it (ioctl_nsfs(2))."""
    import fcntl

    with open("/proc/self/ns/user") as own:
        above = fcntl.ioctl(own.fileno(), 0xB702)  # NS_GET_PARENT
    call(LIBC.setns(above, 0x10000000))


# -- files and mounts ----------------------------------------------------------------------------------------------------


@way
def the_keys_folder() -> None:
    open(FACTS["home"] + "/keys/control/0.key").close()


@way
def the_home_over_the_working_folder() -> None:
    """The home lies beside: nothing above it is there."""
    os.listdir(os.path.join(FACTS["work"], "..", "home"))


@way
def a_file_of_the_users_home_folder() -> None:
    open(FACTS["user_home"] + "/.ssh/id_ed25519").close()


@way
def a_file_that_only_some_may_read() -> None:
    open("/etc/shadow").close()


@way
def a_file_beside_the_working_folder() -> None:
    open(FACTS["beside"]).close()


@way
def a_program_of_the_system_to_write() -> None:
    with open("/usr/lib/wardline-test", "w"):
        os.unlink("/usr/lib/wardline-test")


@way
def a_setting_of_the_kernel() -> None:
    open("/proc/sys/kernel/core_pattern", "r+").close()


@way
def the_kernels_own_file_system() -> None:
    os.listdir("/sys/kernel")


@way
def a_disk() -> None:
    os.mknod("disk", 0o060600, os.makedev(*FACTS["disk"]))
    try:
        open("disk", "rb").close()
    finally:
        os.unlink("disk")


@way
def a_mount_of_its_own() -> None:
    os.makedirs("mounted", exist_ok=True)
    call(LIBC.mount(b"tmpfs", b"mounted", b"tmpfs", 0, None))
    LIBC.umount2(b"mounted", 2)


@way
def what_covers_a_file_taken_away() -> None:
    call(LIBC.umount2(b"/etc/shadow", 2))


@way
def what_is_read_only_made_writable() -> None:
    call(LIBC.mount(None, b"/usr", None, 32 | 4096, None))


@way
def another_root() -> None:
    os.chroot(".")


@way
def a_pivot() -> None:
    call(LIBC.pivot_root(b".", b"."))


@way
def a_user_namespace_of_its_own() -> None:
    call(LIBC.unshare(0x10000000))


@way
def a_mount_namespace_of_its_own() -> None:
    call(LIBC.unshare(0x00020000))


@way
def a_file_by_its_handle() -> None:
    handle = ctypes.create_string_buffer(struct.pack("=Ii", 8, 1) + struct.pack("=II", 2, 0))  # inode 2: the root of its disk
    folder = os.open(".", os.O_RDONLY)
    os.close(call(LIBC.open_by_handle_at(folder, handle, os.O_RDONLY)))


# -- the kernel's other doors --------------------------------------------------------------------------------------------


@way
def io_uring() -> None:
    os.close(syscall({"x86_64": 425, "aarch64": 425}, 4, ctypes.create_string_buffer(120)))


@way
def keys_of_the_kernel() -> None:
    """The session's own keyring, which is inherited; with it goes `request_key`, which has the kernel look names up outside."""
    syscall({"x86_64": 250, "aarch64": 219}, 0, ctypes.c_int(-3), 1)


@way
def a_bpf_program() -> None:
    attributes = struct.pack("=IIII", 2, 4, 4, 1) + bytes(112)  # an array map
    os.close(syscall({"x86_64": 321, "aarch64": 280}, 0, attributes, len(attributes)))


OPEN = (
    "an_address_of_the_host", "another_port_of_the_hosts_loopback", "ipv6", "a_name_server_over_udp",
    "a_name_server_over_udp_and_ipv6", "quic", "the_hypervisor_by_vsock", "a_family_with_high_bits",
    "no_proxy_variables", "an_abstract_unix_socket", "a_unix_socket_in_tmp", "controls_socket", "a_doors_own_socket",
    "a_socket_in_the_working_folder", "a_socket_under_another_name", "the_socket_that_a_variable_names",
    "an_inherited_descriptor", "shared_memory_by_its_number", "shared_memory_by_its_name",
    "ptrace_of_an_outside_process", "a_signal_to_an_outside_process", "the_root_of_an_outside_process",
    "the_environment_of_an_outside_process", "a_descriptor_of_an_outside_process", "the_keys_folder",
    "the_home_over_the_working_folder", "a_file_of_the_users_home_folder", "a_file_beside_the_working_folder",
    "the_kernels_own_file_system", "a_user_namespace_of_its_own", "io_uring", "keys_of_the_kernel",
)  # fmt: skip
"""Ways that anybody has who is not contained. The last two and vsock depend on the kernel."""

OPEN_FOR_ROOT = (
    "raw_ip", "raw_ethernet", "a_file_that_only_some_may_read", "a_program_of_the_system_to_write",
    "a_setting_of_the_kernel", "a_mount_of_its_own", "another_root", "a_mount_namespace_of_its_own", "a_bpf_program",
    "the_namespaces_of_an_outside_process",
)  # fmt: skip


def attempt(function: Callable[[], None]) -> str:
    """What becomes of one way, tried in a child that may not come back."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        signal.alarm(TRY_S)
        try:
            function()
            said = "out"
        except BaseException as fault:
            said = f"{type(fault).__name__}: {fault}"[:200]
        os.write(writing, said.encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as file:
        said = file.read().decode()
    os.waitpid(child, 0)
    return said or "killed"


if __name__ == "__main__":
    FACTS.update(json.loads(sys.argv[1]))
    print(json.dumps({name: attempt(WAYS[name]) for name in sys.argv[2:] or WAYS}))
