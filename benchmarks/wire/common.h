/* What both ends of the wire need: sockets, and reading a message that is not ours. */

#ifndef WARDLINE_WIRE_COMMON_H
#define WARDLINE_WIRE_COMMON_H

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

static inline void fail(const char *what) {
    perror(what);
    exit(2);
}

static inline int64_t now_ns(void) {
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    return (int64_t)at.tv_sec * 1000000000 + at.tv_nsec;
}

/* As many descriptors as this user may have: thousands of tunnels hold one each. */
static inline void many_files(void) {
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) == 0) {
        limit.rlim_cur = limit.rlim_max;
        setrlimit(RLIMIT_NOFILE, &limit);
    }
}

/* Bytes of a head with its empty line, 0 while that has not come. */
static inline int head_bytes(const char *data, int size) {
    const char *end = size < 4 ? NULL : memmem(data, size, "\r\n\r\n", 4);
    return end ? (int)(end - data) + 4 : 0;
}

/* The value of a header (its name with the colon) in a head, or NULL. */
static inline const char *header(const char *head, int size, const char *name) {
    int length = (int)strlen(name);
    for (const char *at = head, *end = head + size; at + length < end; at++) {
        at = memchr(at, '\n', end - at);
        if (at == NULL || at + 1 + length >= end) return NULL;
        if (strncasecmp(at + 1, name, length) == 0) {
            at += 1 + length;
            while (*at == ' ') at++;
            return at;
        }
    }
    return NULL;
}

#endif
