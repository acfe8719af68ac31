# Words of memory that processes share without a lock, the clock that is cheap enough to read in each decision, and a keyed hash.
from libc.stdint cimport uint8_t, uint64_t
from libc.string cimport memcpy

cdef extern from *:
    """
    #include <endian.h>
    #include <time.h>
    #define WL_WORD_LOAD(p) __atomic_load_n((const uint64_t*)(p), __ATOMIC_RELAXED)
    #define WL_WORD_ACQUIRE(p) __atomic_load_n((const uint64_t*)(p), __ATOMIC_ACQUIRE)
    #define WL_WORD_STORE(p, v) __atomic_store_n((uint64_t*)(p), (v), __ATOMIC_RELAXED)
    #define WL_WORD_RELEASE(p, v) __atomic_store_n((uint64_t*)(p), (v), __ATOMIC_RELEASE)
    #define WL_FENCE_ACQUIRE() __atomic_thread_fence(__ATOMIC_ACQUIRE)
    #define WL_FENCE_RELEASE() __atomic_thread_fence(__ATOMIC_RELEASE)
    static inline uint64_t wl_clock(clockid_t which) {
        struct timespec now;
        clock_gettime(which, &now);
        return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
    }
    #define WL_NOW() wl_clock(CLOCK_MONOTONIC)
    #define WL_NOW_COARSE() wl_clock(CLOCK_MONOTONIC_COARSE)
    static inline void wl_rest(void) {
        struct timespec little = {0, 20000};
        nanosleep(&little, NULL);
    }
    #if defined(__x86_64__) || defined(__i386__)
    #define WL_SPIN() __builtin_ia32_pause()
    #else
    #define WL_SPIN() __atomic_thread_fence(__ATOMIC_SEQ_CST)
    #endif
    """
    uint64_t load_word "WL_WORD_LOAD"(const void*) noexcept nogil
    uint64_t load_word_acquire "WL_WORD_ACQUIRE"(const void*) noexcept nogil
    void store_word "WL_WORD_STORE"(void*, uint64_t) noexcept nogil
    void store_word_release "WL_WORD_RELEASE"(void*, uint64_t) noexcept nogil
    void fence_acquire "WL_FENCE_ACQUIRE"() noexcept nogil
    void fence_release "WL_FENCE_RELEASE"() noexcept nogil
    uint64_t now_ns "WL_NOW"() noexcept nogil
    # Never ahead of `now_ns`, behind it by a tick of the kernel (1 to 10 ms; longer only where the tick itself is late, on a
    # machine that stands still), at a fifth of its price.
    uint64_t now_coarse_ns "WL_NOW_COARSE"() noexcept nogil
    void rest_20_us "wl_rest"() noexcept nogil
    void spin "WL_SPIN"() noexcept nogil
    uint64_t le64toh(uint64_t) noexcept nogil

ctypedef struct Hash:
    uint64_t a
    uint64_t b


cdef inline uint64_t turned(uint64_t x, int by) noexcept nogil:
    return x << by | x >> (64 - by)


cdef inline void sip_rounds(uint64_t* v, int rounds) noexcept nogil:
    for _ in range(rounds):
        v[0] += v[1]
        v[2] += v[3]
        v[1] = turned(v[1], 13) ^ v[0]
        v[3] = turned(v[3], 16) ^ v[2]
        v[0] = turned(v[0], 32)
        v[2] += v[1]
        v[0] += v[3]
        v[1] = turned(v[1], 17) ^ v[2]
        v[3] = turned(v[3], 21) ^ v[0]
        v[2] = turned(v[2], 32)


# SipHash-2-4 with 128 bits (Aumasson and Bernstein): who does not know the key cannot aim at a place or at a collision.
cdef inline Hash sip128(const uint8_t* data, uint64_t size, uint64_t key0, uint64_t key1) noexcept nogil:
    cdef uint64_t v[4]
    cdef uint64_t word
    cdef const uint8_t* end = data + (size & ~<uint64_t>7)
    cdef Hash result
    v[0] = key0 ^ 0x736F6D6570736575ULL
    v[1] = key1 ^ 0x646F72616E646F6DULL ^ 0xEE
    v[2] = key0 ^ 0x6C7967656E657261ULL
    v[3] = key1 ^ 0x7465646279746573ULL
    while data != end:
        memcpy(&word, data, 8)
        word = le64toh(word)
        v[3] ^= word
        sip_rounds(v, 2)
        v[0] ^= word
        data += 8
    word = 0
    memcpy(&word, data, size & 7)
    word = le64toh(word) | size << 56
    v[3] ^= word
    sip_rounds(v, 2)
    v[0] ^= word
    v[2] ^= 0xEE
    sip_rounds(v, 4)
    result.a = v[0] ^ v[1] ^ v[2] ^ v[3]
    v[1] ^= 0xDD
    sip_rounds(v, 4)
    result.b = v[0] ^ v[1] ^ v[2] ^ v[3]
    return result
