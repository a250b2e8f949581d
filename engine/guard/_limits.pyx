# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False
"""The table of a limit, compiled: each attempt looks here. ``limits.LimitTable`` is the reference.

It runs where nothing was compiled. ``_limits.pyi`` has the types.
"""

from time import monotonic

from cpython.dict cimport PyDict_GetItem
from cpython.object cimport PyObject

from engine.guard.labels import sources_of
from engine.guard.limits import SHARED_PART, TOLERANCE_S

cdef double _tolerance_s = TOLERANCE_S


cdef class CompiledBucket:
    """As ``limits.Bucket``."""

    cdef double full_at
    cdef double unshared_s


cdef class CompiledLimitTable:
    """As ``limits.LimitTable``, with the same methods."""

    cdef double _interval_s, _burst_s, _shared_s_min
    cdef Py_ssize_t _generation_max
    cdef dict _new, _old
    cdef readonly dict _unshared

    def __init__(self, limit, Py_ssize_t sources_max):
        self._interval_s = limit.interval_s
        self._burst_s = limit.interval_s * limit.burst
        self._shared_s_min = max(1, limit.burst // SHARED_PART) * limit.interval_s - TOLERANCE_S
        self._generation_max = max(1, sources_max // 2)
        self._new, self._old, self._unshared = {}, {}, {}

    def __len__(self):
        return len(self._new) + len(self._old)

    cpdef double admit(self, list sources, Py_ssize_t units, double now) except -1.0:
        """As ``LimitTable.admit``."""
        if len(sources) == 1:
            return self._admit(sources[0], units, now)
        cdef double wait_s = self.wait_s(sources, units, now)
        if wait_s == 0.0:
            self.charge(sources, units, now)
        return wait_s

    def admit_now(self, str key, str user, str device="", str address=""):
        """As ``LimitTable.admit_now``."""
        if user and not (device or address):
            return self._admit((key, "user", user), 1, monotonic())
        return self.admit(sources_of(key, user, device, address), 1, monotonic())

    cdef double _admit(self, source, Py_ssize_t units, double now) except -1.0:
        """Do it for one source, the usual case: it is looked up once."""
        cdef CompiledBucket bucket = self._find(source)
        cdef double wait_s = self._wait(now if bucket is None else bucket.full_at, units, now)
        if wait_s == 0.0:
            self._charge(source, bucket, units * self._interval_s, now)
        return wait_s

    cpdef double wait_s(self, list sources, Py_ssize_t units, double now) except -1.0:
        """As ``LimitTable.wait_s``."""
        cdef double latest = now
        cdef CompiledBucket bucket
        for source in sources:
            bucket = self._find(source)
            if bucket is not None and bucket.full_at > latest:
                latest = bucket.full_at
        return self._wait(latest, units, now)

    def left(self, source, double now):
        """As ``LimitTable.left``."""
        cdef CompiledBucket bucket = self._new.get(source) or self._old.get(source)
        cdef double full_s = 0.0 if bucket is None else max(0.0, bucket.full_at - now)
        return max(0, int((self._burst_s - full_s + _tolerance_s) / self._interval_s)), full_s

    cpdef charge(self, list sources, Py_ssize_t units, double now):
        """As ``LimitTable.charge``."""
        for source in sources:
            self._charge(source, self._find(source), units * self._interval_s, now)

    def take_unshared(self, Py_ssize_t most):
        """As ``LimitTable.take_unshared``."""
        cdef CompiledBucket bucket
        taken = {}
        for source in list(self._unshared)[:most]:
            bucket = self._unshared.pop(source)
            taken[source], bucket.unshared_s = bucket.unshared_s, 0.0
        return taken

    def learn(self, source, double fills_s, double now):
        """As ``LimitTable.learn``."""
        cdef CompiledBucket bucket = self._find(source)
        if bucket is None:
            bucket = self._begin(source, now)
        bucket.full_at = max(bucket.full_at, now + fills_s + bucket.unshared_s)

    cdef double _wait(self, double latest, Py_ssize_t units, double now) noexcept:
        cdef double wait_s = max(latest, now) - now - max(0.0, self._burst_s - units * self._interval_s)
        return wait_s if wait_s > _tolerance_s else 0.0

    cdef _charge(self, source, CompiledBucket bucket, double charge_s, double now):
        if bucket is None:
            bucket = self._begin(source, now)
        if bucket.full_at < now:
            if bucket.full_at + self._burst_s < now:
                bucket.unshared_s = 0.0
            bucket.full_at = now
        bucket.full_at += charge_s
        bucket.unshared_s += charge_s
        if bucket.unshared_s >= self._shared_s_min and len(self._unshared) < self._generation_max:
            self._unshared[source] = bucket

    cdef CompiledBucket _find(self, source):
        """The bucket of a source, which is in the new generation from now on; None if it has none."""
        cdef PyObject *known = PyDict_GetItem(self._new, source)
        if known is not NULL:
            return <CompiledBucket>known
        if not self._old:
            return None
        bucket = self._old.pop(source, None)
        if bucket is not None:
            self._add(source, <CompiledBucket>bucket)
        return <CompiledBucket>bucket

    cdef CompiledBucket _begin(self, source, double now):
        cdef CompiledBucket bucket = CompiledBucket.__new__(CompiledBucket)
        bucket.full_at, bucket.unshared_s = now, 0.0
        self._add(source, bucket)
        return bucket

    cdef _add(self, source, CompiledBucket bucket):
        if len(self._new) >= self._generation_max:
            self._old, self._new = self._new, {}
        self._new[source] = bucket
