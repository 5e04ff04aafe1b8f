/* A disk for tests, loaded with LD_PRELOAD: it fails, kills the process at a call, and writes down what was asked of it. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { WRITE = 1, SYNC, TRUNCATE, UNLINK, CREATE, NAMES, NOTE };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static int trace = -1, calls, current, slow, kill_at, kill_half;
static struct { int error, after, times; } faults[8];

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static int path_of(int fd, char *path) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t size = readlink(link, path, 4095);
    path[size < 0 ? 0 : size] = 0;
    return strstr(path, "/journal-") != NULL && strstr(path, ".lock") == NULL && strstr(path, "-shm") == NULL;
}

static void put(int op, const char *path, uint64_t offset, const void *data, uint64_t size) {
    if (trace < 0) return;
    uint64_t head[4] = {op, strlen(path), offset, size};
    REAL(write)(trace, head, sizeof head);
    REAL(write)(trace, path, head[1]);
    if (data) REAL(write)(trace, data, size);
}

/* Called before a call is made; -1 where it is to fail. */
static int meets(int op) {
    calls++;
    current = op;
    if (faults[op].error && faults[op].after-- <= 0 && faults[op].times != 0) {
        faults[op].times--;
        errno = faults[op].error;
        return -1;
    }
    return 0;
}

/* 0 before the call, 1 in the middle of it, which only a write has, 2 behind it. */
static void dies(int half) {
    int when = kill_half == 1 && current != WRITE ? 0 : kill_half;
    if (kill_at && calls == kill_at && when == half) kill(getpid(), SIGKILL);
}

void disk_fail(int op, int error, int after, int times) {
    faults[op].error = error; faults[op].after = after; faults[op].times = times;
}
void disk_kill(int at, int half) { calls = 0; kill_at = at; kill_half = half; }
void disk_slow(int milliseconds) { slow = milliseconds; }
void disk_trace(const char *path) {
    trace = REAL(open64)(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
}
void disk_note(const char *text, const void *data, uint64_t size) {
    pthread_mutex_lock(&lock);
    put(NOTE, text, 0, data, data ? size : 0);
    pthread_mutex_unlock(&lock);
}

ssize_t pwrite64(int fd, const void *data, size_t size, off64_t offset) {
    char path[4096];
    if (!path_of(fd, path)) return REAL(pwrite64)(fd, data, size, offset);
    pthread_mutex_lock(&lock);
    ssize_t done = meets(WRITE);
    if (!done) {
        dies(0);
        if (kill_at && calls == kill_at && kill_half == 1) { REAL(pwrite64)(fd, data, size / 2, offset); dies(1); }
        done = REAL(pwrite64)(fd, data, size, offset);
        dies(2);
        if (done > 0) put(WRITE, path, offset, data, done);
    }
    pthread_mutex_unlock(&lock);
    return done;
}

static int synced(int fd, int (*real)(int)) {
    char path[4096];
    struct stat found;
    int ours = path_of(fd, path), is_folder = !fstat(fd, &found) && S_ISDIR(found.st_mode);
    if (!ours && !is_folder) return real(fd);
    pthread_mutex_lock(&lock);
    int done = meets(SYNC);
    pthread_mutex_unlock(&lock);
    if (done) return done;
    dies(0);
    usleep(slow * 1000);
    done = real(fd);
    dies(2);
    pthread_mutex_lock(&lock);
    if (!done) put(is_folder ? NAMES : SYNC, path, 0, NULL, 0);
    pthread_mutex_unlock(&lock);
    return done;
}
int fdatasync(int fd) { return synced(fd, REAL(fdatasync)); }
int fsync(int fd) { return synced(fd, REAL(fsync)); }

int ftruncate64(int fd, off64_t size) {
    char path[4096];
    if (!path_of(fd, path)) return REAL(ftruncate64)(fd, size);
    pthread_mutex_lock(&lock);
    int done = meets(TRUNCATE);
    if (!done) {
        dies(0);
        done = REAL(ftruncate64)(fd, size);
        dies(2);
        if (!done) put(TRUNCATE, path, size, NULL, 0);
    }
    pthread_mutex_unlock(&lock);
    return done;
}

int unlink(const char *path) {
    if (!strstr(path, "/journal-")) return REAL(unlink)(path);
    pthread_mutex_lock(&lock);
    int done = meets(UNLINK);
    if (!done) {
        dies(0);
        done = REAL(unlink)(path);
        dies(2);
        if (!done) put(UNLINK, path, 0, NULL, 0);
    }
    pthread_mutex_unlock(&lock);
    return done;
}

int open64(const char *path, int flags, ...) {
    va_list rest;
    va_start(rest, flags);
    int mode = flags & O_CREAT ? va_arg(rest, int) : 0;
    va_end(rest);
    if (!strstr(path, "/journal-") || strstr(path, ".lock")) return REAL(open64)(path, flags, mode);
    pthread_mutex_lock(&lock);
    int is_new = (flags & O_CREAT) && access(path, F_OK), done = meets(CREATE);
    if (!done) {
        dies(0);
        done = REAL(open64)(path, flags, mode);
        dies(2);
        if (done >= 0 && is_new && !strstr(path, "-shm")) put(CREATE, path, 0, NULL, 0);
    }
    pthread_mutex_unlock(&lock);
    return done;
}
