/* Gives each host on a shared loopback interface a private copy of the overlay.
 *
 * Overlay addresses are 127.77.a.b on every host. Hosts without a network namespace share one loopback interface, so
 * this library, preloaded into a host's processes, moves them to 127.OCTET.a.b on the way into the kernel and back
 * on the way out: the process sees and advertises 127.77.a.b only. One build per host: OCTET is fixed, because a
 * trainer's environment is exact and carries nothing else.
 */
#include <arpa/inet.h>
#include <dlfcn.h>
#include <netinet/in.h>
#include <string.h>
#include <sys/socket.h>

#ifndef RTLD_NEXT
#define RTLD_NEXT ((void *)-1L)
#endif

#define PREFIX(octet) (0x7f000000u | ((uint32_t)(octet) << 16))
#define OVERLAY PREFIX(77)
#define PRIVATE PREFIX(OCTET)

static void move(struct sockaddr_in *address, uint32_t from, uint32_t to) {
    uint32_t host = ntohl(address->sin_addr.s_addr);
    if (address->sin_family == AF_INET && (host & 0xffff0000u) == from)
        address->sin_addr.s_addr = htonl(to | (host & 0xffffu));
}

static const struct sockaddr *inward(const struct sockaddr *given, socklen_t length, struct sockaddr_in *copy) {
    if (given == NULL || length < (socklen_t)sizeof *copy || given->sa_family != AF_INET)
        return given;
    memcpy(copy, given, sizeof *copy);
    move(copy, OVERLAY, PRIVATE);
    return (const struct sockaddr *)copy;
}

static void outward(struct sockaddr *got, const socklen_t *length, socklen_t room) {
    struct sockaddr_in copy;
    if (got == NULL || length == NULL || room < (socklen_t)sizeof copy || *length < (socklen_t)sizeof copy)
        return;
    memcpy(&copy, got, sizeof copy);
    move(&copy, PRIVATE, OVERLAY);
    memcpy(got, &copy, sizeof copy);
}

int bind(int socket, const struct sockaddr *address, socklen_t length) {
    int (*real)(int, const struct sockaddr *, socklen_t) = dlsym(RTLD_NEXT, "bind");
    struct sockaddr_in copy;
    return real(socket, inward(address, length, &copy), length);
}

int connect(int socket, const struct sockaddr *address, socklen_t length) {
    int (*real)(int, const struct sockaddr *, socklen_t) = dlsym(RTLD_NEXT, "connect");
    struct sockaddr_in copy;
    return real(socket, inward(address, length, &copy), length);
}

int getsockname(int socket, struct sockaddr *address, socklen_t *length) {
    int (*real)(int, struct sockaddr *, socklen_t *) = dlsym(RTLD_NEXT, "getsockname");
    socklen_t room = length ? *length : 0;
    int result = real(socket, address, length);
    if (result == 0)
        outward(address, length, room);
    return result;
}

int getpeername(int socket, struct sockaddr *address, socklen_t *length) {
    int (*real)(int, struct sockaddr *, socklen_t *) = dlsym(RTLD_NEXT, "getpeername");
    socklen_t room = length ? *length : 0;
    int result = real(socket, address, length);
    if (result == 0)
        outward(address, length, room);
    return result;
}

int accept(int socket, struct sockaddr *address, socklen_t *length) {
    int (*real)(int, struct sockaddr *, socklen_t *) = dlsym(RTLD_NEXT, "accept");
    socklen_t room = length ? *length : 0;
    int result = real(socket, address, length);
    if (result >= 0)
        outward(address, length, room);
    return result;
}

int accept4(int socket, struct sockaddr *address, socklen_t *length, int flags);
int accept4(int socket, struct sockaddr *address, socklen_t *length, int flags) {
    int (*real)(int, struct sockaddr *, socklen_t *, int) = dlsym(RTLD_NEXT, "accept4");
    socklen_t room = length ? *length : 0;
    int result = real(socket, address, length, flags);
    if (result >= 0)
        outward(address, length, room);
    return result;
}
