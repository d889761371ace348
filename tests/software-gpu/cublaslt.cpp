// libcublasLt.so.12 of the software GPU: matrix products on column-major matrices as cuBLASLt documents them, for the
// types that our code uses, and with cuBLASLt's refusals.
#include "device.h"

#include <cmath>
#include <cstring>

#include "numbers.h"

using namespace software_gpu;

namespace {

enum cublasStatus_t : int {
    CUBLAS_STATUS_SUCCESS = 0,
    CUBLAS_STATUS_NOT_INITIALIZED = 1,
    CUBLAS_STATUS_ALLOC_FAILED = 3,
    CUBLAS_STATUS_INVALID_VALUE = 7,
    CUBLAS_STATUS_ARCH_MISMATCH = 8,
    CUBLAS_STATUS_MAPPING_ERROR = 11,
    CUBLAS_STATUS_EXECUTION_FAILED = 13,
    CUBLAS_STATUS_INTERNAL_ERROR = 14,
    CUBLAS_STATUS_NOT_SUPPORTED = 15,
};

constexpr int R_32F = 0, R_16BF = 14;
constexpr int COMPUTE_32F = 68, COMPUTE_32F_PEDANTIC = 69, COMPUTE_32F_FAST_TF32 = 77;
constexpr uint64_t WORKSPACE = 4096; // that the one algorithm wants, where it may
constexpr uint64_t ALGORITHM = 0x53474d4154ull;
constexpr unsigned VECTOR = 16; // bytes that the algorithm loads at once, where its operands are aligned for it

enum class Kind : uint32_t { Handle = 0x1a, Operation, Layout, Preference };

// What the opaque handles point at. The live ones are known, so that a stale one is refused instead of followed.
struct Object {
    Kind kind;
    explicit Object(Kind kind) : kind(kind) {}
    virtual ~Object() = default;
};

struct Matmul : Object {
    int compute, scale;
    int pointer_mode = 0, transpose_a = 0, transpose_b = 0, transpose_c = 0;
    uint32_t epilogue = 1;
    Matmul(int compute, int scale) : Object(Kind::Operation), compute(compute), scale(scale) {}
};

struct Layout : Object {
    uint32_t type;
    int32_t order = 0;
    uint64_t rows, columns;
    int64_t leading;
    int32_t batch = 1;
    int64_t stride = 0;
    explicit Layout(uint32_t type = 0, uint64_t rows = 0, uint64_t columns = 0, int64_t leading = 0)
        : Object(Kind::Layout), type(type), rows(rows), columns(columns), leading(leading) {}
};

struct Preference : Object {
    uint64_t workspace = 0;
    uint32_t alignment[4] = {256, 256, 256, 256}; // A, B, C, D
    Preference() : Object(Kind::Preference) {}
};

struct Algorithm {
    uint64_t magic, workspace;
    uint32_t alignment[4];
    uint64_t unused[4];
};
static_assert(sizeof(Algorithm) == 64, "cublasLtMatmulAlgo_t");

struct HeuristicResult {
    Algorithm algorithm;
    size_t workspace;
    int state;
    float waves;
    int reserved[4];
};

std::mutex objects_mutex;
std::set<Object *> *const objects = new std::set<Object *>;

void *keep(Object *object) {
    std::lock_guard<std::mutex> guard(objects_mutex);
    objects->insert(object);
    return object;
}

template <class T> T *get(const void *handle, Kind kind) {
    auto object = static_cast<Object *>(const_cast<void *>(handle));
    std::lock_guard<std::mutex> guard(objects_mutex);
    return objects->count(object) && object->kind == kind ? static_cast<T *>(object) : nullptr;
}

cublasStatus_t drop(void *handle, Kind kind) {
    auto object = static_cast<Object *>(handle);
    std::lock_guard<std::mutex> guard(objects_mutex);
    if (!objects->count(object) || object->kind != kind) return CUBLAS_STATUS_INVALID_VALUE;
    objects->erase(object);
    delete object;
    return CUBLAS_STATUS_SUCCESS;
}

template <class T> cublasStatus_t set(T *to, const void *from, size_t bytes) {
    if (!from || bytes != sizeof(T)) return CUBLAS_STATUS_INVALID_VALUE;
    memcpy(to, from, sizeof(T));
    return CUBLAS_STATUS_SUCCESS;
}

size_t width(uint32_t type) { return type == R_16BF ? 2 : 4; }

// ---------------------------------------------------------------------------------------------------------------
// What is being asked for, checked.

struct Problem {
    bool transpose_a = false, transpose_b = false, tf32 = false;
    uint32_t in = 0, out = 0; // types
    size_t m = 0, n = 0, k = 0, batch = 0;
    Layout a, b, c, d;
};

cublasStatus_t check_layout(const Layout &layout) {
    if (layout.type != R_32F && layout.type != R_16BF) return CUBLAS_STATUS_NOT_SUPPORTED;
    if (layout.order != 0) return CUBLAS_STATUS_NOT_SUPPORTED;
    if (!layout.rows || !layout.columns || layout.batch < 1 || layout.leading < (int64_t)layout.rows) {
        say("cublasLt: a layout of %llu x %llu with leading dimension %lld and %d matrices makes no sense",
            (unsigned long long)layout.rows, (unsigned long long)layout.columns, (long long)layout.leading, layout.batch);
        return CUBLAS_STATUS_INVALID_VALUE;
    }
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t understand(const void *operation, const void *const layouts[4], Problem *problem) {
    auto *matmul = get<Matmul>(operation, Kind::Operation);
    const Layout *given[4];
    for (int i = 0; i < 4; i++) given[i] = get<Layout>(layouts[i], Kind::Layout);
    if (!matmul || !given[0] || !given[1] || !given[2] || !given[3]) return CUBLAS_STATUS_INVALID_VALUE;
    for (const Layout *layout : given) {
        if (cublasStatus_t status = check_layout(*layout)) return status;
    }
    const Layout &a = *given[0], &b = *given[1], &c = *given[2], &d = *given[3];
    bool known_compute = matmul->compute == COMPUTE_32F || matmul->compute == COMPUTE_32F_PEDANTIC ||
                         matmul->compute == COMPUTE_32F_FAST_TF32;
    bool known_types = a.type == b.type && c.type == d.type && (a.type == R_16BF || d.type == R_32F);
    if (!known_compute || !known_types || matmul->scale != R_32F || matmul->epilogue != 1 || matmul->pointer_mode != 0 ||
        matmul->transpose_c != 0 || (matmul->compute == COMPUTE_32F_FAST_TF32 && a.type != R_32F)) {
        return CUBLAS_STATUS_NOT_SUPPORTED;
    }
    // 2 is the conjugate transpose, which is the transpose of real matrices.
    if ((unsigned)matmul->transpose_a > 2 || (unsigned)matmul->transpose_b > 2) return CUBLAS_STATUS_INVALID_VALUE;
    Problem p;
    p.transpose_a = matmul->transpose_a != 0;
    p.transpose_b = matmul->transpose_b != 0;
    p.tf32 = matmul->compute == COMPUTE_32F_FAST_TF32;
    p.in = a.type;
    p.out = d.type;
    p.m = d.rows;
    p.n = d.columns;
    p.k = p.transpose_a ? a.rows : a.columns;
    p.batch = (size_t)d.batch;
    p.a = a;
    p.b = b;
    p.c = c;
    p.d = d;
    size_t rows_a = p.transpose_a ? a.columns : a.rows;
    size_t rows_b = p.transpose_b ? b.columns : b.rows, columns_b = p.transpose_b ? b.rows : b.columns;
    if (rows_a != p.m || rows_b != p.k || columns_b != p.n || c.rows != p.m || c.columns != p.n) {
        say("cublasLt: op(A) of %zu x %zu times op(B) of %zu x %zu does not give D of %zu x %zu (C: %zu x %zu)", rows_a, p.k,
            rows_b, columns_b, p.m, p.n, (size_t)c.rows, (size_t)c.columns);
        return CUBLAS_STATUS_INVALID_VALUE;
    }
    if (a.batch != d.batch || b.batch != d.batch || c.batch != d.batch) return CUBLAS_STATUS_INVALID_VALUE;
    if (d.batch > 1) {
        // Matrices of a batch may share their input but not their output.
        size_t span = (size_t)d.leading * (d.columns - 1) + d.rows;
        bool interleaved = (size_t)std::llabs(d.stride) >= d.rows && (size_t)std::llabs(d.stride) * d.batch <= (size_t)d.leading;
        if ((size_t)std::llabs(d.stride) < span && !interleaved) {
            say("cublasLt: the matrices of D overlap (stride %lld)", (long long)d.stride);
            return CUBLAS_STATUS_INVALID_VALUE;
        }
    }
    *problem = p;
    return CUBLAS_STATUS_SUCCESS;
}

// The range that the matrices of a layout cover, from the first of them.
void covered(const Layout &layout, const void *first, const uint8_t **start, size_t *bytes) {
    int64_t span = layout.leading * (int64_t)(layout.columns - 1) + (int64_t)layout.rows;
    int64_t reach = layout.stride * (layout.batch - 1);
    int64_t low = reach < 0 ? reach : 0, high = (reach > 0 ? reach : 0) + span;
    *start = static_cast<const uint8_t *>(first) + low * (int64_t)width(layout.type);
    *bytes = (size_t)(high - low) * width(layout.type);
}

// ---------------------------------------------------------------------------------------------------------------
// The arithmetic.

// Tests multiply a lot; the rest of the libraries can do with the little optimisation that they are built with.
#pragma GCC push_options
#pragma GCC optimize("O3")

// TF32 keeps ten bits of the fraction.
float to_tf32(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    if ((bits & 0x7f800000) == 0x7f800000) return value;
    bits = (bits + 0x1000) & ~0x1fffu;
    memcpy(&value, &bits, 4);
    return value;
}

float load(const void *at, size_t index, uint32_t type) {
    if (type == R_16BF) return from_bf16(static_cast<const uint16_t *>(at)[index]);
    return static_cast<const float *>(at)[index];
}

void store(void *at, size_t index, uint32_t type, float value) {
    if (type == R_16BF) static_cast<uint16_t *>(at)[index] = to_bf16(value);
    else static_cast<float *>(at)[index] = value;
}

constexpr size_t TILE_M = 4, TILE_N = 8;
typedef float Vector __attribute__((vector_size(16), aligned(4)));

// sums[i][j] = sum over k of a[k][i] * b[k][j], in the order of k.
void tile(size_t k, const float *a, const float *b, float sums[TILE_M][TILE_N]) {
    Vector low[TILE_M] = {}, high[TILE_M] = {};
    for (size_t p = 0; p < k; p++, a += TILE_M, b += TILE_N) {
        Vector first, second;
        memcpy(&first, b, sizeof first);
        memcpy(&second, b + 4, sizeof second);
        for (size_t i = 0; i < TILE_M; i++) {
            low[i] += a[i] * first;
            high[i] += a[i] * second;
        }
    }
    for (size_t i = 0; i < TILE_M; i++) {
        memcpy(&sums[i][0], &low[i], sizeof low[i]);
        memcpy(&sums[i][4], &high[i], sizeof high[i]);
    }
}

// Strips of `tile_width` rows of op(X)^T, each stored k-major and padded with zeros: packed[strip][p][i].
// Element (i, p) of the operand lies at i * along + p * across.
void pack(std::vector<float> &packed, const void *from, uint32_t type, size_t count, size_t k, size_t along, size_t across,
          size_t tile_width, bool tf32) {
    size_t strips = (count + tile_width - 1) / tile_width;
    packed.assign(strips * tile_width * k, 0.0f);
    for (size_t i = 0; i < count; i++) {
        float *to = packed.data() + (i / tile_width) * tile_width * k + i % tile_width;
        for (size_t p = 0; p < k; p++) {
            float value = load(from, i * along + p * across, type);
            to[p * tile_width] = tf32 ? to_tf32(value) : value;
        }
    }
}

void multiply(const Problem &p, float alpha, float beta, const void *a, const void *b, const void *c, void *d) {
    std::vector<float> left, right;
    size_t lda = (size_t)p.a.leading, ldb = (size_t)p.b.leading;
    pack(left, a, p.in, p.m, p.k, p.transpose_a ? lda : 1, p.transpose_a ? 1 : lda, TILE_M, p.tf32);
    pack(right, b, p.in, p.n, p.k, p.transpose_b ? 1 : ldb, p.transpose_b ? ldb : 1, TILE_N, p.tf32);
    float sums[TILE_M][TILE_N];
    for (size_t column = 0; column < p.n; column += TILE_N) {
        for (size_t row = 0; row < p.m; row += TILE_M) {
            tile(p.k, left.data() + row * p.k, right.data() + column * p.k, sums);
            for (size_t j = column; j < p.n && j < column + TILE_N; j++) {
                for (size_t i = row; i < p.m && i < row + TILE_M; i++) {
                    float value = alpha * sums[i - row][j - column];
                    // Without a share of C, C is not read: it may hold anything.
                    if (beta != 0) value += beta * load(c, i + j * (size_t)p.c.leading, p.out);
                    store(d, i + j * (size_t)p.d.leading, p.out, value);
                }
            }
        }
    }
}

#pragma GCC pop_options

const char *const LABELS[4] = {"cublasLtMatmul: A", "cublasLtMatmul: B", "cublasLtMatmul: C", "cublasLtMatmul: D"};

} // namespace

extern "C" {

size_t cublasLtGetVersion(void) { return 120804; }

const char *cublasLtGetStatusString(cublasStatus_t status) {
    switch (status) {
    case CUBLAS_STATUS_SUCCESS: return "success";
    case CUBLAS_STATUS_NOT_INITIALIZED: return "the library was not initialized";
    case CUBLAS_STATUS_ALLOC_FAILED: return "the resource allocation failed";
    case CUBLAS_STATUS_INVALID_VALUE: return "an invalid value was used as input";
    case CUBLAS_STATUS_ARCH_MISMATCH: return "the requested feature is not supported by the device's architecture";
    case CUBLAS_STATUS_MAPPING_ERROR: return "an access to GPU memory space failed";
    case CUBLAS_STATUS_EXECUTION_FAILED: return "the GPU program failed to execute";
    case CUBLAS_STATUS_INTERNAL_ERROR: return "an internal operation failed";
    case CUBLAS_STATUS_NOT_SUPPORTED: return "the functionality requested is not supported";
    default: return "an unknown status";
    }
}

cublasStatus_t cublasLtCreate(void **handle) {
    ENTRY(cublasStatus_t);
    if (!handle) return CUBLAS_STATUS_INVALID_VALUE;
    if (!current()) return CUBLAS_STATUS_NOT_INITIALIZED;
    *handle = keep(new Object(Kind::Handle));
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtDestroy(void *handle) {
    ENTRY(cublasStatus_t);
    return drop(handle, Kind::Handle) ? CUBLAS_STATUS_NOT_INITIALIZED : CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulDescCreate(void **operation, int compute, int scale) {
    ENTRY(cublasStatus_t);
    if (!operation) return CUBLAS_STATUS_INVALID_VALUE;
    *operation = keep(new Matmul(compute, scale));
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulDescDestroy(void *operation) {
    ENTRY(cublasStatus_t);
    return drop(operation, Kind::Operation);
}

cublasStatus_t cublasLtMatmulDescSetAttribute(void *operation, int which, const void *value, size_t bytes) {
    ENTRY(cublasStatus_t);
    auto *matmul = get<Matmul>(operation, Kind::Operation);
    if (!matmul) return CUBLAS_STATUS_INVALID_VALUE;
    switch (which) {
    case 0: return set(&matmul->compute, value, bytes);
    case 1: return set(&matmul->scale, value, bytes);
    case 2: return set(&matmul->pointer_mode, value, bytes);
    case 3: return set(&matmul->transpose_a, value, bytes);
    case 4: return set(&matmul->transpose_b, value, bytes);
    case 5: return set(&matmul->transpose_c, value, bytes);
    case 7: return set(&matmul->epilogue, value, bytes);
    default: return CUBLAS_STATUS_NOT_SUPPORTED;
    }
}

cublasStatus_t cublasLtMatrixLayoutCreate(void **layout, uint32_t type, uint64_t rows, uint64_t columns, int64_t leading) {
    ENTRY(cublasStatus_t);
    if (!layout) return CUBLAS_STATUS_INVALID_VALUE;
    *layout = keep(new Layout(type, rows, columns, leading));
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatrixLayoutDestroy(void *layout) {
    ENTRY(cublasStatus_t);
    return drop(layout, Kind::Layout);
}

cublasStatus_t cublasLtMatrixLayoutSetAttribute(void *handle, int which, const void *value, size_t bytes) {
    ENTRY(cublasStatus_t);
    auto *layout = get<Layout>(handle, Kind::Layout);
    if (!layout) return CUBLAS_STATUS_INVALID_VALUE;
    switch (which) {
    case 0: return set(&layout->type, value, bytes);
    case 1: return set(&layout->order, value, bytes);
    case 2: return set(&layout->rows, value, bytes);
    case 3: return set(&layout->columns, value, bytes);
    case 4: return set(&layout->leading, value, bytes);
    case 5: return set(&layout->batch, value, bytes);
    case 6: return set(&layout->stride, value, bytes);
    default: return CUBLAS_STATUS_NOT_SUPPORTED;
    }
}

cublasStatus_t cublasLtMatmulPreferenceCreate(void **preference) {
    ENTRY(cublasStatus_t);
    if (!preference) return CUBLAS_STATUS_INVALID_VALUE;
    *preference = keep(new Preference);
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulPreferenceDestroy(void *preference) {
    ENTRY(cublasStatus_t);
    return drop(preference, Kind::Preference);
}

cublasStatus_t cublasLtMatmulPreferenceSetAttribute(void *handle, int which, const void *value, size_t bytes) {
    ENTRY(cublasStatus_t);
    auto *preference = get<Preference>(handle, Kind::Preference);
    if (!preference) return CUBLAS_STATUS_INVALID_VALUE;
    uint32_t number = 0;
    switch (which) {
    case 0: case 3: return set(&number, value, bytes); // search mode, reduction schemes: nothing to choose from
    case 1: return set(&preference->workspace, value, bytes);
    case 5: case 6: case 7: case 8: {
        if (cublasStatus_t status = set(&number, value, bytes)) return status;
        if (number == 0 || (number & (number - 1))) return CUBLAS_STATUS_INVALID_VALUE;
        preference->alignment[which - 5] = number;
        return CUBLAS_STATUS_SUCCESS;
    }
    default: return CUBLAS_STATUS_NOT_SUPPORTED;
    }
}

cublasStatus_t cublasLtMatmulAlgoGetHeuristic(void *handle, void *operation, void *a, void *b, void *c, void *d,
                                              void *preference_handle, int requested, HeuristicResult *results,
                                              int *returned) {
    ENTRY(cublasStatus_t);
    auto *preference = get<Preference>(preference_handle, Kind::Preference);
    if (!get<Object>(handle, Kind::Handle) || !preference || requested < 1 || !results || !returned)
        return CUBLAS_STATUS_INVALID_VALUE;
    *returned = 0;
    const void *const layouts[4] = {a, b, c, d};
    Problem problem;
    if (cublasStatus_t status = understand(operation, layouts, &problem)) return status;
    HeuristicResult result = {};
    result.algorithm.magic = ALGORITHM;
    result.algorithm.workspace = preference->workspace >= WORKSPACE ? WORKSPACE : 0;
    for (int i = 0; i < 4; i++) {
        uint32_t alignment = preference->alignment[i];
        result.algorithm.alignment[i] = alignment < VECTOR ? alignment : VECTOR;
    }
    result.workspace = result.algorithm.workspace;
    result.waves = 1;
    results[0] = result;
    *returned = 1;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmul(void *handle, void *operation, const void *alpha, const void *a, void *a_layout, const void *b,
                              void *b_layout, const void *beta, const void *c, void *c_layout, void *d, void *d_layout,
                              const Algorithm *algorithm, void *workspace, size_t workspace_bytes, void *stream_handle) {
    ENTRY(cublasStatus_t);
    if (!get<Object>(handle, Kind::Handle)) return CUBLAS_STATUS_NOT_INITIALIZED;
    if (!alpha || !beta || !a || !b || !c || !d) return CUBLAS_STATUS_INVALID_VALUE;
    const void *const layouts[4] = {a_layout, b_layout, c_layout, d_layout};
    Problem problem;
    if (cublasStatus_t status = understand(operation, layouts, &problem)) return status;
    const void *const operands[4] = {a, b, c, d};
    uint64_t wanted = 0;
    if (algorithm) {
        if (algorithm->magic != ALGORITHM) return CUBLAS_STATUS_INVALID_VALUE;
        wanted = algorithm->workspace;
        for (int i = 0; i < 4; i++) {
            // The library's algorithms load vectors, and fail on operands less aligned than they were promised.
            if (offset_in_allocation(operands[i]) % algorithm->alignment[i] == 0) continue;
            say("%s is less aligned than the %u bytes that the algorithm was chosen for", LABELS[i], algorithm->alignment[i]);
            return CUBLAS_STATUS_NOT_SUPPORTED;
        }
    }
    if (wanted && (!workspace || workspace_bytes < wanted || offset_in_allocation(workspace) % 16)) {
        say("cublasLtMatmul: the algorithm needs %llu bytes of aligned workspace", (unsigned long long)wanted);
        return CUBLAS_STATUS_INVALID_VALUE;
    }
    if (c == d && (problem.c.leading != problem.d.leading || problem.c.stride != problem.d.stride))
        return CUBLAS_STATUS_INVALID_VALUE;

    Lock lock(state().mutex);
    ContextPtr context;
    if (int code = usable(lock, &context)) return code == INVALID_CONTEXT ? CUBLAS_STATUS_NOT_INITIALIZED
                                                                         : CUBLAS_STATUS_EXECUTION_FAILED;
    StreamPtr stream = find_stream(lock, stream_handle, context);
    if (!stream || stream->context != context) return CUBLAS_STATUS_INVALID_VALUE;
    const uint8_t *starts[4];
    size_t bytes[4];
    const Layout *each[4] = {&problem.a, &problem.b, &problem.c, &problem.d};
    for (int i = 0; i < 4; i++) {
        covered(*each[i], operands[i], &starts[i], &bytes[i]);
        if (check_argument(lock, LABELS[i], starts[i], bytes[i])) return CUBLAS_STATUS_INVALID_VALUE;
    }
    if (wanted && check_argument(lock, "cublasLtMatmul: workspace", workspace, wanted)) return CUBLAS_STATUS_INVALID_VALUE;

    if (settings().transpose_bug && problem.transpose_a) {
        problem.transpose_a = false;
        if (problem.m != problem.k) problem.a.leading = (int64_t)problem.m; // the same memory, read the wrong way
    }
    float scale_ab, scale_c;
    memcpy(&scale_ab, alpha, 4);
    memcpy(&scale_c, beta, 4);
    Operation work;
    work.name = "cublasLtMatmul";
    work.detail = "m=" + std::to_string(problem.m) + " n=" + std::to_string(problem.n) + " k=" + std::to_string(problem.k) +
                  " batch=" + std::to_string(problem.batch) + (problem.transpose_a ? " transpose_a" : "") +
                  (problem.transpose_b ? " transpose_b" : "");
    int device = context->device;
    struct Range {
        const uint8_t *start;
        size_t bytes;
    };
    std::vector<Range> ranges;
    for (int i = 0; i < 4; i++) ranges.push_back({starts[i], bytes[i]});
    work.run = [=]() -> int {
        for (size_t i = 0; i < 4; i++) {
            if (i == 2 && scale_c == 0) continue;
            if (int code = check_operand(LABELS[i], device, ranges[i].start, ranges[i].bytes)) return code;
        }
        // The workspace is written to, so that somebody else's use of it at the same time shows.
        volatile uint64_t *mark = static_cast<uint64_t *>(workspace);
        uint64_t token = reinterpret_cast<uint64_t>(&ranges) * 0x9e3779b97f4a7c15ull | 1;
        if (wanted) {
            if (int code = check_operand("cublasLtMatmul: workspace", device, workspace, wanted)) return code;
            for (size_t i = 0; i < wanted / 8; i++) mark[i] = token;
        }
        for (size_t i = 0; i < problem.batch; i++) {
            auto in = [&](const void *first, const Layout &layout) {
                return static_cast<const uint8_t *>(first) + (int64_t)i * layout.stride * (int64_t)width(layout.type);
            };
            multiply(problem, scale_ab, scale_c, in(a, problem.a), in(b, problem.b), in(c, problem.c),
                     const_cast<uint8_t *>(in(d, problem.d)));
        }
        for (size_t i = 0; i < wanted / 8; i++) {
            if (mark[i] == token) continue;
            say("cublasLtMatmul: its workspace was written to by something else while it ran");
            memset(const_cast<uint8_t *>(ranges[3].start), 0xFF, ranges[3].bytes);
            break;
        }
        return SUCCESS;
    };
    enqueue(lock, stream, std::move(work));
    return CUBLAS_STATUS_SUCCESS;
}

} // extern "C"
