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
 * A call by a process, such as an administrator's modprobe, becomes the real modprobe, with its arguments, environment and
 * open files. It is not refused: the kernel checks the capabilities of its caller. But it hands a plain
 * `modprobe [-q] [-a] [--] NAME...` of root to the daemon if the caller has CAP_SYS_MODULE, the root directory and the mount,
 * PID and user namespaces of PID 1, and no MODPROBE_OPTIONS, and if no command or loader of kmodd waits for it. The daemon
 * leaves to the real modprobe what it lacks the means for, such as install lines (kmodd/daemon/modprobe_calls.py).
 *
 *   > NUL, the letters of the options, and NUL NAME for each name
 *   < "a"              accepted, as above
 *   < "e" and bytes    for standard error, any number of these
 *   < "x0" or "x1"     the exit status; anything else, or the daemon's end: the real modprobe
 *
 * It does without the C library where it can (x86-64, arm64, -ffreestanding -nostdlib): exec to exit takes 0.1 ms so, 0.35 ms
 * with glibc linked statically, 0.48 ms dynamically (medians of one x86-64). kmodd/cli/request.py does the same in Python.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
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
#ifndef INIT
#define INIT PROC "/1"
#endif
#ifndef KERNEL_LOG
#define KERNEL_LOG "/dev/kmsg"
#endif
#ifndef ACCEPT_LIMIT
#define ACCEPT_LIMIT 2 /* seconds, for a place in the daemon's queue, and again for its "a" */
#endif
#define MARK "KMODD_REQUEST=gave-up"
#define MAX_SHOWN 255 /* bytes of NAME in the log; the kernel's own limit is 55 */
#define MAX_CALL 4096 /* bytes of all names and options of a process's call */

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

/* The size of the next datagram; 0 or less: none came in time, or the daemon has gone.
 * With a time limit set, a stop and a suspend of the machine end in EINTR (signal(7)). */
static long receive(long s, char *data, long size)
{
	long n;
	do
		n = call(SYS_recvfrom, s, data, size, 0, 0, 0);
	while (n == -EINTR);
	return n;
}

/* The connection on which the daemon has accepted `data`; negative: there is none. */
static long ask(const char *data, long size)
{
	static const struct sockaddr_un address = {AF_UNIX, SOCKET};
	static const struct timeval limit = {ACCEPT_LIMIT, 0}, none = {0, 0};
	long s = call(SYS_socket, AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, 0, 0, 0), r;
	struct ucred daemon;
	socklen_t length = sizeof daemon;
	char answer[2];

	/* connect() waits as well, while the queue of a daemon that stands still is full: that is what SO_SNDTIMEO is for. */
	call(SYS_setsockopt, s, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit, 0);
	call(SYS_setsockopt, s, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit, 0);
	do
		r = call(SYS_connect, s, &address, sizeof address, 0, 0, 0);
	while (r == -EINTR);
	/* A daemon without a number here is outside of this PID namespace: PID 1 of /proc is not the machine's. */
	if (r < 0 || call(SYS_getsockopt, s, SOL_SOCKET, SO_PEERCRED, &daemon, &length, 0) < 0 || daemon.pid <= 0)
		return -1;
	if (call(SYS_sendto, s, data, size, MSG_NOSIGNAL, 0, 0) < 0 || receive(s, answer, 2) != 1 || *answer != 'a')
		return -1;
	call(SYS_setsockopt, s, SOL_SOCKET, SO_RCVTIMEO, &none, sizeof none, 0);
	return s;
}

/* The daemon's answer to the kernel, 0 or 1; -1: there is none. */
static int answer_kernel(const char *name)
{
	char answer[2];
	long s = ask(name, length(name));

	if (s < 0 || receive(s, answer, 2) != 1 || (*answer != '0' && *answer != '1'))
		return -1;
	return *answer - '0';
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

/* Write "PROC/PID" and `rest`, which has at most 8 bytes. */
static void path_of(char path[sizeof PROC + 32], long pid, const char *rest)
{
	char digits[24], *digit = digits + sizeof digits - 1;

	for (*digit = 0; pid; pid /= 10)
		*--digit = '0' + pid % 10;
	*append(append(append(path, PROC "/", sizeof PROC), digit, sizeof digits), rest, 8) = 0;
}

/* Whether the parent is a kernel thread: it has a folder in PROC, and no program. */
static int is_kernels(void)
{
	char path[sizeof PROC + 32], target;
	long parent = call(SYS_getppid, 0, 0, 0, 0, 0, 0);
	struct statx folder;

	if (parent <= 0) /* 0: of another PID namespace */
		return 0;
	path_of(path, parent, "");
	if (call(SYS_statx, AT_FDCWD, path, 0, STATX_TYPE, &folder, 0) < 0)
		return 0;
	path_of(path, parent, "/exe");
	return call(SYS_readlinkat, AT_FDCWD, path, &target, 1, 0, 0) == -ENOENT;
}

static int is_same_file(const struct statx *a, const struct statx *b)
{
	return a->stx_ino == b->stx_ino && a->stx_dev_major == b->stx_dev_major && a->stx_dev_minor == b->stx_dev_minor;
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
		if (known && is_same_file(&self, &other))
			continue;
		call(SYS_execve, modprobes[i], argv, environment, 0, 0, 0);
	}
}

/* Whether two paths lead to one file on one mount. */
static int is_one(const char *a, const char *b)
{
	struct statx first, second;

	return call(SYS_statx, AT_FDCWD, a, 0, STATX_INO | STATX_MNT_ID, &first, 0) >= 0 &&
	       call(SYS_statx, AT_FDCWD, b, 0, STATX_INO | STATX_MNT_ID, &second, 0) >= 0 &&
	       (first.stx_mask & second.stx_mask & STATX_MNT_ID) && first.stx_mnt_id == second.stx_mnt_id &&
	       is_same_file(&first, &second);
}

/* Whether this process may load modules, and sees what PID 1 sees. */
static int is_the_machines(void)
{
	struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
	struct __user_cap_data_struct sets[_LINUX_CAPABILITY_U32S_3];

	return call(SYS_getuid, 0, 0, 0, 0, 0, 0) == 0 && call(SYS_geteuid, 0, 0, 0, 0, 0, 0) == 0 &&
	       call(SYS_capget, &header, sets, 0, 0, 0, 0) == 0 && (sets[0].effective & 1u << CAP_SYS_MODULE) &&
	       is_one("/", INIT "/root") && is_one(PROC "/self/ns/mnt", INIT "/ns/mnt") &&
	       is_one(PROC "/self/ns/pid", INIT "/ns/pid") && is_one(PROC "/self/ns/user", INIT "/ns/user");
}

/* Read the beginning of a file, as text. The number of bytes; negative: it cannot be read. */
static long read_text(const char *path, char *text, long size)
{
	long file = call(SYS_openat, AT_FDCWD, path, O_RDONLY | O_CLOEXEC, 0, 0, 0), n;

	if (file < 0)
		return file;
	n = call(SYS_read, file, text, size - 1, 0, 0, 0);
	call(SYS_close, file, 0, 0, 0, 0, 0);
	text[n < 0 ? 0 : n] = 0;
	return n;
}

static int contains(const char *text, const char *word)
{
	for (; *text; text++) {
		const char *a = text, *b = word;
		while (*b && *a == *b)
			a++, b++;
		if (!*b)
			return 1;
	}
	return 0;
}

/* Whether a loader or a command of kmodd may wait for this process, which must not wait for the daemon then: as must_not_wait()
 * of kmodd/loader/in_process.py. Also if that cannot be found out. */
static int is_waited_for(void)
{
	static const char *const waiting[] = {"kmodd-command", "kmodd-loader", "kthreadd"};
	char path[sizeof PROC + 32], text[4096], *name, *end, *digit;
	long pid = call(SYS_getppid, 0, 0, 0, 0, 0, 0), n = read_text(PROC "/self/cgroup", text, sizeof text);

	if (n < 0 || n == sizeof text - 1 || contains(text, "/kmodd-command@"))
		return 1;
	for (int depth = 0; pid > 1 && depth < 1024; depth++) {
		path_of(path, pid, "/stat");
		/* PID (NAME) STATE PARENT ...; NAME may have parentheses. */
		if (read_text(path, text, 256) < 0)
			return 1;
		for (name = text; *name && *name != '('; name++)
			;
		for (digit = end = name; *digit; digit++)
			if (*digit == ')')
				end = digit;
		if (end == name || end[1] != ' ' || !end[2] || end[3] != ' ')
			return 1;
		*end = 0;
		for (unsigned i = 0; i < sizeof waiting / sizeof *waiting; i++)
			if (same(name + 1, waiting[i]))
				return 1;
		pid = 0;
		for (digit = end + 4; *digit >= '0' && *digit <= '9' && pid < 1 << 24; digit++)
			pid = 10 * pid + *digit - '0';
	}
	return pid != 1;
}

/* Options, paths, and what may be a parameter are for the real modprobe. */
static int is_name(const char *word)
{
	return *word && *word != '-' && *word != '/' && !(*word == '.' && word[1] == '/') && !contains(word, "=");
}

/* Write the datagram of a plain call. The number of bytes; 0: it is another one, or too long. */
static long pack(int argc, char **argv, char data[MAX_CALL])
{
	int quiet = 0, all = 0, first = 1;
	long size = 1;

	for (; first < argc && *argv[first] == '-'; first++) {
		if (same(argv[first], "-q"))
			quiet = 1;
		else if (same(argv[first], "-a"))
			all = 1;
		else if (same(argv[first], "--"))
			break;
		else
			return 0;
	}
	first += first < argc && *argv[first] == '-';
	if (first >= argc || (first + 1 < argc && !all))
		return 0;
	data[0] = 0;
	if (quiet)
		data[size++] = 'q';
	if (all)
		data[size++] = 'a';
	for (int i = first; i < argc; i++) {
		long n = length(argv[i]);
		if (!is_name(argv[i]) || n >= MAX_CALL - size)
			return 0;
		data[size++] = 0;
		for (const char *from = argv[i]; *from; from++)
			data[size++] = *from;
	}
	return size;
}

static void write_error(const char *data, long size)
{
	while (size > 0) {
		long n = call(SYS_write, 2, data, size, 0, 0, 0);
		if (n == -EINTR)
			continue;
		if (n <= 0)
			return;
		data += n, size -= n;
	}
}

/* The exit status of a plain call by a process of root; -1: it is for the real modprobe. */
static int answer_process(int argc, char **argv, char *const *environment)
{
	static const char options[] = "MODPROBE_OPTIONS=";
	char data[MAX_CALL];
	long size = pack(argc, argv, data), s;

	for (; *environment; environment++) {
		long n = 0;
		while (options[n] && (*environment)[n] == options[n])
			n++;
		if (!options[n])
			return -1;
	}
	if (!size || !is_the_machines() || is_waited_for())
		return -1;
	s = ask(data, size);
	while (s >= 0 && s != 2) { /* 2: in the place of a closed standard error */
		size = receive(s, data, sizeof data);
		if (size == 2 && data[0] == 'x' && (data[1] == '0' || data[1] == '1'))
			return data[1] - '0';
		if (size < 1 || data[0] != 'e')
			break;
		write_error(data + 1, size - 1);
	}
	return -1;
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
		answer = answer_process(argc, argv, environment);
		if (answer >= 0)
			return answer;
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
	answer = answer_kernel(argv[3]);
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
