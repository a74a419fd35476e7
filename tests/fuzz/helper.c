/*
 * The kernel's helper under libFuzzer, with ASan and UBSan: its arguments and the answers of all system calls are the input's.
 *
 * It ends with status 0 or 1. It reads and writes no byte outside of its own, logs one line of plain ASCII, and becomes modprobe
 * for the kernel only if the policy is not enforced, and never itself.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

static long played(long number, ...);
#define syscall played
#define main helper_main
#include "../../helper/kmodd-request.c"
#undef main
#undef syscall

static const uint8_t *input;
static size_t left;
static jmp_buf executed;
static int is_kernels_child, is_a_process, is_closed;

static unsigned next(void)
{
	return left ? left--, *input++ : 0;
}

#define require(condition) do { if (!(condition)) abort(); } while (0)

static int fails(int error)
{
	errno = error;
	return -1;
}

static long log_line(const char *line, size_t size)
{
	require(size < MAX_SHOWN + 256 && !memcmp(line, "<4>kmodd-request: ", 18) && line[size - 1] == '\n');
	for (size_t i = 0; i + 1 < size; i++)
		require(line[i] >= ' ' && line[i] <= '~');
	return size;
}

static long play_statx(const char *path, struct statx *status)
{
	unsigned kind = next();

	memset(status, 0, sizeof *status);
	require(strlen(path) < 64);
	if (!strcmp(path, FLAG)) {
		if (kind < 128) {
			is_closed = kind && kind != ENOENT;
			return fails(kind ? (int)kind : ENOENT);
		}
		status->stx_mode = kind & 1 ? S_IFREG : S_IFLNK;
		status->stx_uid = kind & 2 ? 0 : 1000;
		is_closed = S_ISREG(status->stx_mode) && !status->stx_uid;
		return 0;
	}
	status->stx_ino = 1 + (kind >> 1) % 2;
	return kind & 1 ? fails(ENOENT) : 0;
}

/* The parent's stat: of a kernel thread, of a process, whatever its name, or any bytes. */
static long play_stat(char *data, size_t size)
{
	unsigned kind = next(), length = next() % 65;
	char name[64], line[256];

	if (kind % 4 == 3) {
		size_t count = next();
		for (size_t i = 0; i < count; i++)
			data[i] = next();
		return count;
	}
	for (unsigned i = 0; i < length; i++)
		name[i] = next();
	long head = sprintf(line, "%u (", kind);
	memcpy(line + head, name, length);
	is_kernels_child = kind % 4 == 0, is_a_process = !is_kernels_child;
	head += length + sprintf(line + head + length, ") I 2 0 0 0 -1 %u 0 0 0\n", is_kernels_child ? 69238880 : 4194304);
	require((size_t)head <= size);
	memcpy(data, line, head);
	return head;
}

static long play_receive(char *data, size_t size)
{
	unsigned kind = next();

	switch (kind % 8) {
	case 0: return left ? fails(EINTR) : fails(EAGAIN);
	case 1: return fails(EAGAIN);
	case 2: return 0;
	case 3: data[0] = 'a'; return 1;
	case 4: data[0] = '0'; return 1;
	case 5: data[0] = '1'; return 1;
	case 6: memset(data, 'a', size); return size;
	default: data[0] = kind; return 1;
	}
}

static long played(long number, ...)
{
	long a[6];
	va_list arguments;

	va_start(arguments, number);
	for (int i = 0; i < 6; i++)
		a[i] = va_arg(arguments, long);
	va_end(arguments);
	switch (number) {
	case SYS_getppid: return (long)next() << (next() % 24);
	case SYS_statx: return play_statx((const char *)a[1], (struct statx *)a[4]);
	case SYS_read: return next() & 1 ? fails(ESRCH) : play_stat((char *)a[1], a[2]);
	case SYS_socket:
		require(!is_a_process);
		return next() & 1 ? fails(EMFILE) : 3;
	case SYS_connect: return next() & 1 ? fails(left && next() & 1 ? EINTR : ECONNREFUSED) : 0;
	case SYS_sendto:
		require(a[2] == (long)strlen((const char *)a[1]));
		return next() & 1 ? fails(EPIPE) : a[2];
	case SYS_recvfrom: return play_receive((char *)a[1], a[2]);
	case SYS_openat:
		require(strlen((const char *)a[1]) < 64);
		return next() & 1 ? fails(EPERM) : 4;
	case SYS_write: return a[0] == 2 ? a[2] : log_line((const char *)a[1], a[2]);
	case SYS_execve:
		require(!(is_kernels_child && is_closed));
		require(!strcmp(((char **)a[1])[0], "modprobe"));
		if (next() & 1)
			return fails(ENOENT);
		longjmp(executed, 1);
	default: return 0;
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	char *words[8], *environment[] = {"HOME=/", 0};
	int count = size ? data[0] % 6 : 0;

	if (size < 2)
		return 0;
	input = data + 2, left = size - 2;
	for (int i = 0; i < count; i++) {
		size_t length = 0;
		while (length < left && input[length])
			length++;
		/* What the kernel calls it by, or any words; each in memory of its own, whose end ASan guards. */
		words[i] = data[1] & 1 && i == 1 ? strdup("-q") : data[1] & 1 && i == 2 ? strdup("--") : strndup((char *)input, length);
		input += length + (length < left), left -= length + (length < left);
	}
	words[count] = 0;
	char *own[8];
	memcpy(own, words, sizeof own);
	is_kernels_child = is_a_process = is_closed = 0;
	if (!setjmp(executed)) {
		int status = run(count, words, environment);
		require(status == 0 || status == 1);
	}
	for (int i = 0; i < count; i++)
		free(own[i]);
	return 0;
}

#ifdef STANDALONE /* without libFuzzer: cases of standard input, each with its size before it, 2 bytes */
int main(void)
{
	uint8_t size[2], data[65536];
	int count = 0;

	for (; fread(size, 2, 1, stdin) == 1; count++) {
		size_t length = size[0] | size[1] << 8;
		if (fread(data, 1, length, stdin) != length)
			return 1;
		uint8_t *exact = malloc(length ? length : 1);
		memcpy(exact, data, length);
		LLVMFuzzerTestOneInput(exact, length);
		free(exact);
	}
	printf("%d\n", count);
	return 0;
}
#endif
