/* Preloaded into a process, this makes one page of one file unreadable: pread fails with EIO there, as on a bad sector.
 *
 * Which page is in the 32 bytes of the file that CHAOS_SECTOR names (device, inode, first byte, byte after the last),
 * mapped into memory, so it can be changed while the process runs. What lies before the page is given, as a disk does.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static volatile struct { uint64_t device, inode, start, end; } *bad;
static ssize_t (*real_pread)(int, void *, size_t, off_t);

__attribute__((constructor)) static void begin(void)
{
    real_pread = (ssize_t (*)(int, void *, size_t, off_t))dlsym(RTLD_NEXT, "pread64");
    const char *path = getenv("CHAOS_SECTOR");
    int fd = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (fd < 0) return;
    void *mapped = mmap(NULL, sizeof *bad, PROT_READ, MAP_SHARED, fd, 0);
    close(fd);
    if (mapped != MAP_FAILED) bad = mapped;
}

ssize_t pread64(int fd, void *buffer, size_t length, off_t offset)
{
    uint64_t start = bad ? bad->start : 0, end = bad ? bad->end : 0;
    struct stat found;
    if (end > (uint64_t)offset && start < (uint64_t)offset + length && fstat(fd, &found) == 0
        && found.st_ino == bad->inode && found.st_dev == bad->device) {
        if ((uint64_t)offset >= start) {
            errno = EIO;
            return -1;
        }
        length = start - (uint64_t)offset;
    }
    return real_pread(fd, buffer, length, offset);
}

ssize_t pread(int fd, void *buffer, size_t length, off_t offset)
{
    return pread64(fd, buffer, length, offset);
}
