// libcuda.so.1 of the software GPU: the driver entry points that our code calls. The machinery is in device.cpp.
#include "device.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <dlfcn.h>
#include <elf.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

#include "image.h"

using namespace software_gpu;

namespace {

using CUresult = int;
using CUdevice = int;
using CUdeviceptr = unsigned long long;
using CUcontext = void *;
using CUstream = void *;
using CUevent = void *;
using CUmodule = void *;
using CUfunction = void *;
using CUmemoryPool = void *;
struct CUuuid {
    char bytes[16];
};

constexpr int VERSION = 12080;
constexpr unsigned EVENT_DISABLE_TIMING = 2;

// What a kernel's source exports through shim.h, one per kernel: `software_gpu_entry_<name>`.
struct Entry {
    int parameters;
    const unsigned *parameter_sizes;
    void (*run)(const unsigned grid[3], const unsigned block[3], void *const *arguments);
};

struct Module {
    ContextPtr context;
    void *library = nullptr; // never closed: a worker may still hold something of it
};

struct Function {
    ContextPtr context;
    std::shared_ptr<Module> module;
    std::string name;
    const Entry *entry = nullptr;
};

struct Event {
    ContextPtr context;
    unsigned flags = 0;
    RecordPtr latest;
};

// Handles of the driver alone. Guarded by state().mutex, never destroyed.
struct Handles {
    std::map<void *, std::shared_ptr<Event>> events;
    std::map<void *, std::shared_ptr<Module>> modules;
    std::map<void *, std::shared_ptr<Function>> functions;
    std::vector<void *> pools; // by device
    int waits = 0, allocations = 0;
};

Handles &handles() {
    static Handles *all = new Handles;
    return *all;
}

template <class T> std::shared_ptr<T> find(std::map<void *, std::shared_ptr<T>> &all, void *handle) {
    auto found = all.find(handle);
    return found == all.end() ? nullptr : found->second;
}

bool is_device(int device) { return device >= 0 && device < (int)state().devices.size(); }

const void *pointer(CUdeviceptr address) { return reinterpret_cast<const void *>(address); }

// The stream that a call names, whichever context it belongs to; some context has to be current.
int any_stream(Lock &lock, CUstream handle, StreamPtr *stream) {
    ContextPtr context;
    if (int code = usable(lock, &context)) return code;
    *stream = find_stream(lock, handle, context);
    if (!*stream) {
        say("a stream is used that does not exist (any more)");
        return INVALID_HANDLE;
    }
    return (*stream)->context->error;
}

// The stream that a call names, which has to belong to the current context.
int stream_for(Lock &lock, CUstream handle, ContextPtr *context, StreamPtr *stream) {
    if (int code = usable(lock, context)) return code;
    if (int code = any_stream(lock, handle, stream)) return code;
    if ((*stream)->context == *context) return SUCCESS;
    say("a stream of another context is used for work of the current one");
    return INVALID_HANDLE;
}

// Host memory for a copy: page-locked memory is used in place, at execution; a device address is a mistake.
int host_range(Lock &lock, const char *who, const void *host, size_t bytes, bool *locked) {
    *locked = false;
    RegionPtr region = find_region(lock, host);
    if (!region) return host || !bytes ? SUCCESS : INVALID_VALUE;
    uintptr_t at = (uintptr_t)host;
    if (region->device >= 0 || region->freeing || at < region->base || bytes > region->base + region->bytes - at) {
        say("%s: the %zu bytes of host memory at %p are device memory, or leave their page-locked allocation", who,
            bytes, host);
        return INVALID_VALUE;
    }
    *locked = true;
    return SUCCESS;
}

struct Name {
    int code;
    const char *name, *text;
};

const Name NAMES[] = {
    {0, "CUDA_SUCCESS", "no error"},
    {1, "CUDA_ERROR_INVALID_VALUE", "invalid argument"},
    {2, "CUDA_ERROR_OUT_OF_MEMORY", "out of memory"},
    {3, "CUDA_ERROR_NOT_INITIALIZED", "initialization error"},
    {4, "CUDA_ERROR_DEINITIALIZED", "driver shutting down"},
    {34, "CUDA_ERROR_STUB_LIBRARY", "a stub library was loaded instead of the driver"},
    {46, "CUDA_ERROR_DEVICE_UNAVAILABLE", "the device is busy or unavailable"},
    {100, "CUDA_ERROR_NO_DEVICE", "no CUDA-capable device is detected"},
    {101, "CUDA_ERROR_INVALID_DEVICE", "invalid device ordinal"},
    {200, "CUDA_ERROR_INVALID_IMAGE", "device kernel image is invalid"},
    {201, "CUDA_ERROR_INVALID_CONTEXT", "invalid device context"},
    {209, "CUDA_ERROR_NO_BINARY_FOR_GPU", "no kernel image is available for execution on the device"},
    {214, "CUDA_ERROR_ECC_UNCORRECTABLE", "uncorrectable ECC error encountered"},
    {217, "CUDA_ERROR_PEER_ACCESS_UNSUPPORTED", "peer access is not supported between these two devices"},
    {218, "CUDA_ERROR_INVALID_PTX", "a PTX compilation failed"},
    {220, "CUDA_ERROR_NVLINK_UNCORRECTABLE", "uncorrectable NVLink error detected during the execution"},
    {221, "CUDA_ERROR_JIT_COMPILER_NOT_FOUND", "PTX compiler not found"},
    {222, "CUDA_ERROR_UNSUPPORTED_PTX_VERSION", "PTX was compiled with an unsupported toolchain"},
    {302, "CUDA_ERROR_SHARED_OBJECT_SYMBOL_NOT_FOUND", "shared object symbol not found"},
    {304, "CUDA_ERROR_OPERATING_SYSTEM", "OS call failed"},
    {400, "CUDA_ERROR_INVALID_HANDLE", "invalid resource handle"},
    {401, "CUDA_ERROR_ILLEGAL_STATE", "the operation cannot be performed in the present state"},
    {500, "CUDA_ERROR_NOT_FOUND", "named symbol not found"},
    {600, "CUDA_ERROR_NOT_READY", "device not ready"},
    {700, "CUDA_ERROR_ILLEGAL_ADDRESS", "an illegal memory access was encountered"},
    {701, "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES", "too many resources requested for launch"},
    {702, "CUDA_ERROR_LAUNCH_TIMEOUT", "the launch timed out and was terminated"},
    {704, "CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED", "peer access is already enabled"},
    {705, "CUDA_ERROR_PEER_ACCESS_NOT_ENABLED", "peer access has not been enabled"},
    {709, "CUDA_ERROR_CONTEXT_IS_DESTROYED", "context is destroyed"},
    {710, "CUDA_ERROR_ASSERT", "device-side assert triggered"},
    {716, "CUDA_ERROR_MISALIGNED_ADDRESS", "misaligned address"},
    {719, "CUDA_ERROR_LAUNCH_FAILED", "unspecified launch failure"},
    {800, "CUDA_ERROR_NOT_PERMITTED", "operation not permitted"},
    {801, "CUDA_ERROR_NOT_SUPPORTED", "operation not supported"},
    {802, "CUDA_ERROR_SYSTEM_NOT_READY", "system not yet initialized"},
    {803, "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH", "system has unsupported display driver / cuda driver combination"},
    {804, "CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE", "forward compatibility was attempted on non supported HW"},
    {999, "CUDA_ERROR_UNKNOWN", "unknown error"},
};

const Name *named(int code) {
    for (const Name &name : NAMES) {
        if (name.code == code) return &name;
    }
    return nullptr;
}

// Attributes by CUDA's numbers; what is not listed is zero.
int attribute(int which, int device) {
    const Settings &s = settings();
    switch (which) {
    case 1: return 1024;                      // threads per block
    case 2: case 3: return 1024;              // block x, y
    case 4: return 64;                        // block z
    case 5: return 0x7fffffff;                // grid x
    case 6: case 7: return 65535;             // grid y, z
    case 8: return 48 << 10;                  // shared memory per block
    case 9: return 64 << 10;                  // constant memory
    case 10: return 32;                       // warp
    case 12: return 65536;                    // registers per block
    case 13: return 1410000;                  // clock, kHz
    case 14: return 512;                      // texture alignment
    case 16: return 8;                        // multiprocessors
    case 19: case 31: case 41: case 78: return 1; // mapped host memory, concurrency, one address space, priorities
    case 33: return (int)device_bus(machine_device(device));
    case 36: return 1215000;                  // memory clock, kHz
    case 37: return 5120;                     // memory bus, bits
    case 38: return 4 << 20;                  // L2
    case 39: return 2048;                     // threads per multiprocessor
    case 40: return 2;                        // copy engines
    case 75: return s.major;
    case 76: return s.minor;
    case 81: return 164 << 10;                // shared memory per multiprocessor
    case 82: return 65536;
    case 97: return 163 << 10;                // shared memory per block, opted in
    case 106: return 32;                      // blocks per multiprocessor
    case 111: return 1 << 10;                 // reserved shared memory per block
    case 115: return 1;                       // memory pools
    case 119: return 1;
    default: return 0;
    }
}

constexpr int LAST_ATTRIBUTE = 143;

// Between host and device. `captured` stands in for the source where it was staged at the call.
void add_copy(Lock &lock, const StreamPtr &stream, const char *name, void *to, const void *from, size_t bytes,
             bool check_to, bool check_from, std::shared_ptr<std::vector<uint8_t>> captured = nullptr) {
    Operation operation;
    operation.name = name;
    operation.detail = "bytes=" + std::to_string(bytes);
    int device = stream->context->device;
    operation.run = [=]() -> int {
        int code = check_to ? check_operand(name, device, to, bytes) : SUCCESS;
        if (!code && check_from) code = check_operand(name, device, from, bytes);
        if (!code) memmove(to, captured ? captured->data() : from, bytes);
        return code;
    };
    enqueue(lock, stream, std::move(operation));
}

// Between allocations on any devices: the copy engine finds its way by itself, peer access or not.
void add_device_copy(Lock &lock, const StreamPtr &stream, const char *name, CUdeviceptr to, CUdeviceptr from,
                     size_t bytes) {
    int to_device = find_region(lock, pointer(to))->device, from_device = find_region(lock, pointer(from))->device;
    Operation operation;
    operation.name = name;
    operation.detail = "bytes=" + std::to_string(bytes);
    operation.run = [=]() -> int {
        if (int code = check_operand(name, to_device, pointer(to), bytes)) return code;
        if (int code = check_operand(name, from_device, pointer(from), bytes)) return code;
        memmove(reinterpret_cast<void *>(to), pointer(from), bytes);
        return SUCCESS;
    };
    enqueue(lock, stream, std::move(operation));
}

int add_fill(const char *name, CUdeviceptr to, size_t count, size_t width, unsigned value, CUstream handle) {
    Lock lock(state().mutex);
    ContextPtr context;
    StreamPtr stream;
    if (int code = stream_for(lock, handle, &context, &stream)) return code;
    if (count == 0) return SUCCESS;
    if (to % width || count > SIZE_MAX / width) return INVALID_VALUE;
    size_t bytes = count * width;
    if (int code = check_argument(lock, name, pointer(to), bytes)) return code;
    Operation operation;
    operation.name = name;
    operation.detail = "bytes=" + std::to_string(bytes);
    int device = context->device;
    operation.run = [=]() -> int {
        void *at = reinterpret_cast<void *>(to);
        if (int code = check_operand(name, device, at, bytes)) return code;
        if (width == 1) {
            memset(at, (int)value, bytes);
        } else {
            for (size_t i = 0; i < count; i++) memcpy((char *)at + 4 * i, &value, 4);
        }
        return SUCCESS;
    };
    enqueue(lock, stream, std::move(operation));
    return SUCCESS;
}

// A copy of the image's bytes: its length follows from its own headers, as it does for a real one. Reads that run
// off mapped memory fail instead of crashing.
bool read_memory(const void *from, void *to, size_t bytes) {
    struct iovec here = {to, bytes}, there = {const_cast<void *>(from), bytes};
    return process_vm_readv(getpid(), &here, 1, &there, 1, 0) == (ssize_t)bytes;
}

int open_image(const void *image, void **library) {
    Elf64_Ehdr header;
    if (!read_memory(image, &header, sizeof header) || memcmp(header.e_ident, ELFMAG, SELFMAG) != 0 ||
        header.e_ident[EI_CLASS] != ELFCLASS64 || header.e_shentsize != sizeof(Elf64_Shdr)) {
        return INVALID_IMAGE;
    }
    size_t bytes = header.e_shoff + size_t(header.e_shnum) * header.e_shentsize;
    if (bytes > (size_t(1) << 30)) return INVALID_IMAGE;
    std::vector<uint8_t> copy(bytes);
    ImageTrailer trailer;
    if (!read_memory(image, copy.data(), bytes) ||
        !read_memory(static_cast<const char *>(image) + bytes, &trailer, sizeof trailer) ||
        memcmp(trailer.magic, ImageTrailer::MAGIC, sizeof trailer.magic) != 0 ||
        trailer.digest != image_digest(copy.data(), bytes)) {
        return INVALID_IMAGE;
    }
    // A cubin runs on devices of its own major version from its minor version on, PTX on all from its version on.
    const Settings &s = settings();
    int device = 10 * s.major + s.minor;
    if (trailer.architecture > device || (trailer.binary && trailer.architecture / 10 != s.major)) {
        say("the image is for compute capability %d.%d, the device has %d.%d", trailer.architecture / 10,
            trailer.architecture % 10, s.major, s.minor);
        return NO_BINARY_FOR_GPU;
    }
    int file = memfd_create("software-gpu-module", MFD_CLOEXEC);
    if (file < 0) return OPERATING_SYSTEM;
    for (size_t done = 0; done < bytes;) {
        ssize_t n = write(file, copy.data() + done, bytes - done);
        if (n <= 0) {
            close(file);
            return OPERATING_SYSTEM;
        }
        done += (size_t)n;
    }
    char path[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d", file);
    *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    // dlopen knows what it has loaded by name: the file stays open, so that no other image gets its number.
    if (*library) return SUCCESS;
    say("module: %s", dlerror());
    close(file);
    return INVALID_IMAGE;
}

} // namespace

extern "C" {

// --- The driver as a whole ---------------------------------------------------------------------------------------

CUresult cuInit(unsigned flags) {
    ENTRY(CUresult);
    if (flags) return INVALID_VALUE;
    Lock lock(state().mutex);
    if (state().devices.empty()) return NO_DEVICE;
    state().initialised = true;
    while (handles().pools.size() < state().devices.size()) handles().pools.push_back(new_handle(lock));
    return SUCCESS;
}

CUresult cuDriverGetVersion(int *version) {
    ENTRY(CUresult);
    if (!version) return INVALID_VALUE;
    *version = VERSION;
    return SUCCESS;
}

CUresult cuGetErrorName(CUresult error, const char **name) {
    const Name *found = named(error);
    *name = found ? found->name : nullptr;
    return found ? SUCCESS : INVALID_VALUE;
}

CUresult cuGetErrorString(CUresult error, const char **text) {
    const Name *found = named(error);
    *text = found ? found->text : nullptr;
    return found ? SUCCESS : INVALID_VALUE;
}

// --- Devices -----------------------------------------------------------------------------------------------------

CUresult cuDeviceGetCount(int *count) {
    ENTRY(CUresult);
    Lock lock(state().mutex);
    if (!state().initialised) return NOT_INITIALIZED;
    *count = (int)state().devices.size();
    return SUCCESS;
}

CUresult cuDeviceGet(CUdevice *device, int ordinal) {
    ENTRY(CUresult);
    Lock lock(state().mutex);
    if (!state().initialised) return NOT_INITIALIZED;
    if (!is_device(ordinal)) return INVALID_DEVICE;
    *device = ordinal;
    return SUCCESS;
}

CUresult cuDeviceGetName(char *name, int length, CUdevice device) {
    ENTRY(CUresult);
    if (!is_device(device)) return INVALID_DEVICE;
    if (!name || length < 1) return INVALID_VALUE;
    snprintf(name, (size_t)length, "Software GPU");
    return SUCCESS;
}

CUresult cuDeviceGetUuid_v2(CUuuid *uuid, CUdevice device) {
    ENTRY(CUresult);
    if (!is_device(device)) return INVALID_DEVICE;
    device_uuid(machine_device(device), reinterpret_cast<uint8_t *>(uuid->bytes));
    return SUCCESS;
}

CUresult cuDeviceTotalMem_v2(size_t *bytes, CUdevice device) {
    ENTRY(CUresult);
    if (!is_device(device)) return INVALID_DEVICE;
    *bytes = settings().memory;
    return SUCCESS;
}

CUresult cuDeviceGetAttribute(int *value, int which, CUdevice device) {
    ENTRY(CUresult);
    if (!is_device(device)) return INVALID_DEVICE;
    if (!value || which < 1 || which > LAST_ATTRIBUTE) return INVALID_VALUE;
    *value = attribute(which, device);
    return SUCCESS;
}

CUresult cuDeviceCanAccessPeer(int *can, CUdevice device, CUdevice peer) {
    ENTRY(CUresult);
    if (!is_device(device) || !is_device(peer)) return INVALID_DEVICE;
    *can = device != peer && !settings().no_peer;
    return SUCCESS;
}

// --- Contexts ----------------------------------------------------------------------------------------------------

CUresult cuDevicePrimaryCtxRetain(CUcontext *handle, CUdevice device) {
    ENTRY(CUresult);
    Lock lock(state().mutex);
    if (!state().initialised) return NOT_INITIALIZED;
    if (!is_device(device)) return INVALID_DEVICE;
    ContextPtr context;
    if (int code = retain_context(lock, device, &context)) return code;
    *handle = context->handle;
    return SUCCESS;
}

CUresult cuDevicePrimaryCtxRelease_v2(CUdevice device) {
    ENTRY(CUresult);
    Lock lock(state().mutex);
    if (!state().initialised) return NOT_INITIALIZED;
    if (!is_device(device)) return INVALID_DEVICE;
    return release_context(lock, device);
}

CUresult cuCtxSetCurrent(CUcontext handle) {
    ENTRY(CUresult);
    Lock lock(state().mutex);
    if (!state().initialised) return NOT_INITIALIZED;
    if (!handle) {
        set_current(nullptr);
        return SUCCESS;
    }
    ContextPtr context = find(state().contexts, handle);
    if (!context) return INVALID_CONTEXT;
    if (context->dead) return CONTEXT_IS_DESTROYED;
    set_current(context);
    return SUCCESS;
}

CUresult cuCtxGetCurrent(CUcontext *handle) {
    ENTRY(CUresult);
    Lock lock(state().mutex);
    if (!state().initialised) return NOT_INITIALIZED;
    ContextPtr context = current();
    *handle = context ? context->handle : nullptr;
    return SUCCESS;
}

CUresult cuCtxSynchronize(void) {
    ENTRY(CUresult);
    Lock lock(state().mutex);
    ContextPtr context;
    if (int code = usable(lock, &context)) return code;
    synchronise_context(lock, context);
    return context->error;
}

CUresult cuCtxEnablePeerAccess(CUcontext peer, unsigned flags) {
    ENTRY(CUresult);
    Lock lock(state().mutex);
    ContextPtr context;
    if (int code = usable(lock, &context)) return code;
    ContextPtr other = find(state().contexts, peer);
    if (!other || other->dead) return INVALID_CONTEXT;
    if (flags) return INVALID_VALUE;
    if (other == context) return INVALID_DEVICE;
    if (settings().no_peer) return PEER_ACCESS_UNSUPPORTED;
    return context->peers.insert(other->device).second ? SUCCESS : PEER_ACCESS_ALREADY_ENABLED;
}

CUresult cuMemGetInfo_v2(size_t *free, size_t *total) {
    ENTRY(CUresult);
    Lock lock(state().mutex);
    ContextPtr context;
    if (int code = usable(lock, &context)) return code;
    size_t taken = state().devices[(size_t)context->device].taken();
    *total = settings().memory;
    *free = taken < *total ? *total - taken : 0;
    return SUCCESS;
}

// --- Streams -----------------------------------------------------------------------------------------------------

static CUresult create_stream(CUstream *handle, unsigned flags) {
    Lock lock(state().mutex);
    ContextPtr context;
    if (int code = usable(lock, &context)) return code;
    if (!handle || flags > 1) return INVALID_VALUE;
    *handle = new_stream(lock, context)->handle;
    return SUCCESS;
}

CUresult cuStreamCreateWithPriority(CUstream *stream, unsigned flags, int) {
    ENTRY(CUresult);
    return create_stream(stream, flags);
}

CUresult cuStreamCreate(CUstream *stream, unsigned flags) {
    ENTRY(CUresult);
    return create_stream(stream, flags);
}

CUresult cuStreamDestroy_v2(CUstream handle) {
    ENTRY(CUresult);
    Lock lock(state().mutex);
    StreamPtr stream = find(state().streams, handle);
    if (!stream) return INVALID_HANDLE;
    ContextPtr context = stream->context;
    if (stream == context->null_stream) return INVALID_HANDLE;
    close_stream(lock, stream); // what it holds still runs
    return context->error;
}

CUresult cuStreamSynchronize(CUstream handle) {
    ENTRY(CUresult);
    Lock lock(state().mutex);
    StreamPtr stream;
    if (int code = any_stream(lock, handle, &stream)) return code;
    synchronise_stream(lock, stream);
    return stream->context->error;
}

CUresult cuStreamQuery(CUstream handle) {
    ENTRY(CUresult);
    Lock lock(state().mutex);
    StreamPtr stream;
    if (int code = any_stream(lock, handle, &stream)) return code;
    uint64_t target = stream->submitted;
    release(lock, stream, target);
    if (!poll(lock, [&] { return stream->completed >= target; })) return NOT_READY;
    return stream->context->error;
}

CUresult cuStreamWaitEvent(CUstream handle, CUevent event_handle, unsigned flags) {
    ENTRY(CUresult);
    Lock lock(state().mutex);
    StreamPtr stream;
    if (int code = any_stream(lock, handle, &stream)) return code;
    std::shared_ptr<Event> event = find(handles().events, event_handle);
    if (!event) return INVALID_HANDLE;
    if (flags) return INVALID_VALUE;
    int call = ++handles().waits;
    if (settings().ignored_wait == -1 || settings().ignored_wait == call) return SUCCESS;
    if (!event->latest) return SUCCESS; // never recorded: nothing to wait for
    Operation operation;
    operation.name = "cuStreamWaitEvent";
    if (!event->latest->done) {
        operation.detail = "for_stream=" + std::to_string(event->latest->stream->number) +
                           " for_operation=" + std::to_string(event->latest->index);
    }
    operation.after.push_back(event->latest);
    enqueue(lock, stream, std::move(operation));
    return SUCCESS;
}

// --- Events ------------------------------------------------------------------------------------------------------

CUresult cuEventCreate(CUevent *handle, unsigned flags) {
    ENTRY(CUresult);
    Lock lock(state().mutex);
    ContextPtr context;
    if (int code = usable(lock, &context)) return code;
    if (!handle || flags > 3) return INVALID_VALUE;
    auto event = std::make_shared<Event>();
    event->context = context;
    event->flags = flags;
    *handle = new_handle(lock);
    handles().events[*handle] = event;
    return SUCCESS;
}

CUresult cuEventDestroy_v2(CUevent handle) {
    ENTRY(CUresult);
    Lock lock(state().mutex);
    std::shared_ptr<Event> event = find(handles().events, handle);
    if (!event) return INVALID_HANDLE;
    handles().events.erase(handle);
    return event->context->error;
}

CUresult cuEventRecord(CUevent handle, CUstream stream_handle) {
    ENTRY(CUresult);
    Lock lock(state().mutex);
    StreamPtr stream;
    if (int code = any_stream(lock, stream_handle, &stream)) return code;
    std::shared_ptr<Event> event = find(handles().events, handle);
    if (!event || event->context != stream->context) return INVALID_HANDLE;
    Operation operation;
    operation.name = "cuEventRecord";
    event->latest = enqueue(lock, stream, std::move(operation));
    return SUCCESS;
}

CUresult cuEventSynchronize(CUevent handle) {
    ENTRY(CUresult);
    Lock lock(state().mutex);
    std::shared_ptr<Event> event = find(handles().events, handle);
    if (!event) return INVALID_HANDLE;
    RecordPtr record = event->latest;
    if (record) {
        release(lock, record);
        wait_until(lock, [&] { return record->done; });
    }
    return event->context->error;
}

CUresult cuEventQuery(CUevent handle) {
    ENTRY(CUresult);
    Lock lock(state().mutex);
    std::shared_ptr<Event> event = find(handles().events, handle);
    if (!event) return INVALID_HANDLE;
    RecordPtr record = event->latest;
    if (record) {
        release(lock, record);
        if (!poll(lock, [&] { return record->done; })) return NOT_READY;
    }
    return event->context->error;
}

static CUresult elapsed(float *milliseconds, CUevent start_handle, CUevent end_handle) {
    Lock lock(state().mutex);
    std::shared_ptr<Event> start = find(handles().events, start_handle), end = find(handles().events, end_handle);
    if (!start || !end || start->context != end->context || !start->latest || !end->latest ||
        (start->flags | end->flags) & EVENT_DISABLE_TIMING) {
        return INVALID_HANDLE;
    }
    if (start->context->error) return start->context->error;
    if (!start->latest->done || !end->latest->done) return NOT_READY;
    *milliseconds = std::chrono::duration<float, std::milli>(end->latest->time - start->latest->time).count();
    return SUCCESS;
}

CUresult cuEventElapsedTime_v2(float *milliseconds, CUevent start, CUevent end) {
    ENTRY(CUresult);
    return elapsed(milliseconds, start, end);
}

CUresult cuEventElapsedTime(float *milliseconds, CUevent start, CUevent end) {
    ENTRY(CUresult);
    return elapsed(milliseconds, start, end);
}

// --- Memory ------------------------------------------------------------------------------------------------------

CUresult cuDeviceGetDefaultMemPool(CUmemoryPool *pool, CUdevice device) {
    ENTRY(CUresult);
    Lock lock(state().mutex);
    if (!state().initialised) return NOT_INITIALIZED;
    if (!is_device(device)) return INVALID_DEVICE;
    *pool = handles().pools[(size_t)device];
    return SUCCESS;
}

static Device *pool_device(Lock &, CUmemoryPool pool) {
    auto &pools = handles().pools;
    for (size_t i = 0; i < pools.size(); i++) {
        if (pools[i] == pool) return &state().devices[i];
    }
    return nullptr;
}

CUresult cuMemPoolSetAttribute(CUmemoryPool pool, int which, void *value) {
    ENTRY(CUresult);
    Lock lock(state().mutex);
    Device *device = pool_device(lock, pool);
    if (!device || !value) return INVALID_VALUE;
    uint64_t wide = 0;
    if (which >= 4) memcpy(&wide, value, sizeof wide);
    switch (which) {
    case 1: case 2: case 3: memcpy(&device->reuse[which], value, sizeof(int)); return SUCCESS;
    case 4: device->threshold = wide; return SUCCESS;
    case 6: // the two high water marks can be set to zero only, and then stand at the present
        if (wide) return INVALID_VALUE;
        device->reserved_high = device->reserved;
        return SUCCESS;
    case 8:
        if (wide) return INVALID_VALUE;
        device->used_high = device->used;
        return SUCCESS;
    default: return INVALID_VALUE;
    }
}

CUresult cuMemPoolGetAttribute(CUmemoryPool pool, int which, void *value) {
    ENTRY(CUresult);
    Lock lock(state().mutex);
    Device *device = pool_device(lock, pool);
    if (!device || !value) return INVALID_VALUE;
    uint64_t wide = 0;
    switch (which) {
    case 1: case 2: case 3: memcpy(value, &device->reuse[which], sizeof(int)); return SUCCESS;
    case 4: wide = device->threshold; break;
    case 5: wide = device->reserved; break;
    case 6: wide = device->reserved_high; break;
    case 7: wide = device->used; break;
    case 8: wide = device->used_high; break;
    default: return INVALID_VALUE;
    }
    memcpy(value, &wide, sizeof wide);
    return SUCCESS;
}

CUresult cuMemPoolTrimTo(CUmemoryPool pool, size_t keep) {
    ENTRY(CUresult);
    Lock lock(state().mutex);
    Device *device = pool_device(lock, pool);
    if (!device) return INVALID_VALUE;
    trim(*device, keep);
    return SUCCESS;
}

CUresult cuMemAllocAsync(CUdeviceptr *address, size_t bytes, CUstream handle) {
    ENTRY(CUresult);
    Lock lock(state().mutex);
    ContextPtr context;
    StreamPtr stream;
    if (int code = stream_for(lock, handle, &context, &stream)) return code;
    if (!address || bytes == 0) return INVALID_VALUE;
    int call = ++handles().allocations;
    bool shortened = settings().short_allocation == -1 || settings().short_allocation == call;
    RegionPtr region;
    if (int code = allocate(lock, context, bytes, true, shortened ? 4 : 0, &region)) return code;
    Operation operation;
    operation.name = "cuMemAllocAsync";
    operation.detail = "bytes=" + std::to_string(bytes);
    operation.run = [region]() -> int {
        bring_to_life(region);
        return SUCCESS;
    };
    enqueue(lock, stream, std::move(operation));
    *address = region->base;
    return SUCCESS;
}

CUresult cuMemFreeAsync(CUdeviceptr address, CUstream handle) {
    ENTRY(CUresult);
    Lock lock(state().mutex);
    ContextPtr context;
    StreamPtr stream;
    if (int code = stream_for(lock, handle, &context, &stream)) return code;
    RegionPtr region = find_region(lock, pointer(address));
    if (!region || region->device < 0 || region->base != address || region->freeing) {
        say("cuMemFreeAsync: %#llx is not the start of an allocation, or was freed before", address);
        return INVALID_VALUE;
    }
    region->freeing = true;
    uncharge(lock, region);
    Operation operation;
    operation.name = "cuMemFreeAsync";
    operation.detail = "bytes=" + std::to_string(region->bytes);
    operation.run = [region]() -> int { return retire(region, "cuMemFreeAsync"); };
    enqueue(lock, stream, std::move(operation));
    return SUCCESS;
}

CUresult cuMemAlloc_v2(CUdeviceptr *address, size_t bytes) {
    ENTRY(CUresult);
    Lock lock(state().mutex);
    ContextPtr context;
    if (int code = usable(lock, &context)) return code;
    if (!address || bytes == 0) return INVALID_VALUE;
    RegionPtr region;
    if (int code = allocate(lock, context, bytes, false, 0, &region)) return code;
    lock.unlock();
    bring_to_life(region);
    *address = region->base;
    return SUCCESS;
}

CUresult cuMemFree_v2(CUdeviceptr address) {
    ENTRY(CUresult);
    Lock lock(state().mutex);
    ContextPtr context;
    if (int code = usable(lock, &context)) return code;
    if (!address) return SUCCESS;
    RegionPtr region = find_region(lock, pointer(address));
    if (!region || region->device < 0 || region->base != address || region->freeing) {
        say("cuMemFree: %#llx is not the start of an allocation, or was freed before", address);
        return INVALID_VALUE;
    }
    region->freeing = true;
    ContextPtr owner = state().devices[(size_t)region->device].context;
    if (owner) synchronise_context(lock, owner); // as the driver does
    uncharge(lock, region);
    lock.unlock();
    int code = retire(region, "cuMemFree");
    lock.lock();
    if (code && !context->error) context->error = code;
    return context->error;
}

CUresult cuMemAllocHost_v2(void **address, size_t bytes) {
    ENTRY(CUresult);
    Lock lock(state().mutex);
    ContextPtr context;
    if (int code = usable(lock, &context)) return code;
    if (!address || bytes == 0) return INVALID_VALUE;
    RegionPtr region;
    if (int code = allocate_host(lock, bytes, &region)) return code;
    lock.unlock();
    bring_to_life(region);
    *address = reinterpret_cast<void *>(region->base);
    return SUCCESS;
}

CUresult cuMemFreeHost(void *address) {
    ENTRY(CUresult);
    Lock lock(state().mutex);
    ContextPtr context;
    if (int code = usable(lock, &context)) return code;
    RegionPtr region = find_region(lock, address);
    if (!region || region->device >= 0 || region->base != (uintptr_t)address || region->freeing) return INVALID_VALUE;
    region->freeing = true;
    lock.unlock();
    return retire(region, "cuMemFreeHost");
}

CUresult cuMemcpyHtoDAsync_v2(CUdeviceptr to, const void *from, size_t bytes, CUstream handle) {
    ENTRY(CUresult);
    const char *name = "cuMemcpyHtoDAsync";
    Lock lock(state().mutex);
    ContextPtr context;
    StreamPtr stream;
    if (int code = stream_for(lock, handle, &context, &stream)) return code;
    if (bytes == 0) return SUCCESS;
    if (int code = check_argument(lock, name, pointer(to), bytes)) return code;
    bool locked = false;
    if (int code = host_range(lock, name, from, bytes, &locked)) return code;
    std::shared_ptr<std::vector<uint8_t>> captured;
    if (!locked) { // pageable memory is staged before the call returns
        auto at = static_cast<const uint8_t *>(from);
        captured = std::make_shared<std::vector<uint8_t>>(at, at + bytes);
    }
    add_copy(lock, stream, name, reinterpret_cast<void *>(to), from, bytes, true, locked, captured);
    return SUCCESS;
}

CUresult cuMemcpyDtoHAsync_v2(void *to, CUdeviceptr from, size_t bytes, CUstream handle) {
    ENTRY(CUresult);
    const char *name = "cuMemcpyDtoHAsync";
    Lock lock(state().mutex);
    ContextPtr context;
    StreamPtr stream;
    if (int code = stream_for(lock, handle, &context, &stream)) return code;
    if (bytes == 0) return SUCCESS;
    if (int code = check_argument(lock, name, pointer(from), bytes)) return code;
    bool locked = false;
    if (int code = host_range(lock, name, to, bytes, &locked)) return code;
    add_copy(lock, stream, name, to, pointer(from), bytes, locked, true);
    return SUCCESS;
}

CUresult cuMemcpyDtoDAsync_v2(CUdeviceptr to, CUdeviceptr from, size_t bytes, CUstream handle) {
    ENTRY(CUresult);
    const char *name = "cuMemcpyDtoDAsync";
    Lock lock(state().mutex);
    ContextPtr context;
    StreamPtr stream;
    if (int code = stream_for(lock, handle, &context, &stream)) return code;
    if (bytes == 0) return SUCCESS;
    if (int code = check_argument(lock, name, pointer(to), bytes)) return code;
    if (int code = check_argument(lock, name, pointer(from), bytes)) return code;
    add_device_copy(lock, stream, name, to, from, bytes);
    return SUCCESS;
}

CUresult cuMemcpyPeerAsync(CUdeviceptr to, CUcontext to_context, CUdeviceptr from, CUcontext from_context,
                           size_t bytes, CUstream handle) {
    ENTRY(CUresult);
    const char *name = "cuMemcpyPeerAsync";
    Lock lock(state().mutex);
    ContextPtr context;
    StreamPtr stream;
    if (int code = stream_for(lock, handle, &context, &stream)) return code;
    ContextPtr target = find(state().contexts, to_context), source = find(state().contexts, from_context);
    if (!target || !source || target->dead || source->dead) return INVALID_CONTEXT;
    if (bytes == 0) return SUCCESS;
    if (int code = check_argument(lock, name, pointer(to), bytes)) return code;
    if (int code = check_argument(lock, name, pointer(from), bytes)) return code;
    if (find_region(lock, pointer(to))->device != target->device ||
        find_region(lock, pointer(from))->device != source->device) {
        say("%s: an address is not of the context that it is said to be of", name);
        return INVALID_VALUE;
    }
    add_device_copy(lock, stream, name, to, from, bytes);
    return SUCCESS;
}

CUresult cuMemsetD8Async(CUdeviceptr to, unsigned char value, size_t count, CUstream stream) {
    ENTRY(CUresult);
    return add_fill("cuMemsetD8Async", to, count, 1, value, stream);
}

CUresult cuMemsetD32Async(CUdeviceptr to, unsigned value, size_t count, CUstream stream) {
    ENTRY(CUresult);
    return add_fill("cuMemsetD32Async", to, count, 4, value, stream);
}

// --- Modules and kernels -----------------------------------------------------------------------------------------

static CUresult load_module(CUmodule *handle, const void *image) {
    Lock lock(state().mutex);
    ContextPtr context;
    if (int code = usable(lock, &context)) return code;
    if (!handle || !image) return INVALID_VALUE;
    lock.unlock();
    auto module = std::make_shared<Module>();
    module->context = context;
    if (int code = open_image(image, &module->library)) return code;
    lock.lock();
    *handle = new_handle(lock);
    handles().modules[*handle] = module;
    return SUCCESS;
}

CUresult cuModuleLoadDataEx(CUmodule *module, const void *image, unsigned, int *, void **) {
    ENTRY(CUresult);
    return load_module(module, image);
}

CUresult cuModuleLoadData(CUmodule *module, const void *image) {
    ENTRY(CUresult);
    return load_module(module, image);
}

CUresult cuModuleUnload(CUmodule handle) {
    ENTRY(CUresult);
    Lock lock(state().mutex);
    std::shared_ptr<Module> module = find(handles().modules, handle);
    if (!module) return INVALID_HANDLE;
    handles().modules.erase(handle);
    auto &functions = handles().functions;
    for (auto at = functions.begin(); at != functions.end();) {
        at = at->second->module == module ? functions.erase(at) : std::next(at);
    }
    return module->context->error;
}

CUresult cuModuleGetFunction(CUfunction *handle, CUmodule module_handle, const char *name) {
    ENTRY(CUresult);
    Lock lock(state().mutex);
    ContextPtr context;
    if (int code = usable(lock, &context)) return code;
    std::shared_ptr<Module> module = find(handles().modules, module_handle);
    if (!module) return INVALID_HANDLE;
    if (!handle || !name) return INVALID_VALUE;
    auto entry = static_cast<const Entry *>(dlsym(module->library, ("software_gpu_entry_" + std::string(name)).c_str()));
    if (!entry) return NOT_FOUND;
    for (auto &known : handles().functions) { // asking again gives the same handle
        if (known.second->entry == entry) {
            *handle = known.first;
            return SUCCESS;
        }
    }
    auto function = std::make_shared<Function>();
    function->context = module->context;
    function->module = module;
    function->name = name;
    function->entry = entry;
    *handle = new_handle(lock);
    handles().functions[*handle] = function;
    return SUCCESS;
}

CUresult cuFuncSetAttribute(CUfunction handle, int which, int value) {
    ENTRY(CUresult);
    Lock lock(state().mutex);
    if (!find(handles().functions, handle)) return INVALID_HANDLE;
    if (which == 8) return value >= 0 && value <= attribute(97, 0) ? SUCCESS : INVALID_VALUE;
    if (which == 9) return value >= -1 && value <= 100 ? SUCCESS : INVALID_VALUE;
    return INVALID_VALUE;
}

CUresult cuFuncGetAttribute(int *value, int which, CUfunction handle) {
    ENTRY(CUresult);
    Lock lock(state().mutex);
    if (!find(handles().functions, handle)) return INVALID_HANDLE;
    if (!value || which < 0 || which > 15) return INVALID_VALUE;
    int version = 10 * settings().major + settings().minor;
    *value = which == 0 ? 1024 : which == 4 ? 32 : which == 5 || which == 6 ? version : which == 9 ? -1 : 0;
    return SUCCESS;
}

CUresult cuLaunchKernel(CUfunction handle, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                        unsigned block_y, unsigned block_z, unsigned shared, CUstream stream_handle, void **arguments,
                        void **extra) {
    ENTRY(CUresult);
    Lock lock(state().mutex);
    ContextPtr context;
    StreamPtr stream;
    if (int code = stream_for(lock, stream_handle, &context, &stream)) return code;
    std::shared_ptr<Function> function = find(handles().functions, handle);
    if (!function || function->context != context) return INVALID_HANDLE;
    const char *name = function->name.c_str();
    if (!grid_x || grid_x > 0x7fffffff || !grid_y || grid_y > 65535 || !grid_z || grid_z > 65535 || !block_x ||
        block_x > 1024 || !block_y || block_y > 1024 || !block_z || block_z > 64 ||
        uint64_t(block_x) * block_y * block_z > 1024) {
        say("%s: a grid of %u x %u x %u blocks of %u x %u x %u threads cannot be launched", name, grid_x, grid_y, grid_z,
            block_x, block_y, block_z);
        return INVALID_VALUE;
    }
    if (shared || extra) {
        say("%s: the software GPU knows neither dynamic shared memory nor packed arguments", name);
        return NOT_SUPPORTED;
    }
    const Entry *entry = function->entry;
    if (entry->parameters && !arguments) return INVALID_VALUE;
    // The arguments' bytes belong to the launch from here on. Each gets 16 aligned bytes or a multiple.
    struct Arguments {
        std::vector<std::max_align_t> bytes;
        std::vector<void *> at;
    };
    auto copy = std::make_shared<Arguments>();
    constexpr size_t UNIT = sizeof(std::max_align_t);
    size_t units = 0;
    for (int i = 0; i < entry->parameters; i++) units += (entry->parameter_sizes[i] + UNIT - 1) / UNIT;
    copy->bytes.resize(units);
    units = 0;
    for (int i = 0; i < entry->parameters; i++) {
        if (!arguments[i]) return INVALID_VALUE;
        memcpy(&copy->bytes[units], arguments[i], entry->parameter_sizes[i]);
        copy->at.push_back(&copy->bytes[units]);
        units += (entry->parameter_sizes[i] + UNIT - 1) / UNIT;
    }
    if (function->name == settings().index_bug) grid_x++;
    Operation operation;
    operation.name = function->name;
    char text[96];
    snprintf(text, sizeof text, "grid=%ux%ux%u block=%ux%ux%u", grid_x, grid_y, grid_z, block_x, block_y, block_z);
    operation.detail = text;
    operation.injected = fault(name);
    operation.position =
        reinterpret_cast<void (*)(unsigned[3], unsigned[3])>(dlsym(function->module->library, "software_gpu_position"));
    operation.run = [=]() -> int {
        const unsigned grid[3] = {grid_x, grid_y, grid_z}, block[3] = {block_x, block_y, block_z};
        entry->run(grid, block, copy->at.data());
        return SUCCESS;
    };
    enqueue(lock, stream, std::move(operation));
    return SUCCESS;
}

} // extern "C"
