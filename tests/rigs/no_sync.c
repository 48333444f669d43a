/* Preloaded into a process, this takes every sync away: the calls succeed and do nothing.
 *
 * What it is for: a power-cut proof must show loss when nothing is synced, or it proves nothing.
 * fsync, fdatasync, msync and sync_file_range become no-ops, and files are opened without O_SYNC and O_DSYNC.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stddef.h>
#include <sys/types.h>

#define WITHOUT_SYNC(flags) ((flags) & ~(O_SYNC | O_DSYNC))

int fsync(int fd) { (void)fd; return 0; }
int fdatasync(int fd) { (void)fd; return 0; }
int msync(void *address, size_t length, int flags) { (void)address; (void)length; (void)flags; return 0; }
int syncfs(int fd) { (void)fd; return 0; }
void sync(void) {}
int sync_file_range(int fd, off64_t offset, off64_t length, unsigned int flags)
{ (void)fd; (void)offset; (void)length; (void)flags; return 0; }

#define MODE_OF(last) \
    mode_t mode = 0; \
    if (flags & (O_CREAT | __O_TMPFILE)) { va_list rest; va_start(rest, last); mode = va_arg(rest, mode_t); va_end(rest); }

#define OPEN(name) \
    int name(const char *path, int flags, ...) \
    { \
        MODE_OF(flags) \
        int (*real)(const char *, int, ...) = (int (*)(const char *, int, ...))dlsym(RTLD_NEXT, #name); \
        return real(path, WITHOUT_SYNC(flags), mode); \
    }
#define OPENAT(name) \
    int name(int directory, const char *path, int flags, ...) \
    { \
        MODE_OF(flags) \
        int (*real)(int, const char *, int, ...) = (int (*)(int, const char *, int, ...))dlsym(RTLD_NEXT, #name); \
        return real(directory, path, WITHOUT_SYNC(flags), mode); \
    }

OPEN(open)
OPEN(open64)
OPENAT(openat)
OPENAT(openat64)
