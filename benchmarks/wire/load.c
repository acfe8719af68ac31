/* A generator that is not the bottleneck: `load KEY=VALUE...`, one thread; prints one line of JSON at its end.

   to=HOST:PORT | to=unix:PATH    where to connect: a proxy, or the origin itself
   origin=HOST:PORT               what to ask for
   mode=http | connect | direct   absolute-form, a new tunnel with one GET inside for each turn, or origin-form
   connections=N seconds=S warm=S auth=TEXT    auth is the whole value of Proxy-Authorization
   rate=N                         turns a second in all; without it, as fast as answers come
   bulk=BYTES                     GET /bulk/BYTES instead of POST of 619 bytes
   ids=FIRST                      POST /id/N with N counted from FIRST, never twice
   hello=HOST                     in a tunnel: a ClientHello for HOST goes first, as a TLS client would send it
   hold=1                         connect: open so many tunnels, print how many stand, keep them until stdin ends

   A turn begins when its first byte is sent and ends with the last byte of its answer; `warm` seconds at the beginning are not
   counted. A connection that breaks counts one error and is opened again after 10 ms. */

#define _GNU_SOURCE
#include "common.h"

enum { ROOM = 65536, EVENTS = 256, BODY = 619, SLOTS = 4000000, RETRY_NS = 10000000, LOOK_NS = 1000000, HELD_AT_ONCE = 64 };

enum { CONNECTING, TUNNEL, ANSWER, DOWN, REST, HELD };

typedef struct {
    int fd, state, have, status, keep, size, sent;
    int64_t left;    /* of the answer's body; -1: chunked, -2: the head is not here */
    int64_t began, due;
    char data[ROOM];
    char out[4096];
} Turn;

static const char *to, *origin, *mode = "http", *auth = "", *hello_host;
static int connections = 32, tunnels, hold, hello_size;
static double seconds = 2, warm = 0.3, rate;
static int64_t bulk, next_id = -1, begin_ns, end_ns, warm_ns, next_due;
static int64_t turns, good, refused, other, errors, bytes, statuses[600];
static int held, opening;
static int loop_fd;
static struct sockaddr_storage target;
static socklen_t target_size;
static uint32_t *took;
static char body[BODY + 1], hello[512];

static void resolve(void) {
    if (strncmp(to, "unix:", 5) == 0) {
        struct sockaddr_un *at = (struct sockaddr_un *)&target;
        at->sun_family = AF_UNIX;
        strncpy(at->sun_path, to + 5, sizeof at->sun_path - 1);
        target_size = sizeof *at;
        return;
    }
    struct sockaddr_in *at = (struct sockaddr_in *)&target;
    const char *colon = strrchr(to, ':');
    at->sin_family = AF_INET;
    at->sin_port = htons(atoi(colon + 1));
    at->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    target_size = sizeof *at;
}

/* A ClientHello of TLS 1.3 with a server name: what a door looks at before it dials. */
static int make_hello(char *at, const char *host) {
    int name = (int)strlen(host);
    unsigned char parts[512], *p = parts;
    memcpy(p, "\x03\x03", 2), p += 2;
    for (int n = 0; n < 32; n++) *p++ = (unsigned char)(n * 7 + 1);
    *p++ = 32;
    for (int n = 0; n < 32; n++) *p++ = (unsigned char)n;
    memcpy(p, "\x00\x06\x13\x01\x13\x02\x13\x03\x01\x00", 10), p += 10;
    unsigned char *extensions = p;
    p += 2;
    int list = name + 3;
    unsigned char sni[] = {0, 0, 0, (unsigned char)(list + 2), 0, (unsigned char)list, 0, 0, (unsigned char)name};
    memcpy(p, sni, sizeof sni), p += sizeof sni;
    memcpy(p, host, name), p += name;
    memcpy(p, "\x00\x0a\x00\x04\x00\x02\x00\x1d", 8), p += 8;
    memcpy(p, "\x00\x0d\x00\x04\x00\x02\x04\x03", 8), p += 8;
    memcpy(p, "\x00\x2b\x00\x03\x02\x03\x04", 7), p += 7;
    memcpy(p, "\x00\x33\x00\x26\x00\x24\x00\x1d\x00\x20", 10), p += 10;
    for (int n = 0; n < 32; n++) *p++ = (unsigned char)(n + 9);
    int size = (int)(p - extensions) - 2;
    extensions[0] = size >> 8, extensions[1] = size & 255;
    size = (int)(p - parts);
    unsigned char front[] = {0x16, 3, 1, (size + 4) >> 8, (size + 4) & 255, 1, 0, size >> 8, size & 255};
    memcpy(at, front, sizeof front);
    memcpy(at + sizeof front, parts, size);
    return (int)sizeof front + size;
}

static int put_auth(char *at) { return *auth ? sprintf(at, "Proxy-Authorization: %s\r\n", auth) : 0; }

/* The request of one turn; in a tunnel it follows the ClientHello, when one is asked for. */
static void write_request(Turn *turn) {
    char path[64], *at = turn->out;
    int absolute = strcmp(mode, "http") == 0;
    if (bulk) sprintf(path, "/bulk/%lld", (long long)bulk);
    else if (next_id >= 0) sprintf(path, "/id/%lld", (long long)next_id++);
    else strcpy(path, "/v1/answer");
    if (tunnels && hello_size) memcpy(at, hello, hello_size), at += hello_size;
    at += sprintf(at, "%s %s%s%s HTTP/1.1\r\nHost: %s\r\n", bulk || tunnels ? "GET" : "POST", absolute ? "http://" : "",
                  absolute ? origin : "", path, origin);
    if (absolute) at += put_auth(at);
    at += sprintf(at, "User-Agent: agent/1.0\r\nAccept: application/json\r\n");
    if (!bulk && !tunnels) at += sprintf(at, "Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", BODY, body);
    else at += sprintf(at, "\r\n");
    turn->size = (int)(at - turn->out);
    turn->sent = 0;
}

static void wait_for(Turn *turn, uint32_t events, int operation) {
    struct epoll_event event = {.events = events, .data.ptr = turn};
    if (epoll_ctl(loop_fd, operation, turn->fd, &event) < 0) fail("epoll_ctl");
}

static void broken(Turn *turn) {
    if (turn->fd >= 0) close(turn->fd);
    if (turn->state != DOWN && now_ns() < end_ns) errors++;
    if (hold) opening--;
    turn->fd = -1;
    turn->state = DOWN;
    turn->due = now_ns() + RETRY_NS;
}

static int flush(Turn *turn) {
    while (turn->sent < turn->size) {
        ssize_t sent = send(turn->fd, turn->out + turn->sent, turn->size - turn->sent, MSG_NOSIGNAL);
        if (sent < 0) {
            if (errno == EAGAIN) return 0;
            broken(turn);
            return -1;
        }
        turn->sent += (int)sent;
    }
    return 1;
}

static void begin(Turn *turn) {
    turn->state = ANSWER;
    turn->left = -2;
    turn->have = 0;
    turn->keep = 1;
    write_request(turn);
    if (!tunnels) turn->began = now_ns();
    flush(turn);
}

static void dial(Turn *turn) {
    int one = 1;
    turn->fd = socket(target.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (turn->fd < 0) fail("socket");
    if (target.ss_family == AF_INET) setsockopt(turn->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    turn->state = CONNECTING;
    turn->began = now_ns();
    if (hold) opening++;
    if (connect(turn->fd, (struct sockaddr *)&target, target_size) < 0 && errno != EINPROGRESS) {
        broken(turn);
        return;
    }
    wait_for(turn, EPOLLIN | EPOLLOUT, EPOLL_CTL_ADD);
}

/* With a rate: each turn is due at its own time, and whoever rests takes the next one. */
static void rest_or_begin(Turn *turn) {
    if (rate > 0) {
        turn->state = REST;
        turn->due = next_due;
        next_due += (int64_t)(1e9 / rate);
        if (turn->due > now_ns()) return;
    }
    if (tunnels) dial(turn);
    else begin(turn);
}

static void finish(Turn *turn) {
    int64_t now = now_ns();
    if (now >= warm_ns && now < end_ns) {
        int64_t us = (now - turn->began) / 1000;
        if (turns < SLOTS) took[turns] = (uint32_t)us;
        turns++;
        statuses[turn->status < 600 ? turn->status : 0]++;
        if (turn->status == 200) good++;
        else if (turn->status == 403) refused++;
        else other++;
    }
    if (tunnels || !turn->keep) {
        if (tunnels) { /* no thousands of ports in TIME_WAIT */
            struct linger hard = {1, 0};
            setsockopt(turn->fd, SOL_SOCKET, SO_LINGER, &hard, sizeof hard);
        }
        close(turn->fd);
        turn->fd = -1;
        if (tunnels) {
            rest_or_begin(turn);
            return;
        }
        dial(turn);
        return;
    }
    rest_or_begin(turn);
}

/* Read what is here; a long answer's body is counted, not kept. */
static void receive(Turn *turn) {
    ssize_t got = recv(turn->fd, turn->data + turn->have, ROOM - turn->have, 0);
    if (got < 0 && errno == EAGAIN) return;
    if (got <= 0) {
        broken(turn);
        return;
    }
    if (turn->state == HELD || turn->state == REST) return;
    turn->have += (int)got;
    if (turn->state == TUNNEL) {
        int head = head_bytes(turn->data, turn->have);
        if (head == 0) return;
        turn->status = atoi(turn->data + 9);
        if (turn->status != 200) {
            int64_t now = now_ns();
            if (now >= warm_ns && now < end_ns) turns++, statuses[turn->status < 600 ? turn->status : 0]++, other++;
            broken(turn);
            return;
        }
        if (hold) {
            turn->state = HELD;
            held++;
            opening--;
            return;
        }
        begin(turn);
        return;
    }
    if (turn->left == -2) {
        int head = head_bytes(turn->data, turn->have);
        if (head == 0) return;
        turn->status = atoi(turn->data + 9);
        const char *length = header(turn->data, head, "content-length:");
        const char *coding = header(turn->data, head, "transfer-encoding:");
        const char *keep = header(turn->data, head, "connection:");
        if ((keep && strncasecmp(keep, "close", 5) == 0) || turn->data[7] == '0') turn->keep = 0;
        turn->left = coding ? -1 : length ? strtoll(length, NULL, 10) : 0;
        turn->have -= head;
        memmove(turn->data, turn->data + head, turn->have);
    }
    if (turn->left >= 0) {
        turn->left -= turn->have;
        if (now_ns() >= warm_ns) bytes += turn->have;
        turn->have = 0;
        if (turn->left <= 0) finish(turn);
    } else if (memmem(turn->data, turn->have, "0\r\n\r\n", 5)) {
        finish(turn);
    } else if (turn->have > ROOM / 2) {
        memmove(turn->data, turn->data + turn->have - 8, 8);
        turn->have = 8;
    }
}

static void react(Turn *turn, uint32_t events) {
    if (turn->fd < 0) return;
    if (turn->state == CONNECTING && (events & (EPOLLOUT | EPOLLERR | EPOLLHUP))) {
        int fault = 0;
        socklen_t size = sizeof fault;
        getsockopt(turn->fd, SOL_SOCKET, SO_ERROR, &fault, &size);
        if (fault) {
            broken(turn);
            return;
        }
        wait_for(turn, EPOLLIN, EPOLL_CTL_MOD);
        if (tunnels) {
            int at = sprintf(turn->out, "CONNECT %s HTTP/1.1\r\nHost: %s\r\n", origin, origin);
            at += put_auth(turn->out + at);
            turn->size = at + sprintf(turn->out + at, "\r\n");
            turn->sent = turn->have = 0;
            turn->state = TUNNEL;
            flush(turn);
        } else {
            begin(turn);
        }
        return;
    }
    if (events & (EPOLLIN | EPOLLERR | EPOLLHUP)) receive(turn);
}

static int by_size(const void *a, const void *b) {
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return x < y ? -1 : x > y;
}

static void report(void) {
    int64_t kept = turns < SLOTS ? turns : SLOTS;
    double measured = (end_ns - warm_ns) / 1e9;
    qsort(took, kept, sizeof *took, by_size);
    printf("{\"turns\": %lld, \"good\": %lld, \"refused\": %lld, \"other\": %lld, \"errors\": %lld, \"seconds\": %.3f, "
           "\"bytes\": %lld, \"last_id\": %lld, \"p50_us\": %u, \"p99_us\": %u, \"max_us\": %u, \"statuses\": {",
           (long long)turns, (long long)good, (long long)refused, (long long)other, (long long)errors, measured,
           (long long)bytes, (long long)next_id, kept ? took[kept / 2] : 0, kept ? took[kept * 99 / 100] : 0,
           kept ? took[kept - 1] : 0);
    const char *comma = "";
    for (int n = 0; n < 600; n++)
        if (statuses[n]) printf("%s\"%d\": %lld", comma, n, (long long)statuses[n]), comma = ", ";
    printf("}}\n");
}

static void read_words(int count, char **words) {
    for (int n = 1; n < count; n++) {
        char *value = strchr(words[n], '=');
        if (value == NULL) fail(words[n]);
        *value++ = 0;
        if (!strcmp(words[n], "to")) to = value;
        else if (!strcmp(words[n], "origin")) origin = value;
        else if (!strcmp(words[n], "mode")) mode = value;
        else if (!strcmp(words[n], "auth")) auth = value;
        else if (!strcmp(words[n], "connections")) connections = atoi(value);
        else if (!strcmp(words[n], "seconds")) seconds = atof(value);
        else if (!strcmp(words[n], "warm")) warm = atof(value);
        else if (!strcmp(words[n], "rate")) rate = atof(value);
        else if (!strcmp(words[n], "bulk")) bulk = strtoll(value, NULL, 10);
        else if (!strcmp(words[n], "ids")) next_id = strtoll(value, NULL, 10);
        else if (!strcmp(words[n], "hello")) hello_host = value;
        else if (!strcmp(words[n], "hold")) hold = atoi(value);
        else fail(words[n]);
    }
    if (to == NULL || origin == NULL) fail("to= and origin=");
}

int main(int count, char **words) {
    many_files();
    signal(SIGPIPE, SIG_IGN);
    read_words(count, words);
    resolve();
    tunnels = strcmp(mode, "connect") == 0;
    if (hello_host) hello_size = make_hello(hello, hello_host);
    memset(body, 'q', BODY);
    memcpy(body, "{\"query\":\"", 10);
    memcpy(body + BODY - 2, "\"}", 3);
    took = malloc(SLOTS * sizeof *took);
    Turn *all = calloc(connections, sizeof *all);
    loop_fd = epoll_create1(EPOLL_CLOEXEC);
    if (took == NULL || all == NULL || loop_fd < 0) fail("memory");
    begin_ns = now_ns();
    next_due = begin_ns;
    warm_ns = begin_ns + (int64_t)(warm * 1e9);
    end_ns = begin_ns + (int64_t)((warm + seconds) * 1e9);
    for (int n = 0; n < connections; n++) {
        all[n].fd = -1;
        all[n].state = DOWN;
        if (!hold) rate > 0 && tunnels ? rest_or_begin(&all[n]) : dial(&all[n]);
    }
    struct epoll_event events[EVENTS];
    int told = 0;
    int64_t looked = 0;
    for (;;) {
        int64_t now = now_ns();
        if (now >= end_ns) break;
        int many = epoll_wait(loop_fd, events, EVENTS, rate > 0 ? 1 : 5);
        for (int n = 0; n < many; n++) react(events[n].data.ptr, events[n].events);
        now = now_ns();
        if (now - looked >= LOOK_NS) {
            looked = now;
            for (int n = 0; n < connections; n++) {
                Turn *turn = &all[n];
                if (turn->state == DOWN && turn->due <= now && (!hold || opening < HELD_AT_ONCE)) dial(turn);
                else if (turn->state == REST && turn->due <= now) tunnels ? dial(turn) : begin(turn);
            }
        }
        if (hold && held == connections && !told) {
            printf("{\"held\": %d, \"errors\": %lld, \"seconds\": %.3f}\n", held, (long long)errors, (now - begin_ns) / 1e9);
            fflush(stdout);
            told = 1;
        }
        if (told) {
            char byte;
            if (read(0, &byte, 1) <= 0) return 0;
        }
    }
    report();
    return 0;
}
