/* The same with io_uring: IORING_OP_ACCEPT. */
#include <arpa/inet.h>
#include <linux/io_uring.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

int main(int argc, char **argv) {
  struct sockaddr_in6 at = {.sin6_family = AF_INET6, .sin6_port = htons(atoi(argv[argc - 1]))}, peer;
  int on = 1, listener = socket(AF_INET6, SOCK_STREAM, 0);
  setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  struct io_uring_params p = {0};
  int ring = syscall(SYS_io_uring_setup, 4, &p);
  if (ring < 0) return perror("io_uring_setup"), 77;
  if (bind(listener, (struct sockaddr *)&at, sizeof at) || listen(listener, 64)) return perror("listen"), 1;
  int rw = PROT_READ | PROT_WRITE;
  char *sq = mmap(0, p.sq_off.array + p.sq_entries * 4, rw, MAP_SHARED, ring, IORING_OFF_SQ_RING);
  char *cq = mmap(0, p.cq_off.cqes + p.cq_entries * sizeof(struct io_uring_cqe), rw, MAP_SHARED, ring,
                  IORING_OFF_CQ_RING);
  struct io_uring_sqe *sqes = mmap(0, p.sq_entries * sizeof *sqes, rw, MAP_SHARED, ring, IORING_OFF_SQES);
  struct io_uring_cqe *cqes = (void *)(cq + p.cq_off.cqes);
  unsigned *tail = (void *)(sq + p.sq_off.tail), *array = (void *)(sq + p.sq_off.array);
  unsigned *head = (void *)(cq + p.cq_off.head);
  for (;;) {
    socklen_t len = sizeof peer;
    unsigned slot = *tail & (p.sq_entries - 1);
    sqes[slot] = (struct io_uring_sqe){
        .opcode = IORING_OP_ACCEPT, .fd = listener, .addr = (unsigned long)&peer, .addr2 = (unsigned long)&len};
    array[slot] = slot;
    __atomic_store_n(tail, *tail + 1, __ATOMIC_RELEASE);
    if (syscall(SYS_io_uring_enter, ring, 1, 1, IORING_ENTER_GETEVENTS, 0, 0) < 0) return perror("enter"), 1;
    int fd = cqes[*head & (p.cq_entries - 1)].res;
    __atomic_store_n(head, *head + 1, __ATOMIC_RELEASE);
    if (fd < 0) return fprintf(stderr, "accept: %d\n", fd), 1;
    char text[INET6_ADDRSTRLEN];
    dprintf(fd, "%s\n", inet_ntop(AF_INET6, &peer.sin6_addr, text, sizeof text));
    close(fd);
  }
}
