// Exercises the software GPU as a CUDA program would, one scenario per run: `exercise <scenario> [arguments]`.
// The libraries are looked up by name, so their folder has to be in LD_LIBRARY_PATH. Ends with 0 if all went as it
// should. exercise.rs runs the scenarios on machines of different shapes.
#include <atomic>
#include <chrono>
#include <cmath>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <dlfcn.h>
#include <functional>
#include <string>
#include <sys/wait.h>
#include <thread>
#include <unistd.h>
#include <vector>

static void *symbol(const char *library, const char *name) {
    void *handle = dlopen(library, RTLD_NOW | RTLD_LOCAL);
    if (!handle) fprintf(stderr, "exercise: %s\n", dlerror());
    return handle ? dlsym(handle, name) : nullptr;
}
#define FUNCTION(library, name, ...) static int (*const name)(__VA_ARGS__) = (int (*)(__VA_ARGS__))symbol(library, #name)
#define CUDA(name, ...) FUNCTION("libcuda.so.1", name, __VA_ARGS__)
#define NVRTC(name, ...) FUNCTION("libnvrtc.so.12", name, __VA_ARGS__)
#define BLAS(name, ...) FUNCTION("libcublasLt.so.12", name, __VA_ARGS__)
#define NCCL(name, ...) FUNCTION("libnccl.so.2", name, __VA_ARGS__)
#define NVML(name, ...) FUNCTION("libnvidia-ml.so.1", name, __VA_ARGS__)

using Address = unsigned long long;
struct Id {
    char internal[128];
};
CUDA(cuInit, unsigned);
CUDA(cuDeviceGetCount, int *);
CUDA(cuDevicePrimaryCtxRetain, void **, int);
CUDA(cuDevicePrimaryCtxRelease_v2, int);
CUDA(cuCtxSetCurrent, void *);
CUDA(cuCtxSynchronize, void);
CUDA(cuCtxEnablePeerAccess, void *, unsigned);
CUDA(cuMemGetInfo_v2, size_t *, size_t *);
CUDA(cuStreamCreate, void **, unsigned);
CUDA(cuStreamDestroy_v2, void *);
CUDA(cuStreamSynchronize, void *);
CUDA(cuStreamQuery, void *);
CUDA(cuStreamWaitEvent, void *, void *, unsigned);
CUDA(cuEventCreate, void **, unsigned);
CUDA(cuEventRecord, void *, void *);
CUDA(cuEventSynchronize, void *);
CUDA(cuEventQuery, void *);
CUDA(cuEventElapsedTime, float *, void *, void *);
CUDA(cuDeviceGetDefaultMemPool, void **, int);
CUDA(cuMemPoolGetAttribute, void *, int, void *);
CUDA(cuMemPoolSetAttribute, void *, int, void *);
CUDA(cuMemAllocAsync, Address *, size_t, void *);
CUDA(cuMemFreeAsync, Address, void *);
CUDA(cuMemAlloc_v2, Address *, size_t);
CUDA(cuMemFree_v2, Address);
CUDA(cuMemAllocHost_v2, void **, size_t);
CUDA(cuMemFreeHost, void *);
CUDA(cuMemcpyHtoDAsync_v2, Address, const void *, size_t, void *);
CUDA(cuMemcpyDtoHAsync_v2, void *, Address, size_t, void *);
CUDA(cuMemcpyDtoDAsync_v2, Address, Address, size_t, void *);
CUDA(cuMemsetD8Async, Address, unsigned char, size_t, void *);
CUDA(cuMemsetD32Async, Address, unsigned, size_t, void *);
CUDA(cuModuleLoadData, void **, const void *);
CUDA(cuModuleGetFunction, void **, void *, const char *);
CUDA(cuLaunchKernel, void *, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, void *, void **, void **);
NVRTC(nvrtcCreateProgram, void **, const char *, const char *, int, const char *const *, const char *const *);
NVRTC(nvrtcCompileProgram, void *, int, const char *const *);
NVRTC(nvrtcGetCUBINSize, void *, size_t *);
NVRTC(nvrtcGetCUBIN, void *, char *);
NVRTC(nvrtcGetPTXSize, void *, size_t *);
NVRTC(nvrtcGetPTX, void *, char *);
NVRTC(nvrtcGetProgramLogSize, void *, size_t *);
NVRTC(nvrtcGetProgramLog, void *, char *);
NVRTC(nvrtcDestroyProgram, void **);
BLAS(cublasLtCreate, void **);
BLAS(cublasLtMatmulDescCreate, void **, int, int);
BLAS(cublasLtMatmulDescSetAttribute, void *, int, const void *, size_t);
BLAS(cublasLtMatrixLayoutCreate, void **, unsigned, uint64_t, uint64_t, int64_t);
BLAS(cublasLtMatrixLayoutSetAttribute, void *, int, const void *, size_t);
BLAS(cublasLtMatrixLayoutDestroy, void *);
BLAS(cublasLtMatmulPreferenceCreate, void **);
BLAS(cublasLtMatmulPreferenceSetAttribute, void *, int, const void *, size_t);
BLAS(cublasLtMatmulAlgoGetHeuristic, void *, void *, void *, void *, void *, void *, void *, int, void *, int *);
BLAS(cublasLtMatmul, void *, void *, const void *, const void *, void *, const void *, void *, const void *, const void *, void *,
     void *, void *, const void *, void *, size_t, void *);
NCCL(ncclGetUniqueId, Id *);
NCCL(ncclCommInitRank, void **, int, Id, int);
NCCL(ncclCommDestroy, void *);
NCCL(ncclCommAbort, void *);
NCCL(ncclCommGetAsyncError, void *, int *);
NCCL(ncclAllReduce, const void *, void *, size_t, int, int, void *, void *);
NCCL(ncclReduceScatter, const void *, void *, size_t, int, int, void *, void *);
NCCL(ncclAllGather, const void *, void *, size_t, int, void *, void *);
NCCL(ncclBroadcast, const void *, void *, size_t, int, int, void *, void *);
NCCL(ncclSend, const void *, size_t, int, int, void *, void *);
NCCL(ncclRecv, void *, size_t, int, int, void *, void *);
NCCL(ncclGroupStart, void);
NCCL(ncclGroupEnd, void);
NVML(nvmlInit_v2, void);
NVML(nvmlDeviceGetCount_v2, unsigned *);
NVML(nvmlDeviceGetHandleByIndex_v2, unsigned, void **);
NVML(nvmlDeviceGetMemoryInfo_v2, void *, void *);
NVML(nvmlDeviceGetCurrentClocksThrottleReasons, void *, unsigned long long *);
NVML(nvmlDeviceGetComputeRunningProcesses_v3, void *, unsigned *, void *);

#define CHECK(condition)                                                                          \
    do {                                                                                          \
        if (!(condition)) {                                                                       \
            fprintf(stderr, "exercise: line %d: %s does not hold\n", __LINE__, #condition);       \
            _exit(1);                                                                             \
        }                                                                                         \
    } while (0)
static void same(int expected, int got, const char *call, int line) {
    if (got == expected) return;
    fprintf(stderr, "exercise: line %d: %s gives %d, not %d\n", line, call, got, expected);
    _exit(1);
}
#define IS(expected, call) same(expected, call, #call, __LINE__)
#define OK(call) IS(0, call)

static const char *const KERNELS = R"(
extern "C" __global__ void fill(long long n, float value, float *to) {
    long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) to[i] = value;
}
extern "C" __global__ void add(long long n, const float *from, float *to) {
    long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) to[i] += from[i];
}
extern "C" __global__ void rows(int width, float *to) {
    to[(long long)blockIdx.x * width + threadIdx.x] = 1;
}
extern "C" __global__ void divide(int by, int *to) {
    if (threadIdx.x == 0) to[0] = 7 / by;
}
)";

static void *context_of[8];
static void *module_of[8];

static std::vector<char> compile(const char *source, const char *architecture, int expected = 0, std::string *log = nullptr) {
    void *program = nullptr;
    const char *options[] = {architecture, "--std=c++17"};
    OK(nvrtcCreateProgram(&program, source, "kernels.cu", 0, nullptr, nullptr));
    int result = nvrtcCompileProgram(program, 2, options);
    size_t bytes = 0;
    OK(nvrtcGetProgramLogSize(program, &bytes));
    std::string text(bytes, ' ');
    OK(nvrtcGetProgramLog(program, &text[0]));
    if (log) *log = text;
    if (result != expected) fprintf(stderr, "%s\n", text.c_str());
    IS(expected, result);
    std::vector<char> image;
    if (!result) {
        OK(nvrtcGetCUBINSize(program, &bytes));
        if (bytes) {
            image.resize(bytes);
            OK(nvrtcGetCUBIN(program, image.data()));
        } else {
            OK(nvrtcGetPTXSize(program, &bytes));
            image.resize(bytes);
            OK(nvrtcGetPTX(program, image.data()));
        }
    }
    OK(nvrtcDestroyProgram(&program));
    return image;
}

static void begin(int device = 0) {
    OK(cuInit(0));
    OK(cuDevicePrimaryCtxRetain(&context_of[device], device));
    OK(cuCtxSetCurrent(context_of[device]));
}

static void *kernel(const char *name, int device = 0) {
    if (!module_of[device]) {
        static std::vector<char> image = compile(KERNELS, "--gpu-architecture=sm_80");
        OK(cuModuleLoadData(&module_of[device], image.data()));
    }
    void *function = nullptr;
    OK(cuModuleGetFunction(&function, module_of[device], name));
    return function;
}

static void *stream() {
    void *made = nullptr;
    OK(cuStreamCreate(&made, 1));
    return made;
}

static void *event(unsigned flags = 0) {
    void *made = nullptr;
    OK(cuEventCreate(&made, flags));
    return made;
}

static Address allocate(size_t bytes, void *on) {
    Address address = 0;
    OK(cuMemAllocAsync(&address, bytes, on));
    return address;
}

static int fill(long long n, float value, Address to, void *on, unsigned blocks = 0) {
    void *arguments[] = {&n, &value, &to};
    if (!blocks) blocks = (unsigned)((n + 255) / 256);
    return cuLaunchKernel(kernel("fill"), blocks, 1, 1, 256, 1, 1, 0, on, arguments, nullptr);
}

static int add(long long n, Address from, Address to, void *on) {
    void *arguments[] = {&n, &from, &to};
    return cuLaunchKernel(kernel("add"), (unsigned)((n + 255) / 256), 1, 1, 256, 1, 1, 0, on, arguments, nullptr);
}

static std::vector<float> read(Address from, size_t n, void *on) {
    std::vector<float> values(n);
    OK(cuMemcpyDtoHAsync_v2(values.data(), from, 4 * n, on));
    OK(cuStreamSynchronize(on));
    return values;
}

// --- The driver ---------------------------------------------------------------------------------------------------

static void basics() {
    begin();
    void *s = stream(), *before = event(), *after = event(), *silent = event(2);
    size_t n = 1000;
    Address a = allocate(4 * n, s), b = allocate(4 * n, s);
    std::vector<float> ones(n, 1.0f);
    OK(cuEventRecord(before, s));
    OK(cuMemcpyHtoDAsync_v2(a, ones.data(), 4 * n, s));
    ones.assign(n, 5.0f); // staged at the call
    OK(fill((long long)n, 2.0f, b, s));
    OK(add((long long)n, a, b, s));
    OK(cuEventRecord(after, s));
    OK(cuEventRecord(silent, s));
    float milliseconds = -1;
    IS(600, cuEventElapsedTime(&milliseconds, before, after));
    std::vector<float> got(n, -1.0f);
    OK(cuMemcpyDtoHAsync_v2(got.data(), b, 4 * n, s));
    CHECK(got[0] == -1.0f); // nothing has run
    OK(cuStreamSynchronize(s));
    for (float value : got) CHECK(value == 3.0f);
    OK(cuEventElapsedTime(&milliseconds, before, after));
    CHECK(milliseconds > 0 && milliseconds < 10000);
    IS(400, cuEventElapsedTime(&milliseconds, before, silent));
    // Fresh memory is poisoned; page-locked memory is read when the copy runs.
    Address c = allocate(64, s);
    for (float value : read(c, 16, s)) CHECK(std::isnan(value));
    float *locked = nullptr;
    OK(cuMemAllocHost_v2((void **)&locked, 64));
    for (int i = 0; i < 16; i++) locked[i] = 1;
    OK(cuMemcpyHtoDAsync_v2(c, locked, 64, s));
    for (int i = 0; i < 16; i++) locked[i] = 2;
    for (float value : read(c, 16, s)) CHECK(value == 2.0f);
    OK(cuMemFreeHost(locked));
    OK(cuMemsetD8Async(c, 0, 64, s));
    OK(cuMemsetD32Async(c + 4, 0x3f800000, 3, s));
    got = read(c, 16, s);
    CHECK(got[0] == 0 && got[1] == 1 && got[3] == 1 && got[4] == 0);
    // Queries let things run.
    OK(fill(16, 9.0f, c, s));
    int tries = 0, code;
    while ((code = cuStreamQuery(s)) == 600) CHECK(++tries < 100000);
    OK(code);
    // The pool's account.
    void *pool = nullptr;
    OK(cuDeviceGetDefaultMemPool(&pool, 0));
    uint64_t used = 0, high = 0, zero = 0;
    OK(cuMemPoolGetAttribute(pool, 7, &used));
    CHECK(used == 4096 + 4096 + 512);
    Address big = allocate(1 << 20, s);
    OK(cuMemFreeAsync(big, s));
    OK(cuMemPoolGetAttribute(pool, 8, &high));
    CHECK(high == used + (1 << 20));
    OK(cuMemPoolSetAttribute(pool, 8, &zero));
    OK(cuMemPoolGetAttribute(pool, 8, &high));
    CHECK(high == used);
    OK(cuMemFreeAsync(a, s));
    OK(cuMemFreeAsync(b, s));
    OK(cuMemFreeAsync(c, s));
    OK(cuCtxSynchronize());
    OK(cuStreamDestroy_v2(s));
    IS(400, cuStreamSynchronize(s));
    Address direct = 0;
    OK(cuMemAlloc_v2(&direct, 4096));
    OK(cuMemFree_v2(direct));
    size_t free = 0, total = 0;
    OK(cuMemGetInfo_v2(&free, &total));
    CHECK(free == total);
    OK(cuDevicePrimaryCtxRelease_v2(0));
    IS(709, cuCtxSynchronize());
}

// One stream writes, another reads. Prints what is read: 1 where the wait is there and works, 0 otherwise.
static void streams(bool wait) {
    begin();
    void *writer = stream(), *reader = stream(), *written = event(2);
    Address a = allocate(4, writer);
    OK(cuMemsetD8Async(a, 0, 4, writer));
    OK(cuStreamSynchronize(writer));
    OK(fill(1, 1.0f, a, writer));
    OK(cuEventRecord(written, writer));
    OK(fill(1, 2.0f, a, writer)); // after the record: not waited for
    if (wait) OK(cuStreamWaitEvent(reader, written, 0));
    printf("%g\n", read(a, 1, reader)[0]);
}

static void modules() {
    begin();
    std::string log;
    compile("extern \"C\" __global__ void broken(int x) { this is no C++ }\n", "--gpu-architecture=sm_80", 6, &log);
    CHECK(log.find("kernels.cu:1") != std::string::npos);
    compile(KERNELS, "--no-such-option", 5);
    std::vector<char> image = compile(KERNELS, "--gpu-architecture=sm_80");
    void *module = nullptr, *function = nullptr;
    OK(cuModuleLoadData(&module, image.data()));
    OK(cuModuleGetFunction(&function, module, "fill"));
    IS(500, cuModuleGetFunction(&function, module, "no_such_kernel"));
    IS(200, cuModuleLoadData(&module, "this is no module, and long enough to be looked at as one: ........"));
    std::vector<char> cut = image;
    cut[cut.size() / 2] ^= 1;
    IS(200, cuModuleLoadData(&module, cut.data()));
    IS(209, cuModuleLoadData(&module, compile(KERNELS, "--gpu-architecture=sm_90").data()));
    IS(209, cuModuleLoadData(&module, compile(KERNELS, "--gpu-architecture=sm_75").data()));
    OK(cuModuleLoadData(&module, compile(KERNELS, "--gpu-architecture=compute_75").data())); // PTX is for later ones too
    Address to = allocate(1024, nullptr);
    long long n = 1;
    float value = 1;
    void *arguments[] = {&n, &value, &to};
    IS(1, cuLaunchKernel(function, 1, 1, 1, 1024, 2, 1, 0, nullptr, arguments, nullptr));
    IS(1, cuLaunchKernel(function, 1, 65536, 1, 1, 1, 1, 0, nullptr, arguments, nullptr));
    IS(1, cuLaunchKernel(function, 0, 1, 1, 1, 1, 1, 0, nullptr, arguments, nullptr));
    OK(cuLaunchKernel(function, 1, 1, 1, 1, 1, 1, 0, nullptr, arguments, nullptr));
    OK(cuCtxSynchronize());
}

// Mistakes that end in CUDA_ERROR_ILLEGAL_ADDRESS, for good.
static void illegal(const std::string &what) {
    begin();
    void *s = stream(), *t = stream();
    size_t n = 1001;
    Address a = allocate(4 * n, s), b = allocate(4 * n + 400, s);
    int expected = 700;
    if (what == "read") {
        OK(fill((long long)n, 1, a, s));
        OK(add((long long)n + 7, a, b, s));
    } else if (what == "write") {
        OK(fill((long long)n + 7, 1, a, s));
    } else if (what == "margin") {
        OK(fill((long long)n + 1, 1, a, s)); // within the 16 bytes' slack: told when freed
        OK(cuMemFreeAsync(a, s));
    } else if (what == "freed") {
        OK(cuMemFreeAsync(a, s));
        OK(fill((long long)n, 1, a, s));
    } else if (what == "early") {
        OK(fill((long long)n, 1, a, t)); // no wait for the stream that allocates
        s = t;
    } else if (what == "null") {
        OK(fill(1, 1, 0, s));
    } else if (what == "short") {
        OK(fill((long long)n, 1, a, s)); // with SOFTWARE_GPU_SHORT_ALLOCATION=1
    } else if (what == "block") { // with SOFTWARE_GPU_INDEX_BUG=rows
        int width = 91;
        void *arguments[] = {&width, &a};
        OK(cuLaunchKernel(kernel("rows"), 11, 1, 1, 91, 1, 1, 0, s, arguments, nullptr));
    } else if (what == "division") {
        int zero = 0;
        void *arguments[] = {&zero, &a};
        OK(cuLaunchKernel(kernel("divide"), 1, 1, 1, 32, 1, 1, 0, s, arguments, nullptr));
        expected = 719;
    }
    IS(expected, cuStreamSynchronize(s));
    Address more = 0;
    IS(expected, cuMemAllocAsync(&more, 64, s));
    IS(expected, cuCtxSynchronize());
    void *made = nullptr;
    IS(expected, cuStreamCreate(&made, 1));
}

// Mistakes that are refused at the call.
static void refused() {
    Address a = 0;
    IS(3, cuCtxSynchronize());
    OK(cuInit(0));
    IS(201, cuMemAllocAsync(&a, 64, nullptr));
    begin();
    void *s = stream();
    std::vector<float> host(64);
    a = allocate(256, s);
    IS(1, cuMemcpyHtoDAsync_v2((Address)host.data(), host.data(), 64, s)); // host memory as a target on the device
    IS(1, cuMemcpyDtoHAsync_v2((void *)a, a, 64, s));                      // and the reverse
    IS(1, cuMemcpyHtoDAsync_v2(a + 4, host.data(), 256, s));               // one element too far
    IS(1, cuMemcpyDtoDAsync_v2(a, a + 1000, 4, s));
    IS(1, cuMemsetD8Async(a, 0, 257, s));
    IS(1, cuMemsetD32Async(a + 2, 0, 1, s));
    IS(1, cuMemFreeAsync(a + 4, s));
    OK(cuMemFreeAsync(a, s));
    IS(1, cuMemFreeAsync(a, s));
    IS(1, cuMemsetD8Async(a, 0, 4, s));
    size_t free = 0, total = 0;
    OK(cuMemGetInfo_v2(&free, &total));
    IS(2, cuMemAllocAsync(&a, total + 1, s));
    Address all = allocate(total, s);
    IS(2, cuMemAllocAsync(&a, 512, s));
    OK(cuMemFreeAsync(all, s)); // accounted at the call
    OK(cuMemAllocAsync(&a, 512, s));
    OK(cuCtxSynchronize());
}

// The faults that exercise.rs asks for: see there.
static void faults() {
    begin();
    void *s = stream();
    Address a = allocate(64, s);
    Address b = 0;
    IS(2, cuMemAllocAsync(&b, 64, s)); // the second call
    OK(cuMemAllocAsync(&b, 64, s));
    OK(fill(1, 1, a, s));
    OK(cuStreamSynchronize(s));
    OK(fill(1, 1, a, s)); // the second launch fails when it runs
    IS(719, cuStreamSynchronize(s));
    IS(719, cuCtxSynchronize());
}

static void devices() {
    begin(0);
    begin(1);
    int count = 0;
    OK(cuDeviceGetCount(&count));
    CHECK(count == 2);
    void *second = stream();
    Address there = allocate(64, second);
    OK(cuMemsetD8Async(there, 0, 64, second));
    OK(cuStreamSynchronize(second));
    OK(cuCtxSetCurrent(context_of[0]));
    IS(400, cuMemsetD8Async(there, 0, 64, second)); // the other context's stream
    void *first = stream();
    Address here = allocate(64, first);
    OK(cuMemcpyDtoDAsync_v2(here, there, 64, first));
    CHECK(read(here, 16, first)[3] == 0);
    IS(1, cuMemFreeAsync(there + 8, first));
    // One device's failure leaves the other alone.
    OK(fill(1, 1, 0, first));
    IS(700, cuStreamSynchronize(first));
    OK(cuCtxSetCurrent(context_of[1]));
    OK(cuCtxSynchronize());
}

// --- Matrices ------------------------------------------------------------------------------------------------------

struct Heuristic {
    uint64_t algorithm[8];
    size_t workspace;
    int state;
    float waves;
    int reserved[4];
};

static float number(uint32_t &seed) {
    seed = seed * 1664525 + 1013904223;
    return (float)(int)(seed >> 24) / 64.0f - 2.0f;
}

static uint16_t half(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

static float whole(uint16_t bits) {
    uint32_t wide = (uint32_t)bits << 16;
    float value;
    memcpy(&value, &wide, 4);
    return value;
}

static std::vector<uint8_t> encode(const std::vector<float> &values, int type) {
    std::vector<uint8_t> bytes(values.size() * (type == 14 ? 2 : 4));
    for (size_t i = 0; i < values.size(); i++) {
        uint16_t h = half(values[i]);
        if (type == 14) memcpy(&bytes[2 * i], &h, 2);
        else memcpy(&bytes[4 * i], &values[i], 4);
    }
    return bytes;
}

static double multiply(void *handle, void *s, int in, int out, int ta, int tb, int m, int n, int k, int batch, float alpha,
                       float beta, int extra) {
    int rows_a = ta ? k : m, columns_a = ta ? m : k, rows_b = tb ? n : k, columns_b = tb ? k : n;
    int lda = rows_a + extra, ldb = rows_b + 2 * extra, ldc = m + extra;
    int64_t stride_a = (int64_t)lda * columns_a + extra, stride_b = (int64_t)ldb * columns_b, stride_c = (int64_t)ldc * n + 3 * extra;
    auto span = [&](int64_t stride, int ld, int rows, int columns) { return (size_t)(stride * (batch - 1) + ld * (columns - 1) + rows); };
    uint32_t seed = (uint32_t)(m * 31 + n * 7 + k);
    std::vector<float> a(span(stride_a, lda, rows_a, columns_a)), b(span(stride_b, ldb, rows_b, columns_b)),
        c(span(stride_c, ldc, m, n));
    for (float &x : a) x = number(seed);
    for (float &x : b) x = number(seed);
    for (float &x : c) x = number(seed);
    size_t in_width = in == 14 ? 2 : 4, out_width = out == 14 ? 2 : 4;
    Address da = allocate(a.size() * in_width, s), db = allocate(b.size() * in_width, s), dc = allocate(c.size() * out_width, s);
    Address workspace = allocate(4096, s);
    OK(cuMemcpyHtoDAsync_v2(da, encode(a, in).data(), a.size() * in_width, s));
    OK(cuMemcpyHtoDAsync_v2(db, encode(b, in).data(), b.size() * in_width, s));
    if (beta != 0) OK(cuMemcpyHtoDAsync_v2(dc, encode(c, out).data(), c.size() * out_width, s));
    void *operation, *la, *lb, *lc, *preference;
    OK(cublasLtMatmulDescCreate(&operation, 68, 0));
    OK(cublasLtMatmulDescSetAttribute(operation, 3, &ta, 4));
    OK(cublasLtMatmulDescSetAttribute(operation, 4, &tb, 4));
    OK(cublasLtMatrixLayoutCreate(&la, (unsigned)in, (uint64_t)rows_a, (uint64_t)columns_a, lda));
    OK(cublasLtMatrixLayoutCreate(&lb, (unsigned)in, (uint64_t)rows_b, (uint64_t)columns_b, ldb));
    OK(cublasLtMatrixLayoutCreate(&lc, (unsigned)out, (uint64_t)m, (uint64_t)n, ldc));
    void *layouts[] = {la, lb, lc};
    int64_t strides[] = {stride_a, stride_b, stride_c};
    for (int i = 0; i < 3; i++) {
        OK(cublasLtMatrixLayoutSetAttribute(layouts[i], 5, &batch, 4));
        OK(cublasLtMatrixLayoutSetAttribute(layouts[i], 6, &strides[i], 8));
    }
    OK(cublasLtMatmulPreferenceCreate(&preference));
    uint64_t most = 4096;
    OK(cublasLtMatmulPreferenceSetAttribute(preference, 1, &most, 8));
    Heuristic heuristic;
    int returned = 0;
    OK(cublasLtMatmulAlgoGetHeuristic(handle, operation, la, lb, lc, lc, preference, 1, &heuristic, &returned));
    CHECK(returned == 1 && heuristic.workspace == 4096);
    OK(cublasLtMatmul(handle, operation, &alpha, (void *)da, la, (void *)db, lb, &beta, (void *)dc, lc, (void *)dc, lc, &heuristic,
                      (void *)workspace, 4096, s));
    std::vector<uint8_t> bytes(c.size() * out_width);
    OK(cuMemcpyDtoHAsync_v2(bytes.data(), dc, bytes.size(), s));
    OK(cuStreamSynchronize(s));
    double worst = 0;
    for (int z = 0; z < batch; z++) {
        for (int j = 0; j < n; j++) {
            for (int i = 0; i < m; i++) {
                double sum = 0;
                for (int p = 0; p < k; p++) {
                    sum += (double)a[(size_t)(z * stride_a + (ta ? i * lda + p : p * lda + i))] *
                           b[(size_t)(z * stride_b + (tb ? p * ldb + j : j * ldb + p))];
                }
                size_t at = (size_t)(z * stride_c + j * ldc + i);
                double wanted = alpha * sum + (beta != 0 ? beta * c[at] : 0);
                float got;
                uint16_t h;
                memcpy(&h, &bytes[at * out_width], 2);
                memcpy(&got, &bytes[out == 14 ? 0 : at * 4], 4);
                if (out == 14) got = whole(h);
                double error = std::fabs(got - wanted) / (1 + std::fabs(wanted));
                if (!(error <= worst)) worst = error; // NaN too
            }
        }
    }
    for (Address address : {da, db, dc, workspace}) OK(cuMemFreeAsync(address, s));
    return worst;
}

static void matrices() {
    begin();
    void *s = stream(), *handle = nullptr;
    OK(cublasLtCreate(&handle));
    for (int types = 0; types < 3; types++) {
        int in = types ? 14 : 0, out = types == 1 ? 14 : 0;
        for (int variant = 0; variant < 16; variant++) {
            int ta = variant & 1, tb = variant >> 1 & 1, batch = variant & 4 ? 3 : 1, extra = variant & 8 ? 5 : 0;
            double worst = multiply(handle, s, in, out, ta, tb, 13, 9, 17, batch, 0.5f, extra ? 1.0f : 0.0f, extra);
            CHECK(worst < (out == 14 ? 0.005 : 1e-5));
        }
    }
    CHECK(multiply(handle, s, 0, 0, 1, 0, 64, 64, 64, 1, 1, 0, 0) < 1e-5);
    // Refusals.
    void *operation, *la, *lb, *lc, *small;
    OK(cublasLtMatmulDescCreate(&operation, 68, 0));
    OK(cublasLtMatrixLayoutCreate(&la, 0, 8, 4, 8));
    OK(cublasLtMatrixLayoutCreate(&lb, 0, 4, 6, 4));
    OK(cublasLtMatrixLayoutCreate(&lc, 0, 8, 6, 8));
    OK(cublasLtMatrixLayoutCreate(&small, 0, 8, 4, 7));
    Address a = allocate(4 * 32, s), b = allocate(4 * 24, s), c = allocate(4 * 48, s);
    OK(cuMemsetD8Async(a, 0, 4 * 32, s));
    OK(cuMemsetD8Async(b, 0, 4 * 24, s));
    float one = 1, zero = 0;
    auto call = [&](const void *pa, void *layout_a, void *layout_b) {
        return cublasLtMatmul(handle, operation, &one, pa, layout_a, (void *)b, layout_b, &zero, (void *)c, lc, (void *)c, lc, nullptr,
                              nullptr, 0, s);
    };
    OK(call((void *)a, la, lb));
    IS(7, call((void *)a, lb, la));       // sizes that do not fit together
    IS(7, call((void *)a, small, lb));    // a leading dimension less than the rows
    IS(7, call((void *)(a + 4), la, lb)); // runs off its allocation
    std::vector<float> host(32);
    IS(7, call(host.data(), la, lb));
    // The algorithm was chosen for aligned operands and a workspace.
    void *preference;
    OK(cublasLtMatmulPreferenceCreate(&preference));
    uint64_t most = 1 << 20;
    uint32_t alignment = 4;
    OK(cublasLtMatmulPreferenceSetAttribute(preference, 1, &most, 8));
    Heuristic heuristic;
    int returned = 0;
    Address larger = allocate(4 * 33, s), workspace = allocate(1 << 20, s);
    OK(cuMemsetD8Async(larger, 0, 4 * 33, s));
    auto choose = [&] {
        OK(cublasLtMatmulAlgoGetHeuristic(handle, operation, la, lb, lc, lc, preference, 1, &heuristic, &returned));
    };
    auto chosen = [&](Address pa, size_t bytes) {
        return cublasLtMatmul(handle, operation, &one, (void *)pa, la, (void *)b, lb, &zero, (void *)c, lc, (void *)c, lc, &heuristic,
                              (void *)workspace, bytes, s);
    };
    choose();
    OK(chosen(larger, most));
    IS(7, chosen(larger, 16));
    IS(15, chosen(larger + 4, most));
    OK(cublasLtMatmulPreferenceSetAttribute(preference, 5, &alignment, 4));
    choose();
    OK(chosen(larger + 4, most));
    // TF32 shows: 1 + 2^-11 is not representable.
    void *coarse, *layout;
    OK(cublasLtMatmulDescCreate(&coarse, 77, 0));
    OK(cublasLtMatrixLayoutCreate(&layout, 0, 1, 1, 1));
    float almost = 1 + 1.0f / 2048 - 1.0f / 8192;
    OK(cuMemcpyHtoDAsync_v2(a, &almost, 4, s));
    OK(cuMemcpyHtoDAsync_v2(b, &one, 4, s));
    OK(cublasLtMatmul(handle, coarse, &one, (void *)a, layout, (void *)b, layout, &zero, (void *)c, layout, (void *)c, layout, nullptr,
                      nullptr, 0, s));
    CHECK(read(c, 1, s)[0] == 1);
    int wrong = 1;
    OK(cublasLtMatmulDescSetAttribute(operation, 3, &wrong, 4));
    IS(7, call((void *)a, la, lb));
    OK(cublasLtMatrixLayoutDestroy(la));
    IS(7, call((void *)a, la, lb));
    OK(cuCtxSynchronize());
}

// --- Ranks ---------------------------------------------------------------------------------------------------------

// All collectives once and again, on `n` elements, checked against what they must give.
static void collectives(void *comm, int rank, int ranks, void *s, size_t n, int type) {
    size_t unit = type == 9 ? 2 : 4, all = n * (size_t)ranks;
    auto value = [](int r, size_t i) { return (float)((int)(i % 7) + r); };
    auto put = [&](Address to, const std::vector<float> &values) {
        OK(cuMemcpyHtoDAsync_v2(to, encode(values, type == 9 ? 14 : 0).data(), values.size() * unit, s));
    };
    auto get = [&](Address from, size_t count) {
        std::vector<uint8_t> bytes(count * unit);
        OK(cuMemcpyDtoHAsync_v2(bytes.data(), from, bytes.size(), s));
        OK(cuStreamSynchronize(s));
        std::vector<float> values(count);
        for (size_t i = 0; i < count; i++) {
            uint16_t h;
            memcpy(&h, &bytes[unit * i], 2);
            if (type == 9) values[i] = whole(h);
            else memcpy(&values[i], &bytes[4 * i], 4);
        }
        return values;
    };
    std::vector<float> mine(all);
    for (size_t i = 0; i < all; i++) mine[i] = value(rank, i);
    Address from = allocate(all * unit, s), to = allocate(all * unit, s);
    auto sum = [&](size_t i) { return ranks * (float)(i % 7) + ranks * (ranks - 1) / 2; };

    put(from, mine);
    OK(ncclAllReduce((void *)from, (void *)to, n, type, 0, comm, s));
    std::vector<float> got = get(to, n);
    for (size_t i = 0; i < n; i++) CHECK(got[i] == sum(i));
    OK(ncclAllReduce((void *)from, (void *)from, n, type, 2, comm, s)); // in place, maximum
    got = get(from, n);
    for (size_t i = 0; i < n; i++) CHECK(got[i] == value(ranks - 1, i));

    put(from, mine);
    OK(ncclReduceScatter((void *)from, (void *)(from + (size_t)rank * n * unit), n, type, 0, comm, s));
    got = get(from + (size_t)rank * n * unit, n);
    for (size_t i = 0; i < n; i++) CHECK(got[i] == sum((size_t)rank * n + i));

    put(from, std::vector<float>(n, (float)rank));
    OK(ncclAllGather((void *)from, (void *)to, n, type, comm, s));
    got = get(to, all);
    for (size_t i = 0; i < all; i++) CHECK(got[i] == (float)(i / n));

    put(from, std::vector<float>(n, (float)(10 + rank)));
    OK(ncclBroadcast((void *)from, (void *)from, n, type, ranks - 1, comm, s));
    got = get(from, n);
    for (float x : got) CHECK(x == (float)(9 + ranks));

    // A ring, which only works if the two progress together.
    put(from, std::vector<float>(n, (float)rank));
    OK(ncclGroupStart());
    OK(ncclSend((void *)from, n, type, (rank + 1) % ranks, comm, s));
    OK(ncclRecv((void *)to, n, type, (rank + ranks - 1) % ranks, comm, s));
    OK(ncclGroupEnd());
    got = get(to, n);
    for (float x : got) CHECK(x == (float)((rank + ranks - 1) % ranks));
    OK(cuMemFreeAsync(from, s));
    OK(cuMemFreeAsync(to, s));
    OK(cuStreamSynchronize(s));
}

// Two collectives on two communicators, each on its own stream, waited for in opposite orders: on hardware both are
// running anyway.
static void crossed(void *comms[2], int rank, void *streams[2]) {
    Address buffers[2];
    for (int i = 0; i < 2; i++) {
        buffers[i] = allocate(4, streams[i]);
        OK(cuMemsetD32Async(buffers[i], 0x3f800000, 1, streams[i]));
        OK(ncclAllReduce((void *)buffers[i], (void *)buffers[i], 1, 7, 0, comms[i], streams[i]));
    }
    OK(cuStreamSynchronize(streams[rank % 2]));
    OK(cuStreamSynchronize(streams[1 - rank % 2]));
}

static void join(int rank, int ranks, const Id *ids, int device) {
    OK(cuCtxSetCurrent(context_of[device]));
    void *comms[2], *streams[2] = {stream(), stream()};
    for (int i = 0; i < 2; i++) OK(ncclCommInitRank(&comms[i], ranks, ids[i], rank));
    for (size_t n : {1u, 5u, 1000u, 300000u}) collectives(comms[0], rank, ranks, streams[0], n, 7);
    collectives(comms[1], rank, ranks, streams[1], 777, 9);
    crossed(comms, rank, streams);
    int error = -1;
    OK(ncclCommGetAsyncError(comms[0], &error));
    CHECK(error == 0);
    for (void *comm : comms) OK(ncclCommDestroy(comm));
}

// Runs the ranks as processes or as threads of one. Each has a device of its own.
static int processes(int ranks, const std::function<void(int rank)> &body) {
    std::vector<pid_t> children;
    for (int rank = 0; rank < ranks; rank++) {
        pid_t child = fork();
        if (!child) {
            body(rank);
            _exit(0);
        }
        children.push_back(child);
    }
    int worst = 0;
    for (pid_t child : children) {
        int status = 0;
        waitpid(child, &status, 0);
        int code = WIFEXITED(status) ? WEXITSTATUS(status) : WTERMSIG(status) == SIGKILL ? 0 : 100 + WTERMSIG(status);
        if (code > worst) worst = code;
    }
    return worst;
}

// Rank 0 makes the ids, the others read them from its pipe.
struct Ids {
    int pipe_ends[2];
    Ids() { CHECK(pipe(pipe_ends) == 0); }
    void get(int rank, int ranks, Id *ids, int count) {
        if (rank == 0) {
            for (int i = 0; i < count; i++) OK(ncclGetUniqueId(&ids[i]));
            for (int r = 1; r < ranks; r++) CHECK(write(pipe_ends[1], ids, sizeof(Id) * (size_t)count) > 0);
        } else {
            CHECK(::read(pipe_ends[0], ids, sizeof(Id) * (size_t)count) == (ssize_t)(sizeof(Id) * (size_t)count));
        }
    }
};

static void ranks_as_processes(int ranks) {
    Ids pipe;
    int worst = processes(ranks, [&](int rank) {
        Id ids[2];
        begin(rank);
        pipe.get(rank, ranks, ids, 2);
        join(rank, ranks, ids, rank);
    });
    CHECK(worst == 0);
}

static void ranks_as_threads(int ranks) {
    for (int device = 0; device < ranks; device++) begin(device);
    Id ids[2];
    for (Id &id : ids) OK(ncclGetUniqueId(&id));
    std::vector<std::thread> threads;
    for (int rank = 0; rank < ranks; rank++) threads.emplace_back([=, &ids] { join(rank, ranks, ids, rank); });
    for (std::thread &thread : threads) thread.join();
}

// One thread for all ranks, as groups allow.
static void ranks_as_group(int ranks) {
    Id id;
    OK(ncclGetUniqueId(&id));
    std::vector<void *> comms((size_t)ranks), streams;
    std::vector<Address> buffers;
    OK(ncclGroupStart());
    for (int rank = 0; rank < ranks; rank++) {
        begin(rank);
        streams.push_back(stream());
        buffers.push_back(allocate(400, streams.back()));
        OK(cuMemsetD32Async(buffers.back(), 0x3f800000, 100, streams.back()));
        OK(ncclCommInitRank(&comms[(size_t)rank], ranks, id, rank));
    }
    OK(ncclGroupEnd());
    OK(ncclGroupStart());
    for (size_t r = 0; r < comms.size(); r++)
        OK(ncclAllReduce((void *)buffers[r], (void *)buffers[r], 100, 7, 0, comms[r], streams[r]));
    OK(ncclGroupEnd());
    for (int rank = 0; rank < ranks; rank++) {
        OK(cuCtxSetCurrent(context_of[rank]));
        for (float value : read(buffers[(size_t)rank], 100, streams[(size_t)rank])) CHECK(value == (float)ranks);
    }
}

// The last rank dies in the middle. The others must hear of it, and with SOFTWARE_GPU_NCCL_STALL only an abort lets
// their streams go on.
static void lost_rank(int ranks, bool abort) {
    Ids pipe;
    int worst = processes(ranks, [&](int rank) {
        Id id;
        begin(rank);
        pipe.get(rank, ranks, &id, 1);
        void *comm = nullptr, *s = stream();
        OK(ncclCommInitRank(&comm, ranks, id, rank));
        Address buffer = allocate(4 << 20, s);
        OK(cuMemsetD8Async(buffer, 0, 4 << 20, s));
        OK(ncclAllReduce((void *)buffer, (void *)buffer, 1 << 20, 7, 0, comm, s));
        OK(cuStreamSynchronize(s));
        if (rank == ranks - 1) kill(getpid(), SIGKILL);
        OK(ncclAllReduce((void *)buffer, (void *)buffer, 1 << 20, 7, 0, comm, s));
        if (abort) {
            int error = 0;
            for (int tries = 0; !error && tries < 1000; tries++) {
                usleep(10000);
                OK(ncclCommGetAsyncError(comm, &error));
            }
            CHECK(error == 6);
            usleep(300000);
            IS(600, cuStreamQuery(s)); // still spinning
            OK(ncclCommAbort(comm));
            OK(cuStreamSynchronize(s));
        } else {
            OK(cuStreamSynchronize(s));
            int error = 0;
            OK(ncclCommGetAsyncError(comm, &error));
            CHECK(error == 6);
            IS(6, ncclAllReduce((void *)buffer, (void *)buffer, 1, 7, 0, comm, s));
            OK(ncclCommDestroy(comm));
        }
    });
    CHECK(worst == 0);
}

// Rank 1's thread waits for word from rank 0, which rank 0 sends after a collective: it must run without rank 1 asking.
static void unforced() {
    int word[2];
    CHECK(pipe(word) == 0);
    Ids ids;
    int worst = processes(2, [&](int rank) {
        Id id;
        begin(rank);
        ids.get(rank, 2, &id, 1);
        void *comm = nullptr, *s = stream();
        OK(ncclCommInitRank(&comm, 2, id, rank));
        Address buffer = allocate(4, s);
        OK(cuMemsetD8Async(buffer, 0, 4, s));
        OK(ncclAllReduce((void *)buffer, (void *)buffer, 1, 7, 0, comm, s));
        char letter = 'x';
        if (rank == 0) {
            OK(cuStreamSynchronize(s));
            CHECK(write(word[1], &letter, 1) == 1);
        } else {
            CHECK(::read(word[0], &letter, 1) == 1);
        }
        OK(ncclCommDestroy(comm));
    });
    CHECK(worst == 0);
}

// Calls that do not match are told, not hung upon.
static void mismatch() {
    Ids ids;
    int worst = processes(2, [&](int rank) {
        Id id;
        begin(rank);
        ids.get(rank, 2, &id, 1);
        void *comm = nullptr, *s = stream();
        OK(ncclCommInitRank(&comm, 2, id, rank));
        Address buffer = allocate(400, s);
        OK(cuMemsetD8Async(buffer, 0, 400, s));
        IS(4, ncclAllReduce((void *)buffer, (void *)(buffer + 4), 99, 7, 0, comm, s)); // overlapping
        IS(4, ncclAllReduce((void *)buffer, (void *)buffer, 101, 7, 0, comm, s));      // too long
        OK(ncclAllReduce((void *)buffer, (void *)buffer, rank ? 50 : 100, 7, 0, comm, s));
        OK(cuStreamSynchronize(s));
        int error = 0;
        OK(ncclCommGetAsyncError(comm, &error));
        CHECK(error == 5 || error == 6);
    });
    CHECK(worst == 0);
}

// Two ranks on device 0; prints what initialising gives.
static void shared_device() {
    Ids ids;
    int worst = processes(2, [&](int rank) {
        Id id;
        begin(0);
        ids.get(rank, 2, &id, 1);
        void *comm = nullptr;
        int code = ncclCommInitRank(&comm, 2, id, rank);
        if (rank == 0) {
            printf("%d\n", code);
            fflush(stdout);
        }
        if (!code) OK(ncclCommDestroy(comm));
    });
    CHECK(worst == 0);
}

// Prints the throttle reasons and the number of other processes.
static void management() {
    OK(nvmlInit_v2());
    unsigned count = 0;
    OK(nvmlDeviceGetCount_v2(&count));
    CHECK(count == 1);
    void *device = nullptr;
    OK(nvmlDeviceGetHandleByIndex_v2(0, &device));
    IS(2, nvmlDeviceGetHandleByIndex_v2(1, &device));
    begin();
    Address a = allocate(10 << 20, nullptr);
    CHECK(a);
    struct {
        unsigned version;
        unsigned long long total, reserved, free, used;
    } memory = {40 | 2u << 24, 0, 0, 0, 0};
    OK(nvmlDeviceGetMemoryInfo_v2(device, &memory));
    CHECK(memory.used >= 10 << 20 && memory.total == memory.used + memory.free);
    unsigned long long reasons = 0;
    OK(nvmlDeviceGetCurrentClocksThrottleReasons(device, &reasons));
    unsigned processes = 0;
    nvmlDeviceGetComputeRunningProcesses_v3(device, &processes, nullptr);
    printf("%llu %u\n", reasons, processes);
}

int main(int count, char **words) {
    std::string scenario = count > 1 ? words[1] : "", argument = count > 2 ? words[2] : "";
    int ranks = atoi(argument.c_str());
    if (scenario == "basics") basics();
    else if (scenario == "streams") streams(argument == "wait");
    else if (scenario == "modules") modules();
    else if (scenario == "illegal") illegal(argument);
    else if (scenario == "refused") refused();
    else if (scenario == "faults") faults();
    else if (scenario == "devices") devices();
    else if (scenario == "matrices") matrices();
    else if (scenario == "processes") ranks_as_processes(ranks);
    else if (scenario == "threads") ranks_as_threads(ranks);
    else if (scenario == "group") ranks_as_group(ranks);
    else if (scenario == "lost") lost_rank(ranks, count > 3);
    else if (scenario == "unforced") unforced();
    else if (scenario == "mismatch") mismatch();
    else if (scenario == "shared") shared_device();
    else if (scenario == "management") management();
    else if (scenario == "init") printf("%d\n", cuInit ? cuInit(0) : -1);
    else if (scenario == "symbol") printf("%d\n", cuMemAllocAsync != nullptr);
    else CHECK(!"a known scenario");
    return 0;
}
