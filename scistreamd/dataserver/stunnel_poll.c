/*
 * poll(2) for Stunnel, loaded with LD_PRELOAD: hang-ups that Stunnel (5.68 to 5.78) would take for the end of the data
 * although some is unread. docs/data-servers.md, "Stunnel's end of a stream", has both cases.
 *
 * - POLLHUP alone, with bytes unread: Stunnel did not ask for input because its buffer is full. The hang-up is kept
 *   from it, by waiting for the other descriptors alone; it asks for input again when it has sent some.
 * - POLLRDHUP: Stunnel ends the TLS side when the kernel has nothing more to read, while OpenSSL still holds a part of
 *   the last record. It is never reported: POLLIN is, with it, and the read that returns 0 is the true end.
 *
 * To go when Stunnel does neither (https://github.com/mtrojnar/stunnel/pull/23 is about the first).
 *
 * And accept4(2) and close(2), for a limit of connections at a time, which Stunnel has no option for: with as many open
 * as SCISTREAM_CONNECTIONS says, one more is closed at once. Stunnel takes ECONNABORTED for a client that went away.
 *
 * And SSL_write(3ssl), which makes a record of what it is given: no more than SCISTREAM_RECORD bytes at a time. Stunnel
 * has OpenSSL write in parts anyway (SSL_MODE_ENABLE_PARTIAL_WRITE, SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER).
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define MOST_FILES 65536

static atomic_long connections;
static atomic_bool is_connection[MOST_FILES];

/* 0: no limit. */
static long number_of(const char *variable)
{
    const char *text = getenv(variable);

    return text ? atol(text) : 0;
}

static long limit(void)
{
    return number_of("SCISTREAM_CONNECTIONS");
}

int SSL_write(void *ssl, const void *data, int size)
{
    static _Atomic(int (*)(void *, const void *, int)) next;
    const long most = number_of("SCISTREAM_RECORD");

    if (!atomic_load(&next))
        atomic_store(&next, (int (*)(void *, const void *, int))dlsym(RTLD_NEXT, "SSL_write"));
    return atomic_load(&next)(ssl, data, most > 0 && size > most ? (int)most : size);
}

int accept4(int listener, struct sockaddr *address, socklen_t *length, int flags)
{
    const int fd = (int)syscall(SYS_accept4, listener, address, length, flags);

    if (fd < 0 || fd >= MOST_FILES || limit() <= 0)
        return fd;
    if (atomic_fetch_add(&connections, 1) >= limit()) {
        atomic_fetch_sub(&connections, 1);
        syscall(SYS_close, fd);
        errno = ECONNABORTED;
        return -1;
    }
    atomic_store(&is_connection[fd], 1);
    return fd;
}

int accept(int listener, struct sockaddr *address, socklen_t *length)
{
    return accept4(listener, address, length, 0);
}

int close(int fd)
{
    if (fd >= 0 && fd < MOST_FILES && atomic_exchange(&is_connection[fd], 0))
        atomic_fetch_sub(&connections, 1);
    return (int)syscall(SYS_close, fd);
}

static int has_unread(int fd)
{
    int unread = 0;

    return ioctl(fd, FIONREAD, &unread) == 0 && unread > 0;
}

/* poll(2) leaves out negative descriptors, and ~fd of one is negative. Returns how many were left out. */
static int leave_out_unread_hangups(struct pollfd *fds, nfds_t count)
{
    int left_out = 0;

    for (nfds_t i = 0; i < count; i++)
        if (fds[i].revents == POLLHUP && has_unread(fds[i].fd)) {
            fds[i].fd = ~fds[i].fd;
            fds[i].revents = 0;
            left_out++;
        }
    return left_out;
}

/* As poll(2), but for the above. The time-out begins anew each time that a descriptor is left out. */
int poll(struct pollfd *fds, nfds_t count, int timeout)
{
    const struct timespec limit = {timeout / 1000, timeout % 1000 * 1000000L};
    int ready, left_out;

    for (nfds_t i = 0; i < count; i++)
        fds[i].events &= ~POLLRDHUP;
    do {
        ready = ppoll(fds, count, timeout < 0 ? NULL : &limit, NULL);
        left_out = ready > 0 ? leave_out_unread_hangups(fds, count) : 0;
        ready -= left_out;
    } while (left_out > 0 && ready == 0);
    for (nfds_t i = 0; i < count; i++)
        if (fds[i].fd < 0)
            fds[i].fd = ~fds[i].fd;
    return ready;
}
