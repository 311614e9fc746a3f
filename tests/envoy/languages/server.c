/* Accepts connections at a port, and tells each client the address that accept4() and getpeername() named. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

int main(int argc, char **argv) {
  struct sockaddr_in6 at = {.sin6_family = AF_INET6, .sin6_port = htons(atoi(argv[argc - 1]))}, peer, again;
  int on = 1, listener = socket(AF_INET6, SOCK_STREAM, 0);
  setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  if (bind(listener, (struct sockaddr *)&at, sizeof at) || listen(listener, 64)) return perror("listen"), 1;
  for (;;) {
    socklen_t len = sizeof peer, len2 = sizeof again;
    int fd = accept4(listener, (struct sockaddr *)&peer, &len, SOCK_CLOEXEC);
    if (fd < 0 || getpeername(fd, (struct sockaddr *)&again, &len2)) return perror("accept"), 1;
    char text[INET6_ADDRSTRLEN] = "accept4 and getpeername differ";
    if (!memcmp(&peer.sin6_addr, &again.sin6_addr, 16)) inet_ntop(AF_INET6, &peer.sin6_addr, text, sizeof text);
    dprintf(fd, "%s\n", text);
    close(fd);
  }
}
