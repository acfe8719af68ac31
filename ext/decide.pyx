"""The decision: may this chain do this, by this policy set, and which policies say so.

A **miss** costs the same for ten policies as for a hundred thousand. Policies are the leaves of a tree of three levels, action,
then principal, then resource. An edge is a **key**: `any`, `is T`, `== E`, `in E`, `is T in E`, and only keys that some policy
uses exist. An entity has the keys that are true of it, found by walking up its parents; at each node of the tree the smaller
side is walked: the node's edges, or the entity's keys. Scope tests cannot fail, so a policy that is not reached is one that
does not apply, and nothing is lost by not looking at it.

A **hit** is one probe of a table of fixed size: a hash over the texts' own (seeded) hashes, then the texts themselves are
compared, all in one piece of memory. Eight places per hash, taken in turn. Texts of a call are kept there alone, and only short
ones: whoever chooses them can push others out, which costs those a miss, and cannot make it grow.
"""

from cpython.mem cimport PyMem_Calloc, PyMem_Free, PyMem_Malloc
from cpython.object cimport PyObject, PyObject_Hash
from cpython.ref cimport Py_INCREF
from cpython.tuple cimport PyTuple_GET_ITEM, PyTuple_GET_SIZE
from cpython.unicode cimport PyUnicode_CheckExact, PyUnicode_GET_LENGTH, PyUnicode_READ_CHAR
from cython.operator cimport dereference
from libc.stdint cimport uint32_t, uint64_t
from libcpp.algorithm cimport sort
from libcpp.unordered_map cimport unordered_map
from libcpp.vector cimport vector

from ext.questions cimport Head, Place, bytes_of, drop, matched, written

import hashlib
from schemas.bundle import Rule, pieces
from schemas.errors import AgentFault, OperatorFault
from schemas.limits import STRING_BYTES_MAX
from schemas.records import Decision, Verdict
from schemas.vocabulary import implied_parents, parse_uid

cdef enum:
    WAYS = 8
    SETS = 2048
    KEY_BYTES_MAX = 1024    # texts of one question, as they lie in memory: a longer one is decided and not kept
    BECAUSE_MAX = 256       # policies that determined it: the same
    ANY_KEY = 1             # the first key; 0 says that no policy uses it
    ROOT = 0

cdef Py_ssize_t UID_CHARS_MAX = STRING_BYTES_MAX

cdef struct Places:         # two cache lines
    uint64_t tags[WAYS]
    Place* at[WAYS]         # NULL: empty

cdef struct Edge:
    uint32_t key
    uint32_t node

cdef inline uint64_t mixed(uint64_t h, uint64_t more) noexcept nogil:
    h = (h ^ more) * <uint64_t>0x9E3779B97F4A7C15
    return h ^ (h >> 29)

cdef inline uint64_t pack(uint32_t high, uint32_t low) noexcept nogil:
    return (<uint64_t>high << 32) | low

cdef inline uint32_t find(unordered_map[uint64_t, uint32_t]& table, uint64_t key) noexcept nogil:
    """The value, 0 when there is none."""
    cdef unordered_map[uint64_t, uint32_t].iterator found = table.find(key)
    return 0 if found == table.end() else dereference(found).second


cdef Py_ssize_t type_chars(str uid) except -2:
    """Characters of the type in a uid's text; -1 when the text is no uid in its one spelling, or over STRING_BYTES_MAX."""
    cdef Py_ssize_t mark = uid.find('::"')
    if mark < 1 or PyUnicode_GET_LENGTH(uid) > UID_CHARS_MAX:
        return -1
    return mark if is_plain(uid, mark) or is_uid(uid) else -1


cdef bint is_plain(str uid, Py_ssize_t mark):
    """Whether it is written `Agent::"plain"`; any other spelling is the vocabulary's to judge."""
    cdef Py_ssize_t i, n = PyUnicode_GET_LENGTH(uid)
    cdef Py_UCS4 c = PyUnicode_READ_CHAR(uid, 0)
    if n < mark + 4 or not u'A' <= c <= u'Z' or PyUnicode_READ_CHAR(uid, n - 1) != u'"':
        return False
    for i in range(1, mark):
        c = PyUnicode_READ_CHAR(uid, i)
        if not (u'a' <= c <= u'z' or u'A' <= c <= u'Z' or u'0' <= c <= u'9'):
            return False
    for i in range(mark + 3, n - 1):
        c = PyUnicode_READ_CHAR(uid, i)
        if c == u'"' or c == u'\\' or c < 32 or 127 <= c < 160 or 0xD800 <= c <= 0xDFFF:
            return False
    return True


cdef bint is_uid(str text):
    try:
        parse_uid(text)
    except AgentFault:
        return False
    return True


cdef class Keys:
    """The keys of one dimension that policies use, and those that are true of the entity now asked about."""

    cdef unordered_map[uint64_t, uint32_t] of_type, equal, within, of_type_within
    cdef vector[uint64_t] asked         # key -> the last question it was true in
    cdef vector[uint32_t] true_now
    cdef uint64_t question

    def __cinit__(self):
        self.asked.resize(ANY_KEY + 1)

    cdef uint32_t key(self, unordered_map[uint64_t, uint32_t]& table, uint64_t what):
        """The key, made when it is new."""
        if not table.count(what):
            table[what] = <uint32_t>self.asked.size()
            self.asked.push_back(0)
        return table[what]

    cdef void begin(self) noexcept:
        self.question += 1
        self.true_now.clear()
        self.add(ANY_KEY)

    cdef void add(self, uint32_t key) noexcept:
        if key and self.asked[key] != self.question:
            self.asked[key] = self.question
            self.true_now.push_back(key)


cdef class Matcher:
    """Decides calls against one compiled policy set: see the stub for its contract."""

    cdef readonly str digest
    cdef readonly uint64_t policies, misses, cached
    cdef bint busy
    cdef Places* table
    cdef uint32_t turn
    cdef Keys principals, actions, resources
    cdef dict uids, types               # what the bundle names -> its number, from 1
    cdef vector[vector[uint32_t]] up    # number of an entity -> of its parents
    cdef vector[uint64_t] walked        # number of an entity -> the last walk that met it
    cdef vector[uint32_t] queue
    cdef uint64_t walk
    cdef vector[vector[Edge]] edges     # node -> where it leads
    cdef unordered_map[uint64_t, uint32_t] child
    cdef vector[vector[uint32_t]] rules_at
    cdef vector[bint] forbids
    cdef list names
    cdef dict shared                    # ids that determined a decision -> the decision
    cdef object identity, no_permit

    def __cinit__(self, bytes bundle not None):
        cdef uint32_t number
        self.table = <Places*>PyMem_Calloc(SETS, sizeof(Places))
        if self.table == NULL:
            raise MemoryError()
        self.digest = hashlib.sha256(bundle).hexdigest()
        self.identity, self.no_permit = [Decision(reason=why, policy_digest=self.digest) for why in ("identity", "no-permit")]
        self.principals, self.actions, self.resources = Keys(), Keys(), Keys()
        self.uids, self.types, self.names, self.shared = {}, {}, [], {}
        self.up.resize(1)
        self.new_node()
        for piece in pieces(bundle):
            if isinstance(piece, Rule):
                self.add_rule(piece)
                continue
            number = self.entity(piece[0])
            for parent in piece[1]:
                self.up[number].push_back(self.entity(parent))
        self.policies = len(self.names)
        todo = list(self.uids)
        while todo:     # what the names imply, and what those names imply
            uid = todo.pop()
            for parent in implied_parents(uid):
                if parent not in self.uids:
                    todo.append(parent)
                number = self.entity(parent)
                self.up[<uint32_t>self.uids[uid]].push_back(number)
        self.walked.resize(self.up.size())

    def __dealloc__(self):
        cdef int i
        if self.table != NULL:
            for i in range(SETS * WAYS):
                drop(self.table[i // WAYS].at[i % WAYS])
            PyMem_Free(self.table)
        with nogil:     # thousands of small pieces: nobody has to wait while they go
            self.edges.clear()
            self.rules_at.clear()
            self.child.clear()

    cdef uint32_t new_node(self):
        self.edges.resize(self.edges.size() + 1)
        self.rules_at.resize(self.edges.size())
        return <uint32_t>(self.edges.size() - 1)

    cdef uint32_t entity(self, uid) except 0:
        if uid not in self.uids:
            if not isinstance(uid, str) or not is_uid(uid):
                raise OperatorFault(f"the bundle names `{uid}`, which is no entity uid")
            self.uids[uid] = self.up.size()
            self.up.resize(self.up.size() + 1)
        return self.uids[uid]

    cdef uint32_t key_of(self, Keys keys, tuple constraint) except 0:
        if not constraint or not all(isinstance(text, str) for text in constraint):
            raise OperatorFault(f"the bundle has a scope constraint {constraint}, which is no tuple of texts")
        form, what = constraint[0], constraint[1:]
        if form == "any" and not what:
            return ANY_KEY
        if form == "==" and len(what) == 1:
            return keys.key(keys.equal, self.entity(what[0]))
        if form == "in" and len(what) == 1:
            return keys.key(keys.within, self.entity(what[0]))
        if form == "is" and len(what) == 1:
            return keys.key(keys.of_type, self.types.setdefault(what[0], len(self.types) + 1))
        if form == "is in" and len(what) == 2:
            kind = self.types.setdefault(what[0], len(self.types) + 1)
            return keys.key(keys.of_type_within, pack(kind, self.entity(what[1])))
        raise OperatorFault(f"the bundle has a scope constraint `{' '.join(constraint)}`, which this program does not know")

    cdef int add_rule(self, rule) except -1:
        cdef uint32_t node, action, principal, resource
        choices = [("in", uid) for uid in rule.action[1:]] if rule.action[:1] == ("in any",) else [rule.action]
        principal, resource = self.key_of(self.principals, rule.principal), self.key_of(self.resources, rule.resource)
        for choice in choices:
            action = self.key_of(self.actions, choice)
            node = self.grow(self.grow(self.grow(ROOT, action), principal), resource)
            self.rules_at[node].push_back(len(self.names))
        self.names.append(rule.id)
        self.forbids.push_back(rule.forbid)
        return 0

    cdef uint32_t grow(self, uint32_t node, uint32_t key):
        cdef uint64_t where = pack(node, key)
        cdef Edge edge
        if not find(self.child, where):
            edge.key, edge.node = key, self.new_node()
            self.child[where] = edge.node
            self.edges[node].push_back(edge)
        return self.child[where]

    def decide(self, tuple links not None, str action not None, str resource not None, /):
        """The decision for `links` (principal uids) doing `action` to `resource`. Raises TypeError for a link that is no str."""
        cdef uint64_t h = mixed(PyObject_Hash(action), PyObject_Hash(resource))
        cdef Py_ssize_t i, k, n = PyTuple_GET_SIZE(links)
        cdef PyObject* link
        cdef Places* places
        cdef const char* at
        for i in range(n):
            link = <PyObject*>PyTuple_GET_ITEM(links, i)
            if not PyUnicode_CheckExact(<object>link):
                raise TypeError(f"a link is a str, not {type(<object>link).__name__}")
            h = mixed(h, PyObject_Hash(<object>link))
        places = &self.table[h % SETS]
        for i in range(WAYS):
            if places.tags[i] == h and places.at[i] != NULL and places.at[i].links == n:
                at = matched(matched(<const char*>(places.at[i] + 1), action), resource)
                for k in range(n):
                    at = matched(at, <str>PyTuple_GET_ITEM(links, k))
                if at != NULL:
                    return <object>places.at[i].decision
        return self.miss(links, action, resource, h)

    cdef object miss(self, tuple links, str action, str resource, uint64_t h):
        cdef size_t size = bytes_of(action) + bytes_of(resource)
        if self.busy:   # another thread is inside, in a call to the vocabulary: its entity is not ours
            raise RuntimeError("one matcher is asked by one thread at a time")
        self.misses += 1
        self.busy = True
        try:
            answer = self.worked_out(links, action, resource)
        finally:
            self.busy = False
        for link in links:
            size += bytes_of(link)
        if size <= KEY_BYTES_MAX and answer is not self.identity and len(answer.because) <= BECAUSE_MAX:
            self.keep(links, action, resource, h, answer, size)
        return answer

    cdef int keep(self, tuple links, str action, str resource, uint64_t h, object answer, size_t size) except -1:
        cdef Places* places = &self.table[h % SETS]
        cdef Place* place = <Place*>PyMem_Malloc(sizeof(Place) + (PyTuple_GET_SIZE(links) + 2) * sizeof(Head) + size)
        cdef uint32_t way = 0
        cdef char* at
        if place == NULL:
            raise MemoryError()
        Py_INCREF(answer)
        place.decision, place.links = <PyObject*>answer, PyTuple_GET_SIZE(links)
        at = written(written(<char*>(place + 1), action), resource)
        for link in links:
            at = written(at, link)
        while way < WAYS and places.at[way] != NULL:
            way += 1
        self.cached += way < WAYS
        self.turn += 1
        way = way if way < WAYS else self.turn % WAYS
        drop(places.at[way])
        places.tags[way], places.at[way] = h, place
        return 0

    cdef object worked_out(self, tuple links, str action, str resource):
        cdef vector[uint32_t] permits, forbids, at_action
        cdef bint permitted, all_permitted = True
        cdef uint32_t node
        if not PyTuple_GET_SIZE(links) or not self.ask(self.actions, action) or not self.ask(self.resources, resource):
            return self.identity
        self.reach(ROOT, self.actions, at_action)
        for link in links:
            if not self.ask(self.principals, link):
                return self.identity
            permitted = False
            for node in at_action:
                permitted |= self.rules_below(node, permits, forbids)
            all_permitted &= permitted
        if forbids.size():
            return self.answer("forbid", Verdict.DENY, forbids)
        return self.answer("permit", Verdict.ALLOW, permits) if all_permitted else self.no_permit

    cdef object answer(self, str reason, object verdict, vector[uint32_t]& rules):
        cdef uint32_t rule
        sort(rules.begin(), rules.end())    # rules stand in the order of their ids
        because = tuple(dict.fromkeys([self.names[rule] for rule in rules]))
        decision = self.shared.get(because)
        if decision is None:
            decision = Decision(verdict=verdict, reason=reason, because=because, policy_digest=self.digest)
            if len(self.shared) >= SETS * WAYS:
                self.shared.clear()
            if len(because) <= BECAUSE_MAX:
                self.shared[because] = decision
        return decision

    cdef bint rules_below(self, uint32_t at_action, vector[uint32_t]& permits, vector[uint32_t]& forbids):
        """Collect the policies that apply; whether one of them permits."""
        cdef vector[uint32_t] at_principal, at_resource
        cdef uint32_t node, rule
        cdef bint permitted = False
        self.reach(at_action, self.principals, at_principal)
        for node in at_principal:
            self.reach(node, self.resources, at_resource)
        for node in at_resource:
            for rule in self.rules_at[node]:
                if self.forbids[rule]:
                    forbids.push_back(rule)
                else:
                    permits.push_back(rule)
                    permitted = True
        return permitted

    cdef void reach(self, uint32_t node, Keys keys, vector[uint32_t]& reached) noexcept:
        """Add the nodes that the entity's keys lead to from `node`."""
        cdef Edge edge
        cdef uint32_t key, there
        if self.edges[node].size() <= keys.true_now.size():
            for edge in self.edges[node]:
                if keys.asked[edge.key] == keys.question:
                    reached.push_back(edge.node)
        else:
            for key in keys.true_now:
                there = find(self.child, pack(node, key))
                if there:
                    reached.push_back(there)

    cdef bint ask(self, Keys keys, str uid) except -1:
        """Find the keys that are true of an entity. False when the text is no uid."""
        cdef Py_ssize_t mark = type_chars(uid)
        cdef uint32_t kind, number, parent
        cdef size_t i = 0
        if mark < 0:
            return False
        keys.begin()
        kind = self.types.get(uid[:mark], 0)
        number = self.uids.get(uid, 0)
        keys.add(find(keys.of_type, kind))
        keys.add(find(keys.equal, number))
        self.walk += 1
        self.queue.clear()
        self.visit(number)
        if not number:
            self.visit_implied(uid)
        while i < self.queue.size():
            number = self.queue[i]
            keys.add(find(keys.within, number))
            keys.add(find(keys.of_type_within, pack(kind, number)))
            for parent in self.up[number]:
                self.visit(parent)
            i += 1
        return True

    cdef void visit(self, uint32_t number) noexcept:
        if number and self.walked[number] != self.walk:
            self.walked[number] = self.walk
            self.queue.push_back(number)

    cdef int visit_implied(self, str uid) except -1:
        """The bundle does not name `uid`: go on from what its name implies."""
        for parent in implied_parents(uid):
            if parent in self.uids:
                self.visit(self.uids[parent])
            else:
                self.visit_implied(parent)
        return 0
