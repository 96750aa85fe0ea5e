/* A file system that fails when it is told to: loaded before the C library into a program under test.
 *
 * REFIT_FAULTS names a file with lines `CALLS ERRNO FROM TO PATH`: of the calls in the comma-separated list CALLS on files whose path
 * contains PATH, those numbered FROM to TO since the file was put there fail with ERRNO. Without the file nothing fails.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static long counted;
static unsigned long long generation;

static int named(const char *kinds, const char *kind) {
    size_t length = strlen(kind);
    for (const char *at = kinds; (at = strstr(at, kind)) != NULL; at += length) {
        char before = at == kinds ? ',' : at[-1], after = at[length];
        if (before == ',' && (after == ',' || after == 0)) return 1;
    }
    return 0;
}

static int fails_at(const char *kind, const char *path) {
    const char *control = getenv("REFIT_FAULTS");
    if (control == NULL) return 0;
    int file = (int)syscall(SYS_openat, AT_FDCWD, control, O_RDONLY | O_CLOEXEC);
    if (file < 0) return 0;
    char text[1024] = {0};
    long size = syscall(SYS_read, file, text, sizeof text - 1);
    struct stat about;
    int known = fstat(file, &about);
    syscall(SYS_close, file);
    if (size <= 0 || known != 0) return 0;
    unsigned long long now = (unsigned long long)about.st_ino * 1000003ULL + (unsigned long long)about.st_mtim.tv_nsec;
    if (__atomic_exchange_n(&generation, now, __ATOMIC_SEQ_CST) != now) __atomic_store_n(&counted, 0, __ATOMIC_SEQ_CST);
    char kinds[128], part[512];
    int number;
    long from, to;
    if (sscanf(text, "%127s %d %ld %ld %511s", kinds, &number, &from, &to, part) != 5) return 0;
    if (!named(kinds, kind) || strstr(path, part) == NULL) return 0;
    long nth = __atomic_add_fetch(&counted, 1, __ATOMIC_SEQ_CST);
    if (nth < from || nth > to) return 0;
    errno = number;
    return 1;
}

static int fails(const char *kind, int descriptor) {
    char link[64], path[1024];
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t size = readlink(link, path, sizeof path - 1);
    if (size <= 0) return 0;
    path[size] = 0;
    return fails_at(kind, path);
}

#define REAL(type, name, ...) \
    static type (*real)(__VA_ARGS__); \
    if (real == NULL) *(void **)&real = dlsym(RTLD_NEXT, #name)

ssize_t write(int fd, const void *bytes, size_t size) {
    REAL(ssize_t, write, int, const void *, size_t);
    return fails("write", fd) ? -1 : real(fd, bytes, size);
}
ssize_t writev(int fd, const struct iovec *parts, int count) {
    REAL(ssize_t, writev, int, const struct iovec *, int);
    return fails("write", fd) ? -1 : real(fd, parts, count);
}
ssize_t pwrite(int fd, const void *bytes, size_t size, off_t at) {
    REAL(ssize_t, pwrite, int, const void *, size_t, off_t);
    return fails("write", fd) ? -1 : real(fd, bytes, size, at);
}
ssize_t pwrite64(int fd, const void *bytes, size_t size, off64_t at) {
    REAL(ssize_t, pwrite64, int, const void *, size_t, off64_t);
    return fails("write", fd) ? -1 : real(fd, bytes, size, at);
}
int fsync(int fd) {
    REAL(int, fsync, int);
    return fails("sync", fd) ? -1 : real(fd);
}
int fdatasync(int fd) {
    REAL(int, fdatasync, int);
    return fails("sync", fd) ? -1 : real(fd);
}
int ftruncate(int fd, off_t size) {
    REAL(int, ftruncate, int, off_t);
    return fails("write", fd) ? -1 : real(fd, size);
}
int ftruncate64(int fd, off64_t size) {
    REAL(int, ftruncate64, int, off64_t);
    return fails("write", fd) ? -1 : real(fd, size);
}
int open(const char *path, int flags, ...) {
    REAL(int, open, const char *, int, ...);
    va_list more;
    va_start(more, flags);
    mode_t mode = va_arg(more, mode_t);
    va_end(more);
    return (flags & O_ACCMODE) != O_RDONLY && fails_at("open", path) ? -1 : real(path, flags, mode);
}
int open64(const char *path, int flags, ...) {
    REAL(int, open64, const char *, int, ...);
    va_list more;
    va_start(more, flags);
    mode_t mode = va_arg(more, mode_t);
    va_end(more);
    return (flags & O_ACCMODE) != O_RDONLY && fails_at("open", path) ? -1 : real(path, flags, mode);
}
