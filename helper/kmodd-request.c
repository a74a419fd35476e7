/*
 * kmodd-request: what the kernel runs to load a module. `make install` sets kernel.modprobe to it while kmodd runs; Debian's
 * package puts it in the place of /sbin/modprobe, and kernel.modprobe keeps its value.
 *
 * The kernel calls it as `PATH -q -- NAME`: as root, in the initial namespaces, without one open file, as the child of a
 * kernel thread; the process that needs the module waits for its end. It hands NAME to the daemon, by datagrams on SOCKET
 * (AF_UNIX, SOCK_SEQPACKET):
 *
 *   > NAME        the bytes as they came
 *   < "a"         accepted, within ACCEPT_LIMIT: the daemon says so before it does anything else
 *   < "0" or "1"  the outcome, without limit: a module's start-up may take minutes. It becomes the exit status:
 *                 0 loaded or there already, 1 unknown, refused or failed (request_module() gets 256)
 *
 * Where that does not come about, it becomes the real modprobe, so that a machine is never worse off than without kmodd.
 * But where FLAG stands, the policy is enforced: then it refuses and says so in the kernel's log, or a user who stops or
 * floods the daemon would be round the policy. Signals are left alone: a requester that is killed does not end its helper.
 *
 * A call by a process, such as an administrator's modprobe, becomes the real modprobe at once, with its arguments,
 * environment and open files. It is not refused: the kernel checks the capabilities of its caller.
 *
 * It does without the C library where it can (x86-64, arm64, -ffreestanding -nostdlib): exec to exit takes 0.1 ms so, 0.35 ms
 * with glibc linked statically, 0.48 ms dynamically (medians of one x86-64). kmodd/cli/request.py does the same in Python.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/un.h>

#ifndef SOCKET
#define SOCKET "/run/kmodd/request"
#endif
#ifndef FLAG
#define FLAG "/run/kmodd/closed"
#endif
#ifndef MODPROBES
/* The package diverts kmod's program to the first two names (debian/kmodd.postinst). */
#define MODPROBES "/usr/sbin/modprobe.kmod", "/usr/sbin/modprobe.kmod-sbin", \
	"/sbin/modprobe", "/usr/sbin/modprobe", "/bin/modprobe", "/usr/bin/modprobe"
#endif
#ifndef PROC
#define PROC "/proc"
#endif
#ifndef KERNEL_LOG
#define KERNEL_LOG "/dev/kmsg"
#endif
#ifndef ACCEPT_LIMIT
#define ACCEPT_LIMIT 2 /* seconds, for a place in the daemon's queue, and again for its "a" */
#endif
#define MARK "KMODD_REQUEST=gave-up"
#define PF_KTHREAD 0x00200000 /* include/linux/sched.h */
#define FLAGS_FIELD 9 /* of the fields of /proc/PID/stat */
#define MAX_SHOWN 255 /* bytes of NAME in the log; the kernel's own limit is 55 */

/* A system call: the result, or -errno. */
#define call(n, a, b, c, d, e, f) call6(n, (long)(a), (long)(b), (long)(c), (long)(d), (long)(e), (long)(f))

#if __STDC_HOSTED__
#include <unistd.h>
static long call6(long n, long a, long b, long c, long d, long e, long f)
{
	long result = syscall(n, a, b, c, d, e, f);
	return result < 0 ? -errno : result;
}
#elif defined(__x86_64__) && defined(__LP64__)
static long call6(long n, long a, long b, long c, long d, long e, long f)
{
	register long r10 __asm__("r10") = d, r8 __asm__("r8") = e, r9 __asm__("r9") = f;
	__asm__ volatile("syscall" : "+a"(n) : "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9) : "rcx", "r11", "memory");
	return n;
}
#define START "xor %ebp, %ebp\n\tmov %rsp, %rdi\n\tand $-16, %rsp\n\tcall start\n"
#elif defined(__aarch64__) && defined(__LP64__)
static long call6(long n, long a, long b, long c, long d, long e, long f)
{
	register long x8 __asm__("x8") = n, x0 __asm__("x0") = a, x1 __asm__("x1") = b, x2 __asm__("x2") = c;
	register long x3 __asm__("x3") = d, x4 __asm__("x4") = e, x5 __asm__("x5") = f;
	__asm__ volatile("svc #0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5) : "memory");
	return x0;
}
#define START "mov x29, xzr\n\tmov x30, xzr\n\tmov x0, sp\n\tbl start\n" /* the kernel aligns the stack to 16 */
#else
#error "only with the C library on this architecture"
#endif

static int same(const char *a, const char *b)
{
	while (*a && *a == *b)
		a++, b++;
	return *a == *b;
}

static long length(const char *text)
{
	long n = 0;
	while (text[n])
		n++;
	return n;
}

/* The one byte of the next datagram; -1: none came in time, the daemon has gone, or it is not one byte.
 * With a time limit set, a stop and a suspend of the machine end in EINTR (signal(7)). */
static int receive(long s)
{
	unsigned char data[2];
	long n;
	do
		n = call(SYS_recvfrom, s, data, sizeof data, 0, 0, 0);
	while (n == -EINTR);
	return n == 1 ? data[0] : -1;
}

/* The daemon's answer, 0 or 1; -1: there is none. */
static int ask(const char *name)
{
	static const struct sockaddr_un address = {AF_UNIX, SOCKET};
	static const struct timeval limit = {ACCEPT_LIMIT, 0}, none = {0, 0};
	long s = call(SYS_socket, AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, 0, 0, 0), r;

	/* connect() waits as well, while the queue of a daemon that stands still is full: that is what SO_SNDTIMEO is for. */
	call(SYS_setsockopt, s, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit, 0);
	call(SYS_setsockopt, s, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit, 0);
	do
		r = call(SYS_connect, s, &address, sizeof address, 0, 0, 0);
	while (r == -EINTR);
	if (r < 0 || call(SYS_sendto, s, name, length(name), MSG_NOSIGNAL, 0, 0) < 0 || receive(s) != 'a')
		return -1;
	call(SYS_setsockopt, s, SOL_SOCKET, SO_RCVTIMEO, &none, sizeof none, 0);
	switch (receive(s)) {
	case '0': return 0;
	case '1': return 1;
	default: return -1;
	}
}

/* Only a flag that is not there leaves the way open: no error that a user may provoke does. */
static int closed(void)
{
	struct statx flag;
	long r = call(SYS_statx, AT_FDCWD, FLAG, AT_SYMLINK_NOFOLLOW, STATX_TYPE | STATX_UID, &flag, 0);
	return r < 0 ? r != -ENOENT : S_ISREG(flag.stx_mode) && flag.stx_uid == 0;
}

/* What is not plain ASCII becomes "?": a name must not make lines of its own, nor speak to a terminal. */
static char *append(char *to, const char *from, long most)
{
	for (; *from && most > 0; from++, most--)
		*to++ = *from < ' ' || *from > '~' ? '?' : *from;
	return to;
}

static void log_refusal(const char *name, const char *why)
{
	char line[MAX_SHOWN + 256], *end = append(line, "<4>kmodd-request: ", 64);
	long file = call(SYS_openat, AT_FDCWD, KERNEL_LOG, O_WRONLY | O_CLOEXEC, 0, 0, 0);

	end = append(end, name, MAX_SHOWN);
	end = append(end, " refused: ", 64);
	end = append(end, why, 64);
	end = append(end, " and the policy is enforced", 64);
	*end++ = '\n';
	call(SYS_write, file, line, end - line, 0, 0, 0);
}

/* Whether the parent is a kernel thread, by its flags (proc_pid_stat(5)): a process whose first thread has ended has no
 * program in PROC either. */
static int is_kernels(void)
{
	char path[sizeof PROC + 32], digits[24], stat[512], *digit = digits + sizeof digits - 1;
	long parent = call(SYS_getppid, 0, 0, 0, 0, 0, 0), file, size, at;
	unsigned long flags = 0;

	if (parent <= 0) /* 0: of another PID namespace */
		return 0;
	for (*digit = 0; parent; parent /= 10)
		*--digit = '0' + parent % 10;
	*append(append(append(path, PROC "/", sizeof PROC), digit, sizeof digits), "/stat", 5) = 0;
	file = call(SYS_openat, AT_FDCWD, path, O_RDONLY | O_CLOEXEC, 0, 0, 0);
	if (file < 0)
		return 0;
	size = call(SYS_read, file, stat, sizeof stat, 0, 0, 0);
	call(SYS_close, file, 0, 0, 0, 0, 0);
	for (at = size; at > 0 && stat[at - 1] != ')';) /* the name may have any bytes; what follows it has no `)` */
		at--;
	if (at <= 0)
		return 0;
	for (int field = 2; at < size && field < FLAGS_FIELD; at++)
		field += stat[at] == ' ';
	for (; at < size && stat[at] >= '0' && stat[at] <= '9'; at++)
		flags = flags * 10 + (stat[at] - '0');
	return !!(flags & PF_KTHREAD);
}

/* Become the real modprobe, never this program again. Returns if there is none. */
static void become_modprobe(char **argv, char *const *environment)
{
	static const char *const modprobes[] = {MODPROBES};
	struct statx self, other;
	/* Without /proc, which in a chroot may be missing, only the first two names cannot be this program. */
	int known = call(SYS_statx, AT_FDCWD, "/proc/self/exe", 0, STATX_INO, &self, 0) >= 0;

	argv[0] = "modprobe";
	for (unsigned i = 0; i < (known ? sizeof modprobes / sizeof *modprobes : 2); i++) {
		if (call(SYS_statx, AT_FDCWD, modprobes[i], 0, STATX_INO, &other, 0) < 0)
			continue;
		if (known && self.stx_ino == other.stx_ino && self.stx_dev_major == other.stx_dev_major &&
		    self.stx_dev_minor == other.stx_dev_minor)
			continue;
		call(SYS_execve, modprobes[i], argv, environment, 0, 0, 0);
	}
}

/* The daemon will not do: refuse, or become the real modprobe. The answer is the exit status where neither went well. */
static int do_without(int argc, char **argv, const char *why)
{
	/* The kernel's own, and a mark: should the "real" modprobe lead back here, it ends. */
	static char *const environment[] = {"HOME=/", "TERM=linux", "PATH=/sbin:/usr/sbin:/bin:/usr/bin", MARK, 0};

	if (closed())
		log_refusal(argv[argc - 1], why);
	else
		become_modprobe(argv, environment);
	return 1;
}

static int run(int argc, char **argv, char **environment)
{
	static const char missing[] = "modprobe: FATAL: Failed to execute kmod's modprobe, it is missing: reinstall kmod\n";
	int answer;

	if (argc < 1)
		return 1;
	if (!is_kernels()) {
		become_modprobe(argv, environment);
		call(SYS_write, 2, missing, sizeof missing - 1, 0, 0, 0);
		return 1;
	}
	for (; *environment; environment++)
		if (same(*environment, MARK))
			return 1;
	/* An empty datagram would look like the end of the connection, so an empty name is not asked for. */
	if (argc != 4 || !same(argv[1], "-q") || !same(argv[2], "--") || !*argv[3])
		return do_without(argc, argv, "this is no call of the kernel's");
	answer = ask(argv[3]);
	return answer < 0 ? do_without(argc, argv, "the daemon does not answer") : answer;
}

#if __STDC_HOSTED__
int main(int argc, char **argv, char **environment)
{
	return run(argc, argv, environment);
}
#else
/* The stack as the kernel leaves it: argc, argv, NULL, environment, NULL. */
__asm__(".globl _start\n_start:\n\t" START);
__attribute__((noreturn, used)) void start(long *stack)
{
	char **argv = (char **)(stack + 1);
	int status = run((int)*stack, argv, argv + *stack + 1);
	for (;;)
		call(SYS_exit, status, 0, 0, 0, 0, 0);
}
#endif
