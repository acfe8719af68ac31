/* An origin that is not the bottleneck: `origin PORT [PORT...] [served=FILE]`, on 127.0.0.1 and ::1, one thread.

   POST or GET of anything  -> 200 with 1,046 bytes of JSON
   .../bulk/N               -> 200 with N bytes
   .../id/N                 -> the same as anything, and byte N of FILE is one more: what was served is on record, whatever
                               happens to whoever asked. It is counted once the whole request is here, before the answer
   a TLS record first       -> its bytes are passed over, as a tunnel's ClientHello; then as above

   It knows Content-Length and chunked, keeps connections, and says `ready` when it listens. */

#define _GNU_SOURCE
#include "common.h"

enum { ROOM = 16384, EVENTS = 256, ANSWER = 1046, PIECE = 65536, IDS = 1 << 24 };

typedef struct {
    int fd;
    int have;
    int close;
    int64_t body;  /* of the request, still to come; -1: chunked */
    int64_t bulk;  /* of the answer, still to go */
    int64_t id;    /* of the request in hand, -1 none */
    char data[ROOM];
} Peer;

static char answer[2048], piece[PIECE];
static int answer_size, loop_fd;
static unsigned char *served;

static void gone(Peer *peer) {
    close(peer->fd);
    free(peer);
}

static void listen_on(int family, int port) {
    int one = 1, fd = socket(family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    struct sockaddr_in v4 = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct sockaddr_in6 v6 = {.sin6_family = AF_INET6, .sin6_port = htons(port), .sin6_addr = IN6ADDR_LOOPBACK_INIT};
    struct sockaddr *at = family == AF_INET ? (struct sockaddr *)&v4 : (struct sockaddr *)&v6;
    if (fd < 0 && family == AF_INET6) return; /* a machine without IPv6 */
    if (fd < 0) fail("socket");
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(fd, at, family == AF_INET ? sizeof v4 : sizeof v6) < 0) {
        if (family == AF_INET6) {
            close(fd);
            return;
        }
        fail("bind");
    }
    if (listen(fd, 4096) < 0) fail("listen");
    Peer *door = calloc(1, sizeof(Peer));
    if (door == NULL) fail("calloc");
    door->fd = fd;
    door->have = -1; /* marks what only accepts */
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = door};
    epoll_ctl(loop_fd, EPOLL_CTL_ADD, fd, &event);
}

static void accept_all(int fd) {
    for (int n = 0; n < 64; n++) {
        int one = 1, got = accept4(fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (got < 0) return;
        setsockopt(got, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        Peer *peer = malloc(sizeof(Peer));
        if (peer == NULL) fail("malloc");
        peer->fd = got;
        peer->have = peer->close = 0;
        peer->body = peer->bulk = 0;
        peer->id = -1;
        struct epoll_event event = {.events = EPOLLIN, .data.ptr = peer};
        epoll_ctl(loop_fd, EPOLL_CTL_ADD, got, &event);
    }
}

/* Send what is left of a long answer; 0 when the socket is full, 1 when all is sent, -1 when the peer is gone. */
static int push(Peer *peer) {
    while (peer->bulk > 0) {
        ssize_t sent = send(peer->fd, piece, peer->bulk < PIECE ? peer->bulk : PIECE, MSG_NOSIGNAL);
        if (sent < 0) {
            if (errno != EAGAIN) return -1;
            struct epoll_event event = {.events = EPOLLOUT, .data.ptr = peer};
            epoll_ctl(loop_fd, EPOLL_CTL_MOD, peer->fd, &event);
            return 0;
        }
        peer->bulk -= sent;
    }
    return 1;
}

/* One whole request is here: count it, answer it. */
static int reply(Peer *peer) {
    if (peer->id >= 0 && served) served[peer->id % IDS]++;
    peer->id = -1;
    if (peer->bulk > 0) {
        char head[128];
        int size = sprintf(head, "HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nContent-Length: %lld\r\n\r\n",
                           (long long)peer->bulk);
        if (send(peer->fd, head, size, MSG_NOSIGNAL) != size) return -1;
        return push(peer);
    }
    return send(peer->fd, answer, answer_size, MSG_NOSIGNAL) == answer_size ? 1 : -1;
}

static void take(Peer *peer, int size) {
    memmove(peer->data, peer->data + size, peer->have - size);
    peer->have -= size;
}

/* Eat what is buffered; 0 wait for more, -1 the peer is gone or talks nonsense. */
static int eat(Peer *peer) {
    while (peer->have > 0 && peer->bulk == 0) {
        if (peer->body > 0) {
            int size = peer->have < peer->body ? peer->have : (int)peer->body;
            peer->body -= size;
            take(peer, size);
            if (peer->body == 0 && reply(peer) < 0) return -1;
            continue;
        }
        if (peer->body < 0) { /* chunked: only its end matters, and a body of JSON has no such line in it */
            char *end = memmem(peer->data, peer->have, "0\r\n\r\n", 5);
            if (end == NULL) return peer->have == ROOM ? -1 : 0;
            take(peer, (int)(end - peer->data) + 5);
            peer->body = 0;
            if (reply(peer) < 0) return -1;
            continue;
        }
        if (peer->data[0] == 0x16) {
            if (peer->have < 5) return 0;
            int size = 5 + ((unsigned char)peer->data[3] << 8 | (unsigned char)peer->data[4]);
            if (size > ROOM) return -1;
            if (peer->have < size) return 0;
            take(peer, size);
            continue;
        }
        int head = head_bytes(peer->data, peer->have);
        if (head == 0) return peer->have == ROOM ? -1 : 0;
        peer->data[head - 1] = 0;
        char *line = memchr(peer->data, '\n', head);
        *line = 0;
        const char *id = strstr(peer->data, "/id/"), *bulk = strstr(peer->data, "/bulk/");
        *line = '\n';
        peer->id = id ? strtoll(id + 4, NULL, 10) : -1;
        peer->bulk = bulk ? strtoll(bulk + 6, NULL, 10) : 0;
        const char *length = header(peer->data, head, "content-length:");
        const char *coding = header(peer->data, head, "transfer-encoding:");
        peer->body = coding ? -1 : length ? strtoll(length, NULL, 10) : 0;
        const char *keep = header(peer->data, head, "connection:");
        peer->close = keep && strncasecmp(keep, "close", 5) == 0;
        int64_t bulk_size = peer->bulk;
        take(peer, head);
        if (peer->body == 0 && reply(peer) < 0) return -1;
        if (peer->body != 0 && bulk_size) return -1; /* nobody asks for that */
    }
    return 0;
}

static void serve(Peer *peer, uint32_t events) {
    if (events & EPOLLOUT) {
        int state = push(peer);
        if (state < 0) {
            gone(peer);
            return;
        }
        if (state == 0) return;
        if (peer->close) {
            gone(peer);
            return;
        }
        struct epoll_event event = {.events = EPOLLIN, .data.ptr = peer};
        epoll_ctl(loop_fd, EPOLL_CTL_MOD, peer->fd, &event);
    }
    if (peer->bulk == 0) {
        ssize_t got = recv(peer->fd, peer->data + peer->have, ROOM - peer->have, 0);
        if (got < 0 && errno == EAGAIN) return;
        if (got <= 0) {
            gone(peer);
            return;
        }
        peer->have += (int)got;
    }
    if (eat(peer) < 0 || (peer->close && peer->body == 0 && peer->bulk == 0 && peer->have == 0)) gone(peer);
}

int main(int count, char **words) {
    many_files();
    signal(SIGPIPE, SIG_IGN);
    loop_fd = epoll_create1(EPOLL_CLOEXEC);
    for (int n = 1; n < count; n++) {
        if (strncmp(words[n], "served=", 7) == 0) {
            int fd = open(words[n] + 7, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
            if (fd < 0 || ftruncate(fd, IDS) < 0) fail(words[n]);
            served = mmap(NULL, IDS, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
            if (served == MAP_FAILED) fail("mmap");
        } else {
            listen_on(AF_INET, atoi(words[n]));
            listen_on(AF_INET6, atoi(words[n]));
        }
    }
    char body[ANSWER + 1];
    memset(body, 'x', ANSWER);
    memcpy(body, "{\"answer\":\"", 11);
    memcpy(body + ANSWER - 2, "\"}", 3);
    memset(piece, 'b', PIECE);
    answer_size = sprintf(answer, "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", ANSWER,
                          body);
    printf("ready\n");
    fflush(stdout);
    struct epoll_event events[EVENTS];
    for (;;) {
        int many = epoll_wait(loop_fd, events, EVENTS, -1);
        for (int n = 0; n < many; n++) {
            Peer *peer = events[n].data.ptr;
            if (peer->have < 0) accept_all(peer->fd);
            else serve(peer, events[n].events);
        }
    }
}
