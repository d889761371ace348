// What all kernels share. The files of this folder, this one first, make one translation unit that includes no
// header: NVRTC compiles it at run time for a GPU, and g++ under tests/software-gpu/shim.h for a CPU.
//
// A kernel's name ends in the type of its working precision, f32 or bf16; a `float*` is full precision whatever the
// name. Arithmetic is in float but where a comment says double. A kernel's comment names its launch form:
//
//   Elements(n)  ceil(n / 256) blocks of 256 threads, a thread per element
//   Rows(r)      r blocks of 256 threads, a block per row
//   Columns(w)   ceil(w / 32) blocks of (32, 8) threads: x is the column, y strides over the rows
//   Single       one block of 256 threads

constexpr int WARP = 32;
constexpr int BLOCK = 256;
constexpr unsigned WHOLE_WARP = 0xffffffffu;
/// Threads that share a column in the form Columns.
constexpr int COLUMN_THREADS = 8;

/// The upper half of a float.
struct bf16 {
    unsigned short bits;
};

__device__ __forceinline__ float to_float(float x) {
    return x;
}

__device__ __forceinline__ float to_float(bf16 x) {
    return __uint_as_float((unsigned)x.bits << 16);
}

template <class T>
__device__ T from_float(float x);

template <>
__device__ __forceinline__ float from_float<float>(float x) {
    return x;
}

/// Rounds to the nearest, ties to even.
template <>
__device__ __forceinline__ bf16 from_float<bf16>(float x) {
    bf16 rounded;
#ifdef __CUDA_ARCH__
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(rounded.bits) : "f"(x));
#else
    unsigned bits = __float_as_uint(x);
    bool is_nan = (bits & 0x7fffffffu) > 0x7f800000u;
    rounded.bits = is_nan ? 0x7fff : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
#endif
    return rounded;
}

__device__ __forceinline__ float negative_infinity() {
    return __uint_as_float(0xff800000u);
}

__device__ __forceinline__ float sigmoid(float x) {
    return 1.0f / (1.0f + expf(-x));
}

/// The element of this thread in the form Elements.
__device__ __forceinline__ long long element() {
    return (long long)blockIdx.x * blockDim.x + threadIdx.x;
}

/// The row `index` of rows of `width`.
template <class T>
__device__ __forceinline__ T* row_of(T* rows, long long index, int width) {
    return rows + index * width;
}

struct Division {
    long long quotient;
    int remainder;
};

/// `index / divisor` of an index that is not negative. GPUs divide 32 bits much faster than 64.
__device__ __forceinline__ Division divide(long long index, int divisor) {
    if (index <= 0xffffffffll) {
        unsigned quotient = (unsigned)index / (unsigned)divisor;
        return {quotient, (int)((unsigned)index - quotient * (unsigned)divisor)};
    }
    long long quotient = index / divisor;
    return {quotient, (int)(index - quotient * divisor)};
}

struct Add {
    template <class A>
    __device__ __forceinline__ A operator()(A a, A b) const {
        return a + b;
    }
};

struct Larger {
    __device__ __forceinline__ float operator()(float a, float b) const {
        return fmaxf(a, b);
    }
};

/// Combines the values of `lanes` neighbouring threads, a power of two up to a warp; each of them gets the result.
template <class Combine, class A>
__device__ __forceinline__ A reduce_lanes(A value, int lanes) {
    Combine combine;
    for (int distance = lanes / 2; distance > 0; distance /= 2) {
        value = combine(value, __shfl_xor_sync(WHOLE_WARP, value, distance));
    }
    return value;
}

/// Combines the values of a block of whole warps; every thread gets the result, in an order of operations that does
/// not vary. All threads of the block must come here.
template <class Combine, class A>
__device__ A reduce_block(A value) {
    __shared__ A of_warps[WARP];
    Combine combine;
    value = reduce_lanes<Combine>(value, WARP);
    if (threadIdx.x % WARP == 0) {
        of_warps[threadIdx.x / WARP] = value;
    }
    __syncthreads();
    A total = of_warps[0];
    for (int warp = 1; warp < (int)blockDim.x / WARP; warp++) {
        total = combine(total, of_warps[warp]);
    }
    // The next call writes the same memory.
    __syncthreads();
    return total;
}

template <class A>
__device__ __forceinline__ A block_sum(A value) {
    return reduce_block<Add>(value);
}

__device__ __forceinline__ float block_max(float value) {
    return reduce_block<Larger>(value);
}

/// Sums the values of the threads that share a column in the form Columns; the threads with y = 0 get the result.
/// All threads of the block must come here.
__device__ __forceinline__ float column_sum(float value) {
    __shared__ float of_threads[COLUMN_THREADS][WARP];
    of_threads[threadIdx.y][threadIdx.x] = value;
    __syncthreads();
    float total = 0.0f;
    if (threadIdx.y == 0) {
        for (int y = 0; y < COLUMN_THREADS; y++) {
            total += of_threads[y][threadIdx.x];
        }
    }
    // The next call writes the same memory.
    __syncthreads();
    return total;
}
