// Copies, sums, and activations.

/// Copies between precisions. Elements(n).
template <class A, class B>
__device__ void convert(long long n, const A* from, B* to) {
    long long i = element();
    if (i < n) {
        to[i] = from_float<B>(to_float(from[i]));
    }
}

extern "C" __global__ void convert_f32_to_bf16(long long n, const float* from, bf16* to) {
    convert(n, from, to);
}

extern "C" __global__ void convert_bf16_to_f32(long long n, const bf16* from, float* to) {
    convert(n, from, to);
}

/// `to += from`. Elements(n).
template <class T>
__device__ void add(long long n, const T* from, T* to) {
    long long i = element();
    if (i < n) {
        to[i] = from_float<T>(to_float(to[i]) + to_float(from[i]));
    }
}

extern "C" __global__ void add_f32(long long n, const float* from, float* to) {
    add(n, from, to);
}

extern "C" __global__ void add_bf16(long long n, const bf16* from, bf16* to) {
    add(n, from, to);
}

/// `to *= factor`. Elements(n).
template <class T>
__device__ void scale(long long n, float factor, T* to) {
    long long i = element();
    if (i < n) {
        to[i] = from_float<T>(to_float(to[i]) * factor);
    }
}

extern "C" __global__ void scale_f32(long long n, float factor, float* to) {
    scale(n, factor, to);
}

extern "C" __global__ void scale_bf16(long long n, float factor, bf16* to) {
    scale(n, factor, to);
}

/// Copies `batch` matrices of `m` rows and `n` columns, with any strides. Elements(batch * m * n).
template <class T>
__device__ void copy_matrices(
    int batch,
    int m,
    int n,
    const T* from,
    long long from_row,
    long long from_column,
    long long from_batch,
    T* to,
    long long to_row,
    long long to_column,
    long long to_batch
) {
    Division by_column = divide(element(), n);
    Division by_row = divide(by_column.quotient, m);
    long long matrix = by_row.quotient;
    int row = by_row.remainder, column = by_column.remainder;
    if (matrix < batch) {
        to[matrix * to_batch + row * to_row + column * to_column] =
            from[matrix * from_batch + row * from_row + column * from_column];
    }
}

extern "C" __global__ void copy_matrices_f32(
    int batch,
    int m,
    int n,
    const float* from,
    long long from_row,
    long long from_column,
    long long from_batch,
    float* to,
    long long to_row,
    long long to_column,
    long long to_batch
) {
    copy_matrices(batch, m, n, from, from_row, from_column, from_batch, to, to_row, to_column, to_batch);
}

extern "C" __global__ void copy_matrices_bf16(
    int batch,
    int m,
    int n,
    const bf16* from,
    long long from_row,
    long long from_column,
    long long from_batch,
    bf16* to,
    long long to_row,
    long long to_column,
    long long to_batch
) {
    copy_matrices(batch, m, n, from, from_row, from_column, from_batch, to, to_row, to_column, to_batch);
}

/// Adds one row to each of the rows of `to`. Elements(rows * width).
template <class T>
__device__ void add_row(long long n, int width, const T* row, T* to) {
    long long i = element();
    if (i < n) {
        to[i] = from_float<T>(to_float(to[i]) + to_float(row[divide(i, width).remainder]));
    }
}

extern "C" __global__ void add_row_f32(long long n, int width, const float* row, float* to) {
    add_row(n, width, row, to);
}

extern "C" __global__ void add_row_bf16(long long n, int width, const bf16* row, bf16* to) {
    add_row(n, width, row, to);
}

/// Adds the sum of the rows to `to`. Columns(width).
template <class T>
__device__ void sum_rows(int rows, int width, const T* from, float* to) {
    int column = blockIdx.x * WARP + threadIdx.x;
    float sum = 0.0f;
    if (column < width) {
        for (int row = threadIdx.y; row < rows; row += COLUMN_THREADS) {
            sum += to_float(row_of(from, row, width)[column]);
        }
    }
    sum = column_sum(sum);
    if (threadIdx.y == 0 && column < width) {
        to[column] += sum;
    }
}

extern "C" __global__ void sum_rows_f32(int rows, int width, const float* from, float* to) {
    sum_rows(rows, width, from, to);
}

extern "C" __global__ void sum_rows_bf16(int rows, int width, const bf16* from, float* to) {
    sum_rows(rows, width, from, to);
}

/// Each block's share of the sum of squares, in double. Blocks of 256 threads, 256 of them or any other number.
template <class T>
__device__ void sum_of_squares(long long n, const T* x, double* partial) {
    double sum = 0.0;
    for (long long i = element(); i < n; i += (long long)gridDim.x * blockDim.x) {
        double value = to_float(x[i]);
        sum += value * value;
    }
    sum = block_sum(sum);
    if (threadIdx.x == 0) {
        partial[blockIdx.x] = sum;
    }
}

extern "C" __global__ void sum_of_squares_f32(long long n, const float* x, double* partial) {
    sum_of_squares(n, x, partial);
}

extern "C" __global__ void sum_of_squares_bf16(long long n, const bf16* x, double* partial) {
    sum_of_squares(n, x, partial);
}

/// The sum of `partial`. Single.
extern "C" __global__ void sum_partials(int count, const double* partial, double* result) {
    double sum = 0.0;
    for (int i = threadIdx.x; i < count; i += blockDim.x) {
        sum += partial[i];
    }
    sum = block_sum(sum);
    if (threadIdx.x == 0) {
        *result = sum;
    }
}

/// GELU's tanh form as `x sigmoid(2z)`, since `1 + tanh z = 2 sigmoid(2z)`; this is `2z` of `x`.
__device__ __forceinline__ float gelu_argument(float x) {
    constexpr float TWICE_ROOT_OF_2_OVER_PI = 1.5957691216057308f;
    return TWICE_ROOT_OF_2_OVER_PI * x * (1.0f + 0.044715f * x * x);
}

/// The derivative of `gelu_argument`.
__device__ __forceinline__ float gelu_argument_slope(float x) {
    constexpr float TWICE_ROOT_OF_2_OVER_PI = 1.5957691216057308f;
    return TWICE_ROOT_OF_2_OVER_PI * (1.0f + 3.0f * 0.044715f * x * x);
}

/// GELU. Elements(n).
template <class T>
__device__ void gelu_forward(long long n, const T* inner, T* outer) {
    long long i = element();
    if (i < n) {
        float x = to_float(inner[i]);
        outer[i] = from_float<T>(x * sigmoid(gelu_argument(x)));
    }
}

extern "C" __global__ void gelu_forward_f32(long long n, const float* inner, float* outer) {
    gelu_forward(n, inner, outer);
}

extern "C" __global__ void gelu_forward_bf16(long long n, const bf16* inner, bf16* outer) {
    gelu_forward(n, inner, outer);
}

/// GELU's backward: `inner` changes from value to gradient, `outer` from gradient to value. Elements(n).
template <class T>
__device__ void gelu_backward(long long n, T* inner, T* outer) {
    long long i = element();
    if (i < n) {
        float x = to_float(inner[i]), gradient = to_float(outer[i]);
        float gate = sigmoid(gelu_argument(x));
        outer[i] = from_float<T>(x * gate);
        inner[i] = from_float<T>(gradient * gate * (1.0f + x * (1.0f - gate) * gelu_argument_slope(x)));
    }
}

extern "C" __global__ void gelu_backward_f32(long long n, float* inner, float* outer) {
    gelu_backward(n, inner, outer);
}

extern "C" __global__ void gelu_backward_bf16(long long n, bf16* inner, bf16* outer) {
    gelu_backward(n, inner, outer);
}

/// SwiGLU of rows that hold `width` gates, then `width` ups. Elements(rows * width).
template <class T>
__device__ void swiglu_forward(long long n, int width, const T* inner, T* outer) {
    long long i = element();
    if (i < n) {
        Division at = divide(i, width);
        const T* row = row_of(inner, 2 * at.quotient, width);
        float gate = to_float(row[at.remainder]), up = to_float(row[width + at.remainder]);
        outer[i] = from_float<T>(gate * sigmoid(gate) * up);
    }
}

extern "C" __global__ void swiglu_forward_f32(long long n, int width, const float* inner, float* outer) {
    swiglu_forward(n, width, inner, outer);
}

extern "C" __global__ void swiglu_forward_bf16(long long n, int width, const bf16* inner, bf16* outer) {
    swiglu_forward(n, width, inner, outer);
}

/// SwiGLU's backward: `inner` changes from values to gradients, `outer` from gradient to value.
/// Elements(rows * width).
template <class T>
__device__ void swiglu_backward(long long n, int width, T* inner, T* outer) {
    long long i = element();
    if (i < n) {
        Division at = divide(i, width);
        T* row = row_of(inner, 2 * at.quotient, width);
        float gate = to_float(row[at.remainder]), up = to_float(row[width + at.remainder]);
        float gradient = to_float(outer[i]);
        float open = sigmoid(gate);
        float silu = gate * open;
        outer[i] = from_float<T>(silu * up);
        row[width + at.remainder] = from_float<T>(gradient * silu);
        row[at.remainder] = from_float<T>(gradient * up * open * (1.0f + gate * (1.0f - open)));
    }
}

extern "C" __global__ void swiglu_backward_f32(long long n, int width, float* inner, float* outer) {
    swiglu_backward(n, width, inner, outer);
}

extern "C" __global__ void swiglu_backward_bf16(long long n, int width, bf16* inner, bf16* outer) {
    swiglu_backward(n, width, inner, outer);
}
