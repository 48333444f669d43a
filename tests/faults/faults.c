/* Preloaded into a process, this fails the nth file operation below one directory.
 *
 * What counts as an operation is a mask of kinds (`fault_arm`); what becomes of the one that is struck is an errno,
 * or half a write. "From then on" strikes every later one, too. Nothing else about the process is different, but one
 * thing: syncs that are not struck return at once, because no power is cut here and thousands of them are slow.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

enum {
    CREATE = 1, OPEN = 2, WRITE = 4, SYNC = 8, TRUNCATE = 16, ALLOCATE = 32, RENAME = 64, UNLINK = 128, MKDIR = 256,
    READ = 512
};

static char below[4096];
static unsigned mask, seen;
static long nth, counted;
static int error_number, from_then_on, half, armed;
static char struck_name[16], struck_path[4096];

/* Counts from 1; nth 0 strikes nothing. `short_write` halves the write that is struck and, with `sticky`, fails every
 * later operation with `error`. */
void fault_arm(const char *directory, unsigned kinds, long number, int error, int sticky, int short_write)
{
    snprintf(below, sizeof below, "%s/", directory);
    mask = kinds;
    nth = number;
    error_number = error;
    from_then_on = sticky;
    half = short_write;
    counted = 0;
    struck_name[0] = struck_path[0] = 0;
    armed = 1;
}

void fault_pause(int on) { armed = !on; }
unsigned fault_seen(void) { return seen; }
long fault_counted(void) { return counted; }
const char *fault_struck_name(void) { return struck_name; }
const char *fault_struck_path(void) { return struck_path; }

static int strikes(unsigned kind, const char *name, const char *path)
{
    if (!armed || strncmp(path, below, strlen(below)))
        return 0;
    seen |= kind;
    if (!(mask & kind))
        return 0;
    counted++;
    if (!nth || counted < nth || (counted > nth && !from_then_on))
        return 0;
    if (!struck_name[0]) {
        snprintf(struck_name, sizeof struck_name, "%s", name);
        snprintf(struck_path, sizeof struck_path, "%s", path);
    }
    return 1;
}

static int strikes_fd(unsigned kind, const char *name, int fd)
{
    char link[64], path[4096];
    if (!armed)
        return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0)
        return 0;
    path[length] = 0;
    return strikes(kind, name, path);
}

static int is_below_fd(int fd)
{
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    return length > 0 && !strncmp(path, below, strlen(below));
}

#define REAL(result, name, ...) result (*real)(__VA_ARGS__) = (result (*)(__VA_ARGS__))dlsym(RTLD_NEXT, #name)
#define FAIL(kind, what, path) if (strikes(kind, what, path)) { errno = error_number; return -1; }
#define FAIL_FD(kind, what, fd) if (strikes_fd(kind, what, fd)) { errno = error_number; return -1; }
#define HALVING (half && counted == nth)

#define MODE_OF(last) \
    mode_t mode = 0; \
    if (flags & (O_CREAT | __O_TMPFILE)) { va_list rest; va_start(rest, last); mode = va_arg(rest, mode_t); va_end(rest); }

#define DEFINE_OPEN(name) \
    int name(const char *path, int flags, ...) \
    { \
        MODE_OF(flags) \
        FAIL(flags & O_CREAT && access(path, F_OK) ? CREATE : OPEN, "open", path) \
        REAL(int, name, const char *, int, ...); \
        return real(path, armed ? flags & ~(O_SYNC | O_DSYNC) : flags, mode); \
    }
DEFINE_OPEN(open)
DEFINE_OPEN(open64)

#define DEFINE_OPENAT(name) \
    int name(int directory, const char *path, int flags, ...) \
    { \
        MODE_OF(flags) \
        FAIL(flags & O_CREAT && access(path, F_OK) ? CREATE : OPEN, "openat", path) \
        REAL(int, name, int, const char *, int, ...); \
        return real(directory, path, armed ? flags & ~(O_SYNC | O_DSYNC) : flags, mode); \
    }
DEFINE_OPENAT(openat)
DEFINE_OPENAT(openat64)

ssize_t write(int fd, const void *data, size_t length)
{
    REAL(ssize_t, write, int, const void *, size_t);
    if (strikes_fd(WRITE, "write", fd)) {
        if (HALVING && length > 1)
            return real(fd, data, length / 2);
        errno = error_number;
        return -1;
    }
    return real(fd, data, length);
}

#define DEFINE_PWRITE(name, offset_type) \
    ssize_t name(int fd, const void *data, size_t length, offset_type offset) \
    { \
        REAL(ssize_t, name, int, const void *, size_t, offset_type); \
        if (strikes_fd(WRITE, "pwrite", fd)) { \
            if (HALVING && length > 1) \
                return real(fd, data, length / 2, offset); \
            errno = error_number; \
            return -1; \
        } \
        return real(fd, data, length, offset); \
    }
DEFINE_PWRITE(pwrite, off_t)
DEFINE_PWRITE(pwrite64, off64_t)

ssize_t writev(int fd, const struct iovec *parts, int count)
{
    REAL(ssize_t, writev, int, const struct iovec *, int);
    if (strikes_fd(WRITE, "writev", fd)) {
        if (HALVING && count > 1)
            return real(fd, parts, count / 2);
        errno = error_number;
        return -1;
    }
    return real(fd, parts, count);
}

int fsync(int fd)
{
    REAL(int, fsync, int);
    FAIL_FD(SYNC, "fsync", fd)
    return armed && is_below_fd(fd) ? 0 : real(fd);
}

int fdatasync(int fd)
{
    REAL(int, fdatasync, int);
    FAIL_FD(SYNC, "fdatasync", fd)
    return armed && is_below_fd(fd) ? 0 : real(fd);
}

int ftruncate(int fd, off_t length)
{
    REAL(int, ftruncate, int, off_t);
    FAIL_FD(TRUNCATE, "ftruncate", fd)
    return real(fd, length);
}

int ftruncate64(int fd, off64_t length)
{
    REAL(int, ftruncate64, int, off64_t);
    FAIL_FD(TRUNCATE, "ftruncate", fd)
    return real(fd, length);
}

int truncate(const char *path, off_t length)
{
    REAL(int, truncate, const char *, off_t);
    FAIL(TRUNCATE, "truncate", path)
    return real(path, length);
}

int truncate64(const char *path, off64_t length)
{
    REAL(int, truncate64, const char *, off64_t);
    FAIL(TRUNCATE, "truncate", path)
    return real(path, length);
}

int fallocate(int fd, int mode, off_t offset, off_t length)
{
    REAL(int, fallocate, int, int, off_t, off_t);
    FAIL_FD(ALLOCATE, "fallocate", fd)
    return real(fd, mode, offset, length);
}

int fallocate64(int fd, int mode, off64_t offset, off64_t length)
{
    REAL(int, fallocate64, int, int, off64_t, off64_t);
    FAIL_FD(ALLOCATE, "fallocate", fd)
    return real(fd, mode, offset, length);
}

int posix_fallocate(int fd, off_t offset, off_t length)
{
    REAL(int, posix_fallocate, int, off_t, off_t);
    return strikes_fd(ALLOCATE, "fallocate", fd) ? error_number : real(fd, offset, length);
}

int posix_fallocate64(int fd, off64_t offset, off64_t length)
{
    REAL(int, posix_fallocate64, int, off64_t, off64_t);
    return strikes_fd(ALLOCATE, "fallocate", fd) ? error_number : real(fd, offset, length);
}

int rename(const char *from, const char *to)
{
    REAL(int, rename, const char *, const char *);
    FAIL(RENAME, "rename", from)
    return real(from, to);
}

int unlink(const char *path)
{
    REAL(int, unlink, const char *);
    FAIL(UNLINK, "unlink", path)
    return real(path);
}

int mkdir(const char *path, mode_t mode)
{
    REAL(int, mkdir, const char *, mode_t);
    FAIL(MKDIR, "mkdir", path)
    return real(path, mode);
}

ssize_t read(int fd, void *data, size_t length)
{
    REAL(ssize_t, read, int, void *, size_t);
    FAIL_FD(READ, "read", fd)
    return real(fd, data, length);
}

#define DEFINE_PREAD(name, offset_type) \
    ssize_t name(int fd, void *data, size_t length, offset_type offset) \
    { \
        REAL(ssize_t, name, int, void *, size_t, offset_type); \
        FAIL_FD(READ, "pread", fd) \
        return real(fd, data, length, offset); \
    }
DEFINE_PREAD(pread, off_t)
DEFINE_PREAD(pread64, off64_t)
