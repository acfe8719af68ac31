# Stream sockets that do not block, and the epoll that says what there is to do with them: the system's own words.
from libc.stdint cimport uint16_t, uint32_t, uint64_t

cdef extern from *:
    """
    #include <arpa/inet.h>
    #include <net/if.h>
    #include <netinet/in.h>
    #include <netinet/tcp.h>
    #include <sys/epoll.h>
    #include <sys/ioctl.h>
    #include <sys/socket.h>
    #include <unistd.h>
    typedef union {
        struct sockaddr any;
        struct sockaddr_in v4;
        struct sockaddr_in6 v6;
        struct sockaddr_storage room;
    } wl_address;
    static int wl_flag(int fd, int level, int option) {
        int one = 1;
        return setsockopt(fd, level, option, &one, sizeof one);
    }
    static void wl_reset(int fd) {
        struct linger none = {1, 0};
        setsockopt(fd, SOL_SOCKET, SO_LINGER, &none, sizeof none);
    }
    static int wl_fault(int fd) {
        int found = 0;
        socklen_t size = sizeof found;
        return getsockopt(fd, SOL_SOCKET, SO_ERROR, &found, &size) ? errno : found;
    }
    static int wl_epoll(int epoll, int what, int fd, uint32_t events, uint64_t number) {
        struct epoll_event event;
        event.events = events;
        event.data.u64 = number;
        return epoll_ctl(epoll, what, fd, &event);
    }
    """
    struct sockaddr_in:
        uint16_t sin_family, sin_port
        int sin_addr
    struct sockaddr_in6:
        uint16_t sin6_family, sin6_port
        uint32_t sin6_scope_id
        int sin6_addr
    struct sockaddr:
        uint16_t sa_family
    ctypedef union wl_address:
        sockaddr any
        sockaddr_in v4
        sockaddr_in6 v6
    ctypedef uint32_t socklen_t
    ctypedef union epoll_data:
        uint64_t u64
    struct epoll_event:
        uint32_t events
        epoll_data data
    int AF_INET, AF_INET6, SOCK_STREAM, SOCK_NONBLOCK, SOCK_CLOEXEC, IPPROTO_TCP, TCP_NODELAY, MSG_NOSIGNAL, SHUT_WR, TIOCOUTQ
    int EPOLL_CLOEXEC, EPOLL_CTL_ADD, EPOLL_CTL_DEL
    uint32_t EPOLLIN, EPOLLOUT, EPOLLERR, EPOLLHUP, EPOLLRDHUP, EPOLLET
    int EAGAIN, EINPROGRESS, ECONNABORTED
    int epoll_create1(int) nogil
    int epoll_wait(int, epoll_event*, int, int) nogil
    int socket(int, int, int) nogil
    int connect(int, const sockaddr*, socklen_t) nogil
    int accept4(int, sockaddr*, socklen_t*, int) nogil
    Py_ssize_t recv(int, void*, size_t, int) nogil
    Py_ssize_t send(int, const void*, size_t, int) nogil
    int shutdown(int, int) nogil
    int close(int) nogil
    int ioctl(int, unsigned long, void*) nogil
    int inet_pton(int, const char*, void*) nogil
    const char* inet_ntop(int, const void*, char*, socklen_t) nogil
    unsigned int if_nametoindex(const char*) nogil
    uint16_t htons(uint16_t) nogil
    uint16_t ntohs(uint16_t) nogil
    int wl_flag(int, int, int) nogil
    void wl_reset(int) nogil
    int wl_fault(int) nogil
    int wl_epoll(int, int, int, uint32_t, uint64_t) nogil
