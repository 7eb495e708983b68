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
 */
#define _GNU_SOURCE
#include <poll.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <time.h>

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
