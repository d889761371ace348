// The software GPU: what its five libraries share.
//
// None of this is a measurement of anything: it is a stand-in for a CUDA machine, built by the tests, with the
// documented behaviour of the entry points which our code calls and with far less patience for mistakes than
// hardware has. The state lives once per process in libsoftware-gpu.so (device.cpp); libcuda, libnvrtc,
// libcublasLt, libnccl and libnvidia-ml link to it.
//
// The model in short:
//  * Each stream is a queue with a worker thread. Enqueued work waits until something forces it (a synchronise,
//    a query, or a stream that waits for it), so that a forgotten wait shows as stale or poisoned data instead of
//    working by luck.
//  * Each allocation has pages of its own between two unreadable ones, is filled with NaN patterns, and comes to
//    life and dies in stream order.
//  * A bad access inside an operation ends that operation and breaks the context for good, as on hardware.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <vector>

namespace software_gpu {

// The CUDA result codes which the model itself produces (names as in the driver API, without the prefix).
enum : int {
    SUCCESS = 0,
    INVALID_VALUE = 1,
    OUT_OF_MEMORY = 2,
    NOT_INITIALIZED = 3,
    NO_DEVICE = 100,
    INVALID_DEVICE = 101,
    INVALID_IMAGE = 200,
    INVALID_CONTEXT = 201,
    NO_BINARY_FOR_GPU = 209,
    PEER_ACCESS_UNSUPPORTED = 217,
    OPERATING_SYSTEM = 304,
    INVALID_HANDLE = 400,
    NOT_FOUND = 500,
    NOT_READY = 600,
    ILLEGAL_ADDRESS = 700,
    PEER_ACCESS_ALREADY_ENABLED = 704,
    CONTEXT_IS_DESTROYED = 709,
    LAUNCH_FAILED = 719,
    NOT_SUPPORTED = 801,
};

using Clock = std::chrono::steady_clock;
using Lock = std::unique_lock<std::mutex>;

// ---------------------------------------------------------------------------------------------------------------
// Settings: environment variables SOFTWARE_GPU_*, read once.

struct Settings {
    int machine_devices = 1;    // in the machine
    std::vector<int> visible;   // after CUDA_VISIBLE_DEVICES: machine numbers by ordinal
    size_t memory = size_t(2) << 30;
    int major = 8, minor = 0;
    uint8_t poison = 0xFF;
    int ignored_wait = 0;       // nth cuStreamWaitEvent that does nothing; -1: all
    int short_allocation = 0;   // nth cuMemAllocAsync that gets four bytes less
    std::string index_bug;      // kernel launched with one block too many
    bool transpose_bug = false;
    bool no_peer = false;
    bool throttle = false, other_process = false;
    bool nccl_stall = false;    // after a peer's death, wait for ncclCommAbort as hardware does
    double nccl_timeout = 120;  // seconds that ncclCommInitRank waits for the other ranks
    std::chrono::milliseconds standstill{100}; // after which everything enqueued is let go
    int trace = -1;             // file descriptor
};
const Settings &settings();

// The code that this call of `name` shall return instead of doing its work, or 0 (SOFTWARE_GPU_FAULT).
int fault(const char *name);
// First statement of every entry point. `type` is what the entry point returns.
#define ENTRY(type) \
    if (int software_gpu_code = ::software_gpu::fault(__func__)) return (type)software_gpu_code

// One line on stderr.
void say(const char *format, ...) __attribute__((format(printf, 1, 2)));

// ---------------------------------------------------------------------------------------------------------------
// Streams, operations and their completion.

struct Context;
struct Stream;

// The completion of one operation: what events and later operations refer to.
struct Record {
    std::shared_ptr<Stream> stream; // dropped when done
    uint64_t index = 0;
    bool done = false;
    Clock::time_point time;
};
using RecordPtr = std::shared_ptr<Record>;

struct Operation {
    std::string name;
    std::string detail;               // for the trace
    std::vector<RecordPtr> after;     // besides its predecessor in the stream
    std::function<int()> run;         // 0 or a CUDA code, which then sticks to the context
    std::function<void()> skipped;    // called instead of `run` in a broken context
    void (*position)(unsigned[3], unsigned[3]) = nullptr; // where a kernel is: block, thread
    bool peers = false;               // other ranks may wait for it: it runs some day even if nobody asks
    int injected = 0;                 // fails with this code instead of running
    RecordPtr record;
    Clock::time_point enqueued;
};

struct Stream {
    std::shared_ptr<Context> context;
    void *handle = nullptr;
    int number = 0;                   // for messages
    std::deque<std::shared_ptr<Operation>> queue;
    uint64_t submitted = 0, released = 0, completed = 0; // operations are numbered from 1
    bool closed = false, started = false;
    std::condition_variable wake;
};
using StreamPtr = std::shared_ptr<Stream>;

struct Context {
    int device = 0;                   // ordinal
    void *handle = nullptr;
    int references = 0;
    int error = 0;                    // sticky
    bool dead = false;
    std::set<int> peers;              // devices whose memory it may use
    StreamPtr null_stream;
    std::vector<StreamPtr> streams;   // all that still have work or a handle
    int next_stream = 0;
};
using ContextPtr = std::shared_ptr<Context>;

// ---------------------------------------------------------------------------------------------------------------
// Memory.

enum class Life { Reserved, Live, Freed };
struct Region {
    uintptr_t map = 0;
    size_t map_bytes = 0;
    uintptr_t base = 0;
    size_t bytes = 0;
    int device = -1;                  // -1: page-locked host memory
    bool pooled = false;
    size_t charged = 0;
    Life life = Life::Reserved;
    bool freeing = false;             // its free has been called, if not executed
    uint64_t number = 0;
};
using RegionPtr = std::shared_ptr<Region>;

struct Device {
    ContextPtr context;
    size_t used = 0, used_high = 0;           // of the pool
    size_t reserved = 0, reserved_high = 0;
    uint64_t threshold = 0;
    size_t direct = 0;                        // cuMemAlloc
    int reuse[4] = {0, 1, 1, 1};              // the pool's three reuse policies, by attribute
    size_t taken() const { return (reserved > used ? reserved : used) + direct; }
};

struct State {
    std::mutex mutex;                 // guards everything here and in streams, contexts, records and regions
    std::condition_variable changed;  // some operation completed
    uint64_t progress = 0;            // completed operations
    int working = 0;                  // workers inside an operation and not waiting for a peer
    bool initialised = false;
    std::vector<Device> devices;
    std::map<void *, ContextPtr> contexts;
    std::map<void *, StreamPtr> streams;
    std::map<uintptr_t, RegionPtr> regions; // by map
    std::deque<RegionPtr> quarantine;
    size_t quarantined = 0;
    uint64_t allocations = 0;
    uint64_t handles = 0;
    bool ticking = false;
    uint64_t query_mark = 0;          // progress when a query first found nothing new
    Clock::time_point query_since;
};
State &state();

// Handles are numbers that no pointer has and that never come again, so that a stale one is always found out.
void *new_handle(Lock &);

// Machine numbers, identity.
int machine_device(int ordinal);
void device_uuid(int machine, uint8_t uuid[16]);
unsigned device_bus(int machine);

// The current context of the calling thread, or the reason why there is none to use (sticky errors included).
int usable(Lock &, ContextPtr *context);
void set_current(ContextPtr context);
ContextPtr current();
int retain_context(Lock &, int device, ContextPtr *context);
int release_context(Lock &, int device);

StreamPtr new_stream(Lock &, const ContextPtr &);
// The stream of a handle; null and 1 are the context's own stream.
StreamPtr find_stream(Lock &, void *handle, const ContextPtr &);
void close_stream(Lock &, const StreamPtr &);

RecordPtr enqueue(Lock &, const StreamPtr &, Operation &&);
// Lets the stream run up to and including an operation.
void release(Lock &, const StreamPtr &, uint64_t index);
void release(Lock &, const RecordPtr &);
// Waits until the condition holds. Where nothing moves for a while although nothing computes, everything enqueued
// anywhere is let go, because on hardware it would be running: two ranks may wait for two collectives crosswise.
void wait_until(Lock &, const std::function<bool()> &condition);
// For cuStreamQuery and cuEventQuery: gives the workers a moment, and the same release after a standstill.
bool poll(Lock &, const std::function<bool()> &condition);
void synchronise_stream(Lock &, const StreamPtr &);
void synchronise_context(Lock &, const ContextPtr &);

// While an operation waits for another rank it does not count as computing.
struct PeerWait {
    PeerWait();
    ~PeerWait();
};

int allocate(Lock &, const ContextPtr &, size_t bytes, bool pooled, size_t take_off, RegionPtr *region);
int allocate_host(Lock &, size_t bytes, RegionPtr *region);
void bring_to_life(const RegionPtr &); // takes the lock itself
int retire(const RegionPtr &, const char *who); // the same; checks the margins
void uncharge(Lock &, const RegionPtr &);
void trim(Device &, uint64_t keep);
// The region with this address inside (or just at its end, for an empty range), freed ones included.
RegionPtr find_region(Lock &, const void *address);
// At the call: is this range inside one allocation of device memory whose free has not been asked for?
// INVALID_VALUE with a line on stderr otherwise.
int check_argument(Lock &, const char *who, const void *address, size_t bytes);
// At execution: is it alive, and may this device use it? ILLEGAL_ADDRESS with a line on stderr otherwise.
int check_operand(const char *who, int device, const void *address, size_t bytes);
// Distance from the start of its allocation: hardware aligns those to 256 bytes, the software GPU to 16 only.
size_t offset_in_allocation(const void *address);

} // namespace software_gpu
