// The state and the machinery behind the five libraries: settings, streams with their workers, memory with its
// guard pages, and what happens when an operation touches what it must not. See device.h for the model.
#include "device.h"

#include <atomic>
#include <cerrno>
#include <csetjmp>
#include <csignal>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fcntl.h>
#include <sys/mman.h>
#include <thread>
#include <ucontext.h>
#include <unistd.h>

namespace software_gpu {

namespace {

constexpr size_t PAGE = 4096;
constexpr size_t POOL_GRANULE = size_t(2) << 20;   // in which a pool takes memory from the device
constexpr size_t CHARGE_GRANULE = 512;             // to which the size of an allocation is rounded for the account
constexpr size_t QUARANTINE_BYTES = size_t(256) << 20;
constexpr size_t QUARANTINE_REGIONS = 4096;
// Around an allocation: NaN both as f32 and as bf16 (so that reading it shows), and unlike the poison.
constexpr uint8_t MARGIN[2] = {0xC1, 0xFF};

size_t round_up(size_t value, size_t granule) { return (value + granule - 1) / granule * granule; }

const char *environment(const char *name) {
    const char *value = getenv(name);
    return value && *value ? value : nullptr;
}

// One entry of SOFTWARE_GPU_FAULT: "<name>[/<device>]:<nth call or all>:<code>".
struct Fault {
    std::string name;
    int device = -1; // any
    long nth = 0;    // 0: all
    int code = 0;
    std::atomic<long> calls{0};
};

struct Everything {
    Settings settings;
    std::deque<Fault> faults;
    State state;
};

std::vector<std::string> split(const std::string &text, char separator) {
    std::vector<std::string> parts;
    size_t start = 0;
    for (;;) {
        size_t end = text.find(separator, start);
        parts.push_back(text.substr(start, end == std::string::npos ? end : end - start));
        if (end == std::string::npos) return parts;
        start = end + 1;
    }
}

int nth_or_all(const char *value) { return !strcmp(value, "all") ? -1 : atoi(value); }

void read_faults(Everything &all, const char *list) {
    for (const std::string &entry : split(list, ',')) {
        std::vector<std::string> parts = split(entry, ':');
        if (parts.size() != 3) {
            say("SOFTWARE_GPU_FAULT: '%s' is not <name>:<nth>:<code>", entry.c_str());
            abort();
        }
        Fault &fault = all.faults.emplace_back();
        size_t slash = parts[0].find('/');
        fault.name = parts[0].substr(0, slash);
        if (slash != std::string::npos) fault.device = atoi(parts[0].c_str() + slash + 1);
        fault.nth = parts[1] == "all" ? 0 : atol(parts[1].c_str());
        fault.code = atoi(parts[2].c_str());
    }
}

// CUDA_VISIBLE_DEVICES as the driver reads it: ordinals, up to the first that does not exist.
void read_visible(Settings &settings) {
    const char *list = getenv("CUDA_VISIBLE_DEVICES");
    if (!list) {
        for (int i = 0; i < settings.machine_devices; i++) settings.visible.push_back(i);
        return;
    }
    for (const std::string &entry : split(list, ',')) {
        char *end = nullptr;
        long number = strtol(entry.c_str(), &end, 10);
        if (entry.empty() || *end || number < 0 || number >= settings.machine_devices) return;
        settings.visible.push_back((int)number);
    }
}

void report_leaks();

Everything *read_everything() {
    auto *all = new Everything; // never freed: workers may outlive main
    Settings &s = all->settings;
    if (auto v = environment("SOFTWARE_GPU_DEVICES")) s.machine_devices = atoi(v);
    read_visible(s);
    if (auto v = environment("SOFTWARE_GPU_MEMORY")) s.memory = strtoull(v, nullptr, 10);
    if (auto v = environment("SOFTWARE_GPU_CAPABILITY")) sscanf(v, "%d.%d", &s.major, &s.minor);
    if (auto v = environment("SOFTWARE_GPU_POISON")) s.poison = (uint8_t)strtoul(v, nullptr, 16);
    if (auto v = environment("SOFTWARE_GPU_IGNORE_WAIT")) s.ignored_wait = nth_or_all(v);
    if (auto v = environment("SOFTWARE_GPU_SHORT_ALLOCATION")) s.short_allocation = nth_or_all(v);
    if (auto v = environment("SOFTWARE_GPU_INDEX_BUG")) s.index_bug = v;
    s.transpose_bug = environment("SOFTWARE_GPU_TRANSPOSE_BUG");
    s.no_peer = environment("SOFTWARE_GPU_NO_PEER");
    s.throttle = environment("SOFTWARE_GPU_THROTTLE");
    s.other_process = environment("SOFTWARE_GPU_OTHER_PROCESS");
    s.nccl_stall = environment("SOFTWARE_GPU_NCCL_STALL");
    if (auto v = environment("SOFTWARE_GPU_NCCL_TIMEOUT")) s.nccl_timeout = atof(v);
    if (auto v = environment("SOFTWARE_GPU_STANDSTILL")) s.standstill = std::chrono::milliseconds(atol(v));
    if (auto v = environment("SOFTWARE_GPU_FAULT")) read_faults(*all, v);
    if (auto v = environment("SOFTWARE_GPU_TRACE")) {
        s.trace = open(v, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
        if (s.trace < 0) say("SOFTWARE_GPU_TRACE: cannot open %s: %s", v, strerror(errno));
        else atexit(report_leaks);
    }
    all->state.devices.resize(s.visible.size());
    return all;
}

Everything &everything() {
    static Everything *all = read_everything();
    return *all;
}

} // namespace

const Settings &settings() { return everything().settings; }
State &state() { return everything().state; }

void say(const char *format, ...) {
    char line[1024] = "software GPU: ";
    size_t start = strlen(line);
    va_list arguments;
    va_start(arguments, format);
    int wanted = vsnprintf(line + start, sizeof line - start - 1, format, arguments);
    va_end(arguments);
    size_t length = start + (size_t)(wanted < 0 ? 0 : wanted);
    if (length > sizeof line - 2) length = sizeof line - 2;
    line[length++] = '\n';
    if (write(2, line, length) < 0) return; // nobody left to tell
}

int fault(const char *name) {
    auto &faults = everything().faults;
    if (faults.empty()) return 0;
    ContextPtr context = current();
    int device = context ? context->device : -1;
    int code = 0;
    for (Fault &fault : faults) {
        if (fault.name != name || (fault.device >= 0 && fault.device != device)) continue;
        long call = ++fault.calls;
        if (fault.nth == 0 || call == fault.nth) code = fault.code;
    }
    return code;
}

// ---------------------------------------------------------------------------------------------------------------
// Identity.

int machine_device(int ordinal) { return settings().visible[(size_t)ordinal]; }

void device_uuid(int machine, uint8_t uuid[16]) {
    memcpy(uuid, "software gpu", 12);
    for (int i = 0; i < 4; i++) uuid[12 + i] = (uint8_t)((unsigned)machine >> (24 - 8 * i));
}

unsigned device_bus(int machine) { return 0x10u + (unsigned)machine; }

void *new_handle(Lock &) { return reinterpret_cast<void *>(0x1000000000ull + 64 * ++state().handles); }

// ---------------------------------------------------------------------------------------------------------------
// Faults inside operations.

namespace {

// Where a worker comes back to when its operation is ended by a signal.
struct Execution {
    sigjmp_buf back;
    int signal = 0;
    uintptr_t address = 0;
    bool known_address = false, write = false;
};

// Read in a signal handler, hence no lazily allocated storage.
__attribute__((tls_model("initial-exec"))) thread_local Execution *volatile executing = nullptr;

const int SIGNALS[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL};
struct sigaction previous[4];

std::string where(uintptr_t address);

void on_signal(int signal, siginfo_t *info, void *machine) {
    if (Execution *execution = executing) {
        execution->signal = signal;
        execution->address = (uintptr_t)info->si_addr;
        execution->known_address = (signal == SIGSEGV || signal == SIGBUS) && info->si_code != SI_KERNEL;
#ifdef __x86_64__
        execution->write = static_cast<ucontext_t *>(machine)->uc_mcontext.gregs[REG_ERR] & 2;
#else
        (void)machine;
#endif
        siglongjmp(execution->back, 1);
    }
    int slot = 0;
    while (SIGNALS[slot] != signal) slot++;
    struct sigaction &before = previous[slot];
    if (before.sa_flags & SA_SIGINFO) {
        before.sa_sigaction(signal, info, machine);
    } else if (before.sa_handler != SIG_DFL && before.sa_handler != SIG_IGN) {
        before.sa_handler(signal);
    } else {
        sigaction(signal, &before, nullptr); // returning repeats the fault, now with the default action
    }
}

void install_handlers() {
    struct sigaction action = {};
    action.sa_sigaction = on_signal;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
    for (int i = 0; i < 4; i++) sigaction(SIGNALS[i], &action, &previous[i]);
}

// An operation's name and place for a message.
std::string whose(const Operation &operation) {
    const Stream &stream = *operation.record->stream;
    return operation.name + " (device " + std::to_string(stream.context->device) + ", stream " +
           std::to_string(stream.number) + ", operation " + std::to_string(operation.record->index) + ")";
}

std::string hex(uintptr_t address) {
    char text[32];
    snprintf(text, sizeof text, "0x%zx", (size_t)address);
    return text;
}

// The address told in terms of the allocation that it lies in or next to.
std::string where(uintptr_t address) {
    Lock lock(state().mutex);
    RegionPtr region = find_region(lock, reinterpret_cast<void *>(address));
    if (!region) return hex(address) + ", which is no device memory";
    std::string text = hex(address) + ", ";
    if (address < region->base) {
        text += std::to_string(region->base - address) + " bytes before ";
    } else if (address >= region->base + region->bytes) {
        text += std::to_string(address - region->base - region->bytes) + " bytes beyond the end of ";
    } else {
        text += std::to_string(address - region->base) + " bytes into ";
    }
    text += std::string(region->device < 0 ? "page-locked host " : "") + "allocation " +
            std::to_string(region->number) + " of " + std::to_string(region->bytes) + " bytes";
    if (region->life == Life::Freed) text += ", which has been freed";
    if (region->life == Life::Reserved) text += ", whose allocation its stream has not reached yet";
    return text;
}

int explain(const Operation &operation, const Execution &execution) {
    std::string place;
    if (operation.position) {
        unsigned block[3] = {0, 0, 0}, thread[3] = {0, 0, 0};
        operation.position(block, thread);
        char text[120];
        snprintf(text, sizeof text, ", in block (%u, %u, %u), thread (%u, %u, %u)", block[0], block[1], block[2],
                 thread[0], thread[1], thread[2]);
        place = text;
    }
    if (execution.signal == SIGFPE || execution.signal == SIGILL) {
        say("%s: %s%s", whose(operation).c_str(),
            execution.signal == SIGFPE ? "arithmetic trap (integer division by zero?)" : "trap", place.c_str());
        return LAUNCH_FAILED;
    }
    say("%s: illegal %s of %s%s", whose(operation).c_str(), execution.write ? "write" : "read",
        execution.known_address ? where(execution.address).c_str() : "a wild address", place.c_str());
    return ILLEGAL_ADDRESS;
}

int run_guarded(const Operation &operation) {
    if (operation.injected) {
        say("%s: fails with %d as asked", whose(operation).c_str(), operation.injected);
        if (operation.skipped) operation.skipped();
        return operation.injected;
    }
    Execution execution;
    if (sigsetjmp(execution.back, 0) == 0) {
        executing = &execution;
        int code = operation.run();
        executing = nullptr;
        return code;
    }
    executing = nullptr;
    return explain(operation, execution);
}

// ---------------------------------------------------------------------------------------------------------------
// Workers.

void trace(const Operation &operation, bool skipped, int code) {
    if (settings().trace < 0) return;
    const Stream &stream = *operation.record->stream;
    char line[640];
    int length = snprintf(line, sizeof line, "pid=%d device=%d stream=%d operation=%llu name=%s%s%s%s", (int)getpid(),
                          stream.context->device, stream.number, (unsigned long long)operation.record->index,
                          operation.name.c_str(), operation.detail.empty() ? "" : " ", operation.detail.c_str(),
                          skipped ? " skipped" : "");
    if (length > (int)sizeof line - 40) length = (int)sizeof line - 40;
    if (code) length += snprintf(line + length, 32, " error=%d", code);
    line[length++] = '\n';
    if (write(settings().trace, line, (size_t)length) < 0) return;
}

void report_leaks() {
    Lock lock(state().mutex);
    size_t count = 0, bytes = 0;
    for (auto &entry : state().regions) {
        if (entry.second->life == Life::Freed || entry.second->freeing) continue;
        count++;
        bytes += entry.second->bytes;
    }
    char line[160];
    int length = snprintf(line, sizeof line, "pid=%d exit allocations=%zu bytes=%zu\n", (int)getpid(), count, bytes);
    if (write(settings().trace, line, (size_t)length) < 0) return;
}

// The harness's signals are for its own threads; an alternate stack lets an overflow of a kernel's stack be told.
void prepare_worker() {
    sigset_t all;
    sigfillset(&all);
    for (int signal : SIGNALS) sigdelset(&all, signal);
    pthread_sigmask(SIG_BLOCK, &all, nullptr);
    stack_t stack = {};
    stack.ss_size = 64 << 10;
    stack.ss_sp = malloc(stack.ss_size);
    sigaltstack(&stack, nullptr);
}

void forget_stream(Lock &, const StreamPtr &stream) {
    auto &streams = stream->context->streams;
    for (size_t i = 0; i < streams.size(); i++) {
        if (streams[i] == stream) {
            streams.erase(streams.begin() + (long)i);
            break;
        }
    }
    state().changed.notify_all();
}

void work(StreamPtr stream) {
    prepare_worker();
    State &s = state();
    Context &context = *stream->context;
    Lock lock(s.mutex);
    for (;;) {
        stream->wake.wait(lock, [&] { return stream->completed < stream->released || stream->closed; });
        if (stream->queue.empty()) {
            if (!stream->closed) continue;
            forget_stream(lock, stream);
            break;
        }
        std::shared_ptr<Operation> operation = stream->queue.front();
        for (const RecordPtr &record : operation->after) {
            if (context.dead) break;
            release(lock, record);
            s.changed.wait(lock, [&] { return record->done || context.dead; });
        }
        bool skip = context.dead || context.error;
        int code = 0;
        s.working++;
        lock.unlock();
        if (skip) {
            if (operation->skipped) operation->skipped();
        } else if (operation->run || operation->injected) {
            code = run_guarded(*operation);
        }
        trace(*operation, skip, code);
        operation->run = nullptr; // lets go of what the operation held
        operation->skipped = nullptr;
        lock.lock();
        s.working--;
        if (code && !context.error) context.error = code;
        operation->record->done = true;
        operation->record->time = Clock::now();
        operation->record->stream.reset();
        stream->queue.pop_front();
        stream->completed++;
        s.progress++;
        s.changed.notify_all();
    }
    lock.unlock();
    stack_t stack = {};
    stack.ss_flags = SS_DISABLE;
    stack_t old = {};
    sigaltstack(&stack, &old);
    free(old.ss_sp);
}

void release_everything(Lock &lock) {
    for (auto &entry : state().contexts) {
        std::vector<StreamPtr> streams = entry.second->streams;
        for (auto &stream : streams) release(lock, stream, stream->submitted);
    }
}

// Work that other ranks may be waiting for runs some day even if its own process never asks: the rank's thread
// may be waiting for a message that the peer sends only afterwards.
void tick() {
    State &s = state();
    Lock lock(s.mutex);
    for (;;) {
        lock.unlock();
        std::this_thread::sleep_for(std::chrono::milliseconds(25));
        lock.lock();
        auto limit = Clock::now() - settings().standstill;
        for (auto &entry : s.contexts) {
            std::vector<StreamPtr> streams = entry.second->streams;
            for (auto &stream : streams) {
                uint64_t upto = 0;
                for (auto &operation : stream->queue) {
                    if (operation->peers && operation->enqueued < limit) upto = operation->record->index;
                }
                if (upto > stream->released) release(lock, stream, upto);
            }
        }
    }
}

} // namespace

RecordPtr enqueue(Lock &, const StreamPtr &stream, Operation &&operation) {
    State &s = state();
    auto shared = std::make_shared<Operation>(std::move(operation));
    if (!shared->injected && !everything().faults.empty()) shared->injected = fault((shared->name + "@run").c_str());
    shared->record = std::make_shared<Record>();
    shared->record->stream = stream;
    shared->record->index = ++stream->submitted;
    shared->enqueued = Clock::now();
    if (shared->peers && !s.ticking) {
        s.ticking = true;
        std::thread([] {
            prepare_worker();
            tick();
        }).detach();
    }
    stream->queue.push_back(shared);
    return shared->record;
}

void release(Lock &, const StreamPtr &stream, uint64_t index) {
    if (index > stream->released) stream->released = index;
    if (stream->released == stream->completed && !stream->closed) return;
    if (!stream->started) {
        stream->started = true;
        std::thread(work, stream).detach();
    }
    stream->wake.notify_one();
}

void release(Lock &lock, const RecordPtr &record) {
    if (record && !record->done) release(lock, StreamPtr(record->stream), record->index);
}

void wait_until(Lock &lock, const std::function<bool()> &condition) {
    State &s = state();
    uint64_t mark = s.progress;
    auto since = Clock::now();
    while (!condition()) {
        s.changed.wait_for(lock, std::chrono::milliseconds(20));
        auto now = Clock::now();
        if (s.progress != mark || s.working > 0) {
            mark = s.progress;
            since = now;
        } else if (now - since >= settings().standstill) {
            release_everything(lock);
            since = now;
        }
    }
}

bool poll(Lock &lock, const std::function<bool()> &condition) {
    State &s = state();
    if (condition()) return true;
    s.changed.wait_for(lock, std::chrono::milliseconds(1));
    if (condition()) return true;
    auto now = Clock::now();
    if (s.query_mark != s.progress || s.working > 0 || s.query_since == Clock::time_point()) {
        s.query_mark = s.progress;
        s.query_since = now;
    } else if (now - s.query_since >= settings().standstill) {
        release_everything(lock);
        s.query_since = now;
    }
    return false;
}

void synchronise_stream(Lock &lock, const StreamPtr &stream) {
    uint64_t target = stream->submitted;
    release(lock, stream, target);
    wait_until(lock, [&] { return stream->completed >= target; });
    Device &device = state().devices[(size_t)stream->context->device];
    trim(device, device.threshold);
}

void synchronise_context(Lock &lock, const ContextPtr &context) {
    std::vector<std::pair<StreamPtr, uint64_t>> targets;
    for (auto &stream : context->streams) targets.emplace_back(stream, stream->submitted);
    for (auto &target : targets) release(lock, target.first, target.second);
    for (auto &target : targets) wait_until(lock, [&] { return target.first->completed >= target.second; });
    Device &device = state().devices[(size_t)context->device];
    trim(device, device.threshold);
}

// ---------------------------------------------------------------------------------------------------------------
// Contexts and streams.

namespace {
thread_local ContextPtr current_context;
}

ContextPtr current() { return current_context; }
void set_current(ContextPtr context) { current_context = std::move(context); }

int usable(Lock &, ContextPtr *context) {
    if (!state().initialised) return NOT_INITIALIZED;
    if (!current_context) return INVALID_CONTEXT;
    *context = current_context;
    if ((*context)->dead) return CONTEXT_IS_DESTROYED;
    return (*context)->error;
}

int retain_context(Lock &lock, int device, ContextPtr *context) {
    State &s = state();
    static bool handlers = (install_handlers(), true);
    (void)handlers;
    ContextPtr &primary = s.devices[(size_t)device].context;
    if (!primary) {
        primary = std::make_shared<Context>();
        primary->device = device;
        primary->handle = new_handle(lock);
        s.contexts[primary->handle] = primary;
        primary->null_stream = new_stream(lock, primary);
    }
    primary->references++;
    *context = primary;
    return SUCCESS;
}

int release_context(Lock &lock, int device) {
    State &s = state();
    ContextPtr context = s.devices[(size_t)device].context;
    if (!context) return INVALID_CONTEXT;
    if (--context->references > 0) return SUCCESS;
    // The last user is gone: what was enqueued and never asked for is dropped with everything else.
    context->dead = true;
    s.changed.notify_all();
    std::vector<StreamPtr> streams = context->streams;
    for (auto &stream : streams) close_stream(lock, stream);
    s.changed.wait_for(lock, std::chrono::seconds(5), [&] { return context->streams.empty(); });
    context->null_stream.reset();
    std::vector<RegionPtr> regions;
    for (auto &entry : s.regions) {
        if (entry.second->device == device && entry.second->life != Life::Freed) regions.push_back(entry.second);
    }
    lock.unlock();
    for (auto &region : regions) retire(region, "the release of the context");
    lock.lock();
    s.devices[(size_t)device] = Device();
    return SUCCESS;
}

StreamPtr new_stream(Lock &lock, const ContextPtr &context) {
    auto stream = std::make_shared<Stream>();
    stream->context = context;
    stream->handle = new_handle(lock);
    stream->number = context->next_stream++;
    context->streams.push_back(stream);
    state().streams[stream->handle] = stream;
    return stream;
}

StreamPtr find_stream(Lock &, void *handle, const ContextPtr &context) {
    if (handle == nullptr || handle == reinterpret_cast<void *>(1)) return context->null_stream;
    auto found = state().streams.find(handle);
    return found == state().streams.end() ? nullptr : found->second;
}

void close_stream(Lock &lock, const StreamPtr &stream) {
    state().streams.erase(stream->handle);
    stream->closed = true;
    if (!stream->started && stream->queue.empty()) forget_stream(lock, stream);
    else release(lock, stream, stream->submitted);
}

PeerWait::PeerWait() {
    Lock lock(state().mutex);
    state().working--;
}

PeerWait::~PeerWait() {
    Lock lock(state().mutex);
    state().working++;
}

// ---------------------------------------------------------------------------------------------------------------
// Memory.

namespace {

void fill_margin(uintptr_t from, uintptr_t to) {
    for (uintptr_t at = from; at < to; at++) *reinterpret_cast<volatile uint8_t *>(at) = MARGIN[at & 1];
}

// The first address in the range that no longer holds the margin's pattern, or 0.
uintptr_t broken_margin(uintptr_t from, uintptr_t to) {
    for (uintptr_t at = from; at < to; at++) {
        if (*reinterpret_cast<volatile uint8_t *>(at) != MARGIN[at & 1]) return at;
    }
    return 0;
}

// Reserves address space for an allocation whose end, rounded up to `alignment`, touches a page that is never
// readable; another such page lies in front. Nothing is accessible yet.
RegionPtr reserve(size_t bytes, size_t alignment) {
    size_t data = round_up(round_up(bytes, alignment), PAGE);
    size_t total = data + 2 * PAGE;
    void *map = mmap(nullptr, total, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (map == MAP_FAILED) return nullptr;
    auto region = std::make_shared<Region>();
    region->map = (uintptr_t)map;
    region->map_bytes = total;
    region->base = region->map + PAGE + data - round_up(bytes, alignment);
    region->bytes = bytes;
    region->number = ++state().allocations;
    state().regions[region->map] = region;
    return region;
}

} // namespace

int allocate(Lock &, const ContextPtr &context, size_t bytes, bool pooled, size_t take_off, RegionPtr *region) {
    Device &device = state().devices[(size_t)context->device];
    size_t charge = round_up(bytes, CHARGE_GRANULE);
    if (charge < bytes || charge > settings().memory || device.used + device.direct > settings().memory - charge)
        return OUT_OF_MEMORY;
    // A short allocation is told by its very next element, hence the finer end.
    *region = take_off && bytes > take_off ? reserve(bytes - take_off, 4) : reserve(bytes, 16);
    if (!*region) return OUT_OF_MEMORY;
    (*region)->device = context->device;
    (*region)->pooled = pooled;
    (*region)->charged = charge;
    if (pooled) {
        device.used += charge;
        if (device.used > device.used_high) device.used_high = device.used;
        if (device.used > device.reserved) device.reserved = round_up(device.used, POOL_GRANULE);
        if (device.reserved > device.reserved_high) device.reserved_high = device.reserved;
    } else {
        device.direct += charge;
    }
    return SUCCESS;
}

int allocate_host(Lock &, size_t bytes, RegionPtr *region) {
    *region = reserve(bytes, 16);
    return *region ? SUCCESS : OUT_OF_MEMORY;
}

void bring_to_life(const RegionPtr &region) {
    uintptr_t start = region->map + PAGE, end = region->map + region->map_bytes - PAGE;
    if (mprotect(reinterpret_cast<void *>(start), end - start, PROT_READ | PROT_WRITE) != 0) {
        say("cannot give memory to allocation %llu: %s", (unsigned long long)region->number, strerror(errno));
        abort();
    }
    fill_margin(start, region->base);
    fill_margin(region->base + region->bytes, end);
    memset(reinterpret_cast<void *>(region->base), settings().poison, region->bytes);
    Lock lock(state().mutex);
    region->life = Life::Live;
}

int retire(const RegionPtr &region, const char *who) {
    int code = SUCCESS;
    Lock lock(state().mutex);
    bool live = region->life == Life::Live;
    lock.unlock();
    uintptr_t start = region->map + PAGE, end = region->map + region->map_bytes - PAGE;
    if (live) {
        uintptr_t broken = broken_margin(region->base + region->bytes, end);
        if (!broken) broken = broken_margin(start, region->base);
        if (broken) {
            say("%s: somebody wrote outside an allocation, at %s", who, where(broken).c_str());
            code = ILLEGAL_ADDRESS;
        }
    }
    // Unreadable for the rest of the process, or nearly: the oldest such ranges are handed back.
    mmap(reinterpret_cast<void *>(region->map), region->map_bytes, PROT_NONE,
         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
    lock.lock();
    State &s = state();
    region->life = Life::Freed;
    region->freeing = true;
    s.quarantine.push_back(region);
    s.quarantined += region->map_bytes;
    while (s.quarantine.size() > 1 && (s.quarantined > QUARANTINE_BYTES || s.quarantine.size() > QUARANTINE_REGIONS)) {
        RegionPtr oldest = s.quarantine.front();
        s.quarantine.pop_front();
        s.quarantined -= oldest->map_bytes;
        s.regions.erase(oldest->map);
        munmap(reinterpret_cast<void *>(oldest->map), oldest->map_bytes);
    }
    return code;
}

void uncharge(Lock &, const RegionPtr &region) {
    if (region->device < 0) return;
    Device &device = state().devices[(size_t)region->device];
    (region->pooled ? device.used : device.direct) -= region->charged;
    region->charged = 0;
}

void trim(Device &device, uint64_t keep) {
    size_t needed = round_up(device.used, POOL_GRANULE);
    size_t kept = device.reserved < keep ? device.reserved : (size_t)keep;
    device.reserved = kept > needed ? kept : needed;
}

RegionPtr find_region(Lock &, const void *address) {
    auto &regions = state().regions;
    auto next = regions.upper_bound((uintptr_t)address);
    if (next == regions.begin()) return nullptr;
    RegionPtr region = std::prev(next)->second;
    return (uintptr_t)address < region->map + region->map_bytes ? region : nullptr;
}

namespace {

bool inside(const Region &region, const void *address, size_t bytes) {
    uintptr_t at = (uintptr_t)address;
    return at >= region.base && at <= region.base + region.bytes && bytes <= region.base + region.bytes - at;
}

std::string range(const void *address, size_t bytes) {
    return std::to_string(bytes) + " bytes at " + hex((uintptr_t)address);
}

} // namespace

int check_argument(Lock &lock, const char *who, const void *address, size_t bytes) {
    RegionPtr region = find_region(lock, address);
    if (!region || region->device < 0) {
        say("%s: %s are no device memory", who, range(address, bytes).c_str());
        return INVALID_VALUE;
    }
    if (!inside(*region, address, bytes)) {
        say("%s: %s leave allocation %llu of %zu bytes at %s", who, range(address, bytes).c_str(),
            (unsigned long long)region->number, region->bytes, hex(region->base).c_str());
        return INVALID_VALUE;
    }
    if (region->freeing) {
        say("%s: %s are in allocation %llu, which has been freed", who, range(address, bytes).c_str(),
            (unsigned long long)region->number);
        return INVALID_VALUE;
    }
    return SUCCESS;
}

int check_operand(const char *who, int device, const void *address, size_t bytes) {
    Lock lock(state().mutex);
    RegionPtr region = find_region(lock, address);
    const char *why = nullptr;
    if (!region) why = "are no device memory";
    else if (region->life == Life::Freed) why = "have been freed";
    else if (region->life == Life::Reserved) why = "are used before their allocation's turn in its stream";
    else if (!inside(*region, address, bytes)) why = "leave their allocation";
    else if (region->device >= 0 && region->device != device) {
        ContextPtr context = state().devices[(size_t)device].context;
        if (!context || !context->peers.count(region->device)) why = "are another device's, without peer access";
    }
    if (!why) return SUCCESS;
    std::string text = range(address, bytes);
    if (region) {
        text += " (allocation " + std::to_string(region->number) + " of " + std::to_string(region->bytes) +
                " bytes at " + hex(region->base) + ")";
    }
    say("%s: %s %s", who, text.c_str(), why);
    return ILLEGAL_ADDRESS;
}

size_t offset_in_allocation(const void *address) {
    Lock lock(state().mutex);
    RegionPtr region = find_region(lock, address);
    return region ? (uintptr_t)address - region->base : (uintptr_t)address;
}

} // namespace software_gpu
