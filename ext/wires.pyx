"""Connections of a door, read and written beside its event loop: one `epoll` of our own inside the loop's.

    loop (uvloop, asyncio)  ->  our epoll is readable  ->  each connection with news  ->  its protocol, as asyncio has it

A `Wire` is a transport in all but name, for those who read with `data_received`. Set-up is what it saves: a connection is made
with the system calls that it needs, none that asks for what is known, and no future, task or handle of the loop. Bytes are
written when `write` says so; what the kernel does not take waits, and its writer is paused.

Each connection is registered once, edge-triggered: news come once, and are kept until they are read (`_more`). Its last word,
`connection_lost`, comes when no other call of its protocol is under way.
"""

import os

from libc.errno cimport errno as c_errno
from libc.stdint cimport uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memset
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE

from ext.streams cimport *

cdef enum:
    READ_BYTES = 512 << 10  # in bulk, half as much at once costs an eighth more for each byte
    READS_MAX = 1           # of one connection in a row: then others have their turn
    EVENTS = 64
    ACCEPTS_MAX = 64
    HIGH_BYTES = 64 << 10
    TEXT_BYTES = 64

REST_S = 1.0
"""How long nobody is let in where the system has no room for another connection."""


cdef class Wire:
    """One connection: a stream socket that does not block. Made by `Wires`."""

    cdef Wires _wires
    cdef object _protocol, _received, _peer, _factory, _told
    cdef list _waiting          # what is still to be written, first piece first
    cdef Py_ssize_t _at         # of the first piece: so much of it is written
    cdef Py_ssize_t _waits, _high, _low
    cdef uint64_t _number
    cdef int _fd
    cdef bint _connecting, _held, _more, _hung, _ended, _closing, _full, _last, _shut, _queued
    cdef object _fault

    def __cinit__(self, Wires wires not None, int fd):
        self._wires = wires
        self._fd = fd
        self._high, self._low = HIGH_BYTES, HIGH_BYTES // 4
        self._waiting = []

    def __dealloc__(self):
        if self._fd >= 0:
            close(self._fd)

    # -- as asyncio.Transport has it ---------------------------------------------------------------------------------

    def get_extra_info(self, str name not None, default=None):
        """`peername` (nothing but an address and a port for TCP, an empty text for a socket on disk), `socket`: what has its
        `fileno`, as long as it is open."""
        if name == "peername":
            return self._peer if self._peer is not None else default
        if name == "socket" and self._fd >= 0:
            return self
        return default

    def fileno(self):
        """The descriptor; -1 once it is closed."""
        return self._fd

    def set_protocol(self, protocol not None):
        """Who is told from now on."""
        self._protocol = protocol
        self._received = protocol.data_received

    def get_protocol(self):
        """Who is told."""
        return self._protocol

    def set_write_buffer_limits(self, high=None, low=None):
        """Beyond `high` bytes that wait its writer is paused, until no more than `low` do."""
        self._high = HIGH_BYTES if high is None else high
        self._low = self._high // 4 if low is None else low

    def get_write_buffer_size(self):
        """Bytes that wait here; what the kernel has taken does not count."""
        return self._waits

    def unsent(self):
        """Bytes that wait here or in the kernel until the peer's kernel has them; its end counts as one."""
        cdef int found = 0
        if self._waits or self._fd < 0 or ioctl(self._fd, TIOCOUTQ, &found):
            return self._waits
        return found

    def is_closing(self):
        """Whether it is closed, or will be as soon as what waits is written."""
        return self._closing

    def pause_reading(self):
        """Tell nothing that it says, for now."""
        self._held = True

    def resume_reading(self):
        """Go on with what it said, soon."""
        if self._held:
            self._held = False
            if self._more and not self._closing:
                self._wires._again(self)

    def write(self, bytes data not None):
        """Send it, behind whatever waits. Lost where the connection is closing, as in asyncio."""
        cdef Py_ssize_t sent = 0, size = PyBytes_GET_SIZE(data)
        if self._last:
            raise RuntimeError("nothing can be written behind the end")
        if self._closing or not size:
            return
        if not self._waiting:
            sent = send(self._fd, PyBytes_AS_STRING(data), size, MSG_NOSIGNAL)
            if sent == size:
                return
            if sent < 0:
                if c_errno != EAGAIN:
                    self._end(_fault(c_errno))
                    return
                sent = 0
            self._at = sent
        self._waiting.append(data)
        self._waits += size - sent
        if self._waits > self._high and not self._full:
            self._full = True
            self._protocol.pause_writing()

    def write_eof(self):
        """Say, behind what waits, that nothing more comes."""
        if not self._last and not self._closing:
            self._last = True
            if not self._waiting:
                self._shut_down()

    def can_write_eof(self):
        """It can."""
        return True

    def close(self):
        """Close behind what waits; nothing more is read."""
        if not self._closing:
            self._closing = True
            if not self._waiting:
                self._end(None)

    def abort(self):
        """Close at once; what waits is not sent."""
        self._end(None)

    def reset(self):
        """Close at once, so that the peer sees a break and no end: what the kernel still has is dropped too."""
        if self._fd >= 0:
            wl_reset(self._fd)
        self._end(None)

    # -- news --------------------------------------------------------------------------------------------------------

    cdef int _news(self, uint32_t events) except -1:
        if self._connecting:
            self._is_made()
            if self._fd < 0:
                return 0
        if events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR):
            self._hung = True
        if events & (EPOLLOUT | EPOLLERR) and self._waiting:
            self._flush()
        if events & (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR):
            self._more = True
            self._read()
        return 0

    cdef int _read(self) except -1:
        """What it says, until there is no more, or it is held."""
        cdef Py_ssize_t size
        cdef int reads = 0
        cdef char* room = self._wires._room
        while self._more and not self._held and not self._closing and not self._ended:
            if reads == READS_MAX:
                self._wires._again(self)
                return 0
            reads += 1
            size = recv(self._fd, room, READ_BYTES, 0)
            if size > 0:
                # fewer than asked for: the kernel has no more, unless the end is behind it, of which we are told once
                self._more = size == READ_BYTES or self._hung
                self._received(PyBytes_FromStringAndSize(room, size))
            elif size == 0:
                self._ended, self._more = True, False
                if not self._protocol.eof_received():
                    self.close()
            elif c_errno == EAGAIN:
                self._more = False
            else:
                self._end(_fault(c_errno))
        return 0

    cdef int _flush(self) except -1:
        """Write what waits, as far as the kernel takes it."""
        cdef Py_ssize_t sent, size
        cdef bytes first
        while self._waiting and self._fd >= 0:
            first = <bytes>self._waiting[0]
            size = PyBytes_GET_SIZE(first) - self._at
            sent = send(self._fd, PyBytes_AS_STRING(first) + self._at, size, MSG_NOSIGNAL)
            if sent < 0:
                if c_errno != EAGAIN:
                    self._end(_fault(c_errno))
                break
            self._waits -= sent
            self._at += sent
            if sent == size:
                del self._waiting[0]
                self._at = 0
        if self._fd < 0:
            return 0
        if not self._waiting:
            if self._closing:
                self._end(None)
                return 0
            if self._last:
                self._shut_down()
        if self._full and self._waits <= self._low:
            self._full = False
            self._protocol.resume_writing()
        return 0

    cdef int _shut_down(self) except -1:
        if not self._shut:
            self._shut = True
            shutdown(self._fd, SHUT_WR)  # where it is broken already, a read says so
        return 0

    cdef int _is_made(self) except -1:
        """Its way to the other side has ended, there or not."""
        cdef int fault = wl_fault(self._fd)
        told, factory, self._told, self._factory = self._told, self._factory, None, None
        self._connecting = False
        if fault:
            self._drop()
            told(None, _fault(fault))
            return 0
        try:
            protocol = factory()
            self.set_protocol(protocol)
            protocol.connection_made(self)
        except Exception as failed:
            self._protocol = None
            self._drop()
            told(None, failed)
            return 0
        told(protocol, None)
        return 0

    def give_up(self):
        """Nobody waits any more for it to be made; nobody is told."""
        if self._connecting:
            self._connecting = False
            self._told = self._factory = None
            self._drop()

    # -- its end -----------------------------------------------------------------------------------------------------

    cdef int _drop(self) except -1:
        if self._fd >= 0:
            close(self._fd)  # which takes it out of the epoll too: nobody else has this descriptor
            self._fd = -1
            self._wires._all.pop(self._number, None)
        self._closing = True
        self._waiting.clear()
        self._waits = 0
        return 0

    cdef int _end(self, fault) except -1:
        """Close it, and have its protocol told once nothing else of it is under way."""
        if self._fd >= 0:
            self._drop()
            self._fault = fault
            if self._protocol is not None:
                self._wires._lost.append(self)
                self._wires._soon()
        return 0

    cdef int _is_lost(self) except -1:
        protocol, fault, self._protocol, self._received, self._fault = self._protocol, self._fault, None, None, None
        protocol.connection_lost(fault)
        return 0


cdef class Listener:
    """A socket that lets connections in."""

    cdef Wires _wires
    cdef object _socket, _factory
    cdef uint64_t _number

    def close(self):
        """Let nobody in any more; who waits at the door is sent away by the kernel."""
        if self._socket is not None:
            self._wires._all.pop(self._number, None)
            self._socket.close()
            self._socket = None

    cdef int _let_in(self) except -1:
        cdef wl_address address
        cdef socklen_t size
        cdef int fd, times
        for times in range(ACCEPTS_MAX):
            if self._socket is None:
                return 0
            size = sizeof(address)
            fd = accept4(self._socket.fileno(), &address.any, &size, SOCK_NONBLOCK | SOCK_CLOEXEC)
            if fd < 0:
                if c_errno == ECONNABORTED:
                    continue
                if c_errno != EAGAIN:
                    self._rest(c_errno)
                return 0
            self._wires._take(fd, &address, self._factory)
        return 0

    cdef int _rest(self, int why) except -1:
        wl_epoll(self._wires._epoll, EPOLL_CTL_DEL, self._socket.fileno(), 0, 0)
        self._wires._loop.call_exception_handler({"message": f"no connection is let in: {os.strerror(why).lower()}"})
        self._wires._loop.call_later(REST_S, self.go_on)

    def go_on(self):
        """Let connections in again."""
        if self._socket is not None:
            self._wires._watch(self._socket.fileno(), EPOLLIN, self._number)


cdef class Wires:
    """The connections of one loop. One thread."""

    cdef object _loop
    cdef dict _all              # each that is open, by its number: descriptors are used again, numbers are not
    cdef list _lost, _queue
    cdef uint64_t _last
    cdef char* _room
    cdef int _epoll
    cdef bint _asked

    def __cinit__(self):
        self._epoll = -1

    def __init__(self, loop not None):
        self._loop = loop
        self._all, self._lost, self._queue = {}, [], []
        self._room = <char*>malloc(READ_BYTES)
        if self._room is NULL:
            raise MemoryError
        self._epoll = epoll_create1(EPOLL_CLOEXEC)
        if self._epoll < 0:
            raise _fault(c_errno)
        loop.add_reader(self._epoll, self.turn)

    def __dealloc__(self):
        if self._epoll >= 0:
            close(self._epoll)
        free(self._room)

    def __len__(self):
        return len(self._all)

    def listen(self, socket not None, factory not None, int backlog):
        """Let connections in: `factory` makes a protocol for each. The socket is the listener's. Raises OSError."""
        cdef Listener made = Listener.__new__(Listener)
        socket.setblocking(False)
        socket.listen(backlog)
        made._wires, made._socket, made._factory = self, socket, factory
        made._number = self._new(made)
        self._watch(socket.fileno(), EPOLLIN, made._number)
        return made

    def connect(self, str address not None, uint16_t port, factory not None, told not None):
        """Connect to an IP address. `told(protocol, None)` follows `connection_made`; else `told(None, fault)`, an OSError or
        what `factory` or `connection_made` raised; never before this returns. Raises OSError where that is known at once."""
        cdef wl_address to
        cdef socklen_t size
        cdef Wire wire
        cdef bytes text
        memset(&to, 0, sizeof(to))
        name, _, scope = address.partition("%")
        text = name.encode()
        if inet_pton(AF_INET, PyBytes_AS_STRING(text), &to.v4.sin_addr) == 1:
            to.v4.sin_family, to.v4.sin_port, size = AF_INET, htons(port), sizeof(to.v4)
        elif inet_pton(AF_INET6, PyBytes_AS_STRING(text), &to.v6.sin6_addr) == 1:
            to.v6.sin6_family, to.v6.sin6_port, size = AF_INET6, htons(port), sizeof(to.v6)
            to.v6.sin6_scope_id = int(scope) if scope.isdigit() else if_nametoindex(scope.encode()) if scope else 0
        else:
            raise ValueError(f"`{address}` is no address")
        cdef int fd = socket(to.any.sa_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0)
        if fd < 0:
            raise _fault(c_errno)
        wire = Wire.__new__(Wire, self, fd)  # whose descriptor it is from here on
        wl_flag(fd, IPPROTO_TCP, TCP_NODELAY)
        wire._peer = (address, port)
        if connect(fd, &to.any, size) and c_errno != EINPROGRESS:
            raise _fault(c_errno)
        wire._connecting, wire._factory, wire._told = True, factory, told
        self._enter(wire, EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET)
        return wire

    def close(self):
        """Close whatever is open; nobody is told."""
        if self._epoll >= 0:
            self._loop.remove_reader(self._epoll)
            for one in list(self._all.values()):
                if isinstance(one, Wire):
                    (<Wire>one)._drop()
                else:
                    (<Listener>one).close()
            close(self._epoll)
            self._epoll = -1

    # -- inside ------------------------------------------------------------------------------------------------------

    cdef uint64_t _new(self, one) except 0:
        self._last += 1
        self._all[self._last] = one
        return self._last

    cdef int _watch(self, int fd, uint32_t events, uint64_t number) except -1:
        if wl_epoll(self._epoll, EPOLL_CTL_ADD, fd, events, number):
            raise _fault(c_errno)
        return 0

    cdef int _enter(self, Wire wire, uint32_t events) except -1:
        wire._number = self._new(wire)
        try:
            self._watch(wire._fd, events, wire._number)
        except OSError:
            wire._drop()
            raise
        return 0

    cdef int _take(self, int fd, wl_address* address, factory) except -1:
        """A connection that was let in."""
        cdef Wire wire = Wire.__new__(Wire, self, fd)
        cdef char text[TEXT_BYTES]
        if address.any.sa_family == AF_INET:
            inet_ntop(AF_INET, &address.v4.sin_addr, text, TEXT_BYTES)
            wire._peer = ((<bytes>text).decode(), ntohs(address.v4.sin_port))
        elif address.any.sa_family == AF_INET6:
            inet_ntop(AF_INET6, &address.v6.sin6_addr, text, TEXT_BYTES)
            wire._peer = ((<bytes>text).decode(), ntohs(address.v6.sin6_port))
        else:
            wire._peer = ""
        if wire._peer:
            wl_flag(fd, IPPROTO_TCP, TCP_NODELAY)
        try:
            protocol = factory()
            wire.set_protocol(protocol)
            self._enter(wire, EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET)
            protocol.connection_made(wire)
        except Exception as fault:
            self._failed(wire, fault)
        return 0

    cdef int _failed(self, Wire wire, fault) except -1:
        """A protocol has raised what it should have caught: its connection ends, as in asyncio."""
        self._loop.call_exception_handler(
            {"message": "a protocol failed", "exception": fault, "protocol": wire._protocol, "transport": wire})
        wire._end(fault)
        return 0

    cdef int _again(self, Wire wire) except -1:
        """Look at it once more, soon."""
        if not wire._queued:
            wire._queued = True
            self._queue.append(wire)
            self._soon()
        return 0

    cdef int _soon(self) except -1:
        if not self._asked:
            self._asked = True
            self._loop.call_soon(self.later)
        return 0

    def turn(self):
        """Tell all news that there are. The loop calls it."""
        cdef epoll_event events[EVENTS]
        cdef int i, count = epoll_wait(self._epoll, events, EVENTS, 0)
        for i in range(count):
            one = self._all.get(events[i].data.u64)
            if type(one) is Wire:
                try:
                    (<Wire>one)._news(events[i].events)
                except Exception as fault:
                    self._failed(<Wire>one, fault)
            elif one is not None:  # else it was closed a moment ago
                (<Listener>one)._let_in()

    def later(self):
        """What was left for later. The loop calls it."""
        self._asked = False
        lost, self._lost = self._lost, []
        queue, self._queue = self._queue, []
        for one in queue:
            (<Wire>one)._queued = False
            if (<Wire>one)._fd >= 0:
                try:
                    if (<Wire>one)._waiting:
                        (<Wire>one)._flush()
                    (<Wire>one)._read()
                except Exception as fault:
                    self._failed(<Wire>one, fault)
        for one in lost:
            try:
                (<Wire>one)._is_lost()
            except Exception as fault:
                self._loop.call_exception_handler({"message": "a protocol failed", "exception": fault, "transport": one})


cdef object _fault(int number):
    return OSError(number, os.strerror(number))  # the class that the number stands for, such as ConnectionResetError
