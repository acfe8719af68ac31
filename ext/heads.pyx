"""The lines of an HTTP head, read in one pass: checked byte by byte, told apart by name, and the ones that go on gathered.

    head, start -> (lines that go on, trace lines, {role: value})    or None: it breaks a rule

    name ":" [SP] value CRLF ... CRLF        name: token characters; value: no control character but a tab; no folding
                                             (RFC 9112, section 5, without what it lets a recipient forgive)

What a name means is the caller's: names and roles come in with the constructor. None says only that there is a rule which this
head breaks; which one is asked of a slower reading, that is never asked whether to take a head.
"""

from libc.stdint cimport uint8_t, uint32_t
from libc.string cimport memchr, memcmp, memcpy, memset
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE

cdef enum:
    FIELDS_ROOM = 128   # lines of one head, at most
    NAMES_ROOM = 64     # names with a meaning
    NAME_ROOM = 32      # bytes of such a name, at most
    ROLES_ROOM = 32     # roles are below this
    TAB = 9
    LF = 10
    CR = 13
    SPACE = 32
    DELETE = 127

cdef struct Name:
    uint8_t size
    uint8_t role        # 0: none, but no other spelling may be taken for this name
    uint8_t text[NAME_ROOM]

cdef struct Field:
    const uint8_t* name
    const uint8_t* value
    uint32_t name_size
    uint32_t value_size
    int role


cdef class Sorter:
    """Sorts the lines of heads of one kind, requests or answers. Holds nothing of any head."""

    cdef Name _names[NAMES_ROOM]
    cdef int _behind[NAME_ROOM + 2]     # names in order of size: those of size n begin at [n] and end before [n + 1]
    cdef uint8_t _lower[256]            # of a token's character that in lower case, of others 0
    cdef uint8_t _prefix[NAME_ROOM]
    cdef uint32_t _prefix_size, _name_bytes, _once
    cdef int _fields, _hop, _trace

    def __init__(self, dict roles not None, *, guarded, once, bytes prefix not None, int hop, int trace, int fields,
                 int name_bytes):
        """`roles`: lower-case names that mean something; `guarded`: names that no `_` in place of `-` may imitate; `once`:
        roles that may stand in a head once; `prefix`: names that begin so have the role `hop`, which is dropped; `trace`: the
        role that is kept by name; `fields` and `name_bytes`: the most lines of a head, and bytes of a name.

        Raises ValueError for what has no room.
        """
        cdef bytes name
        cdef int at = 0, size
        wanted = sorted({*roles, *guarded}, key=len)
        if len(wanted) > NAMES_ROOM or not 0 <= fields <= FIELDS_ROOM or name_bytes < 1 or not 0 < len(prefix) <= NAME_ROOM:
            raise ValueError("too many names, fields, or bytes")
        if not all(0 < role < ROLES_ROOM for role in (*roles.values(), *once, hop, trace)):
            raise ValueError(f"a role is 1 to {ROLES_ROOM - 1}")
        memset(self._lower, 0, sizeof(self._lower))
        for byte in b"!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyz":
            self._lower[byte] = byte
        for byte in b"ABCDEFGHIJKLMNOPQRSTUVWXYZ":
            self._lower[byte] = byte | 32
        for size in range(NAME_ROOM + 2):
            self._behind[size] = sum(len(one) < size for one in wanted)
        for name in wanted:
            size = len(name)
            if size < 1 or size > NAME_ROOM:
                raise ValueError(f"a name has 1 to {NAME_ROOM} bytes")
            self._names[at].size = size
            self._names[at].role = roles.get(name, 0)
            memcpy(self._names[at].text, PyBytes_AS_STRING(name), size)
            at += 1
        self._prefix_size = len(prefix)
        memcpy(self._prefix, PyBytes_AS_STRING(prefix), self._prefix_size)
        self._once = 0
        for role in once:
            self._once |= <uint32_t>1 << <int>role
        self._hop, self._trace, self._fields, self._name_bytes = hop, trace, fields, name_bytes

    def sort(self, bytes head not None, Py_ssize_t start):
        """Everything of `head` from `start` on, which must be lines and the empty line behind them; None where it is not.

        Gives the lines of no role, each `name: value` with its CRLF, as one; (name in lower case, value) of those of the trace;
        and the value of every other role but `hop`: as it was written, less one space, where it may stand once, else without
        space around it, several joined by `, `.
        """
        cdef Field fields[FIELDS_ROOM]
        cdef const uint8_t* data = <const uint8_t*>PyBytes_AS_STRING(head)
        cdef Py_ssize_t size = PyBytes_GET_SIZE(head), room = 0
        cdef int count, at
        cdef Field* one
        cdef uint8_t* out
        cdef dict special = {}
        cdef list trace = []
        cdef bytes onward, value
        if start < 0 or start > size:
            return None
        with nogil:
            count = self._read(data + start, data + size, fields)
        if count < 0:
            return None
        for at in range(count):
            if fields[at].role == 0:
                room += fields[at].name_size + fields[at].value_size + 4
        onward = PyBytes_FromStringAndSize(NULL, room)
        out = <uint8_t*>PyBytes_AS_STRING(onward)
        for at in range(count):
            one = &fields[at]
            if one.role == 0:
                memcpy(out, one.name, one.name_size)
                out += one.name_size
                out[0], out[1] = 58, SPACE  # `: `
                memcpy(out + 2, one.value, one.value_size)
                out += 2 + one.value_size
                out[0], out[1] = CR, LF
                out += 2
            elif one.role == self._trace:
                trace.append((one.name[:one.name_size].lower(), <bytes>one.value[:one.value_size]))
            elif one.role != self._hop:
                value = one.value[:one.value_size]
                if one.role in special:
                    value = special[one.role] + b", " + value
                special[one.role] = value
        return onward, trace, special

    cdef int _read(self, const uint8_t* at, const uint8_t* end, Field* into) noexcept nogil:
        """Fill `into`; the number of lines, or -1. Reads nothing at or behind `end`."""
        cdef int count = 0
        cdef const uint8_t* stop
        cdef Field* one
        cdef uint32_t seen = 0, bit
        while end - at >= 2:
            if at[0] == CR:  # the empty line: it ends the head, and there is nothing behind it
                return count if at[1] == LF and end - at == 2 else -1
            stop = <const uint8_t*>memchr(at, CR, end - at)
            if stop == NULL or end - stop < 2 or stop[1] != LF or count == self._fields:
                return -1
            one = into + count
            if not self._read_line(at, stop, one):
                return -1
            bit = <uint32_t>1 << one.role
            if self._once & bit:
                if seen & bit:
                    return -1
                seen |= bit
            else:
                _strip(one)
            count += 1
            at = stop + 2
        return -1

    cdef bint _read_line(self, const uint8_t* at, const uint8_t* stop, Field* one) noexcept nogil:
        """One line, which ends before `stop`, where a CR is: whether it is good."""
        cdef uint8_t lower[NAME_ROOM]
        cdef uint32_t size = 0
        cdef uint8_t byte = self._lower[at[0]], bad = 0
        cdef bint odd = False
        one.name = at
        while byte:  # a CR is no token's character: this ends at `stop` at the latest
            if size < NAME_ROOM:
                lower[size] = byte
            odd |= byte == 95  # `_`
            size += 1
            byte = self._lower[at[size]]
        if at[size] != 58 or size == 0 or size > self._name_bytes:  # `:`
            return False
        one.name_size = size
        if odd and self._imitates(lower, size):
            return False
        one.role = self._role(lower, size)
        at += size + 1
        if at[0] == SPACE:
            at += 1
        one.value = at
        one.value_size = stop - at
        for size in range(one.value_size):
            bad |= (at[size] < SPACE) & (at[size] != TAB) | (at[size] == DELETE)
        return not bad

    cdef int _role(self, const uint8_t* lower, uint32_t size) noexcept nogil:
        cdef int at = self._find(lower, size)
        if at >= 0 and self._names[at].role:
            return self._names[at].role
        return self._hop if self._begins(lower, size) else 0

    cdef int _find(self, const uint8_t* lower, uint32_t size) noexcept nogil:
        """Where this name is among those that mean something or are guarded; -1: nowhere."""
        cdef int at
        if size <= NAME_ROOM:
            for at in range(self._behind[size], self._behind[size + 1]):
                if memcmp(self._names[at].text, lower, size) == 0:
                    return at
        return -1

    cdef bint _begins(self, const uint8_t* lower, uint32_t size) noexcept nogil:
        return size >= self._prefix_size and memcmp(lower, self._prefix, self._prefix_size) == 0

    cdef bint _imitates(self, const uint8_t* lower, uint32_t size) noexcept nogil:
        """Whether a name with a `_` becomes one that matters where that is read as `-`, as CGI programs do."""
        cdef uint8_t dashed[NAME_ROOM]
        cdef uint32_t at, kept = size if size < NAME_ROOM else NAME_ROOM
        for at in range(kept):
            dashed[at] = 45 if lower[at] == 95 else lower[at]
        return self._begins(dashed, size) or self._find(dashed, size) >= 0


cdef inline void _strip(Field* one) noexcept nogil:
    """Space and tabs around a value are not part of it."""
    while one.value_size and (one.value[0] == SPACE or one.value[0] == TAB):
        one.value += 1
        one.value_size -= 1
    while one.value_size and (one.value[one.value_size - 1] == SPACE or one.value[one.value_size - 1] == TAB):
        one.value_size -= 1
