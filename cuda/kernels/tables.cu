// Embedding tables. A table holds the rows `first..first + table_rows` of a larger one.

/// The table's row for `index`, or -1 if the table lacks it.
__device__ __forceinline__ long long local_row(unsigned index, int first, int table_rows) {
    long long row = (long long)index - first;
    return row >= 0 && row < table_rows ? row : -1;
}

/// Row `i` of `to` becomes the table's row for `indices[i]`, or 0 if the table lacks it. Rows(count of indices).
template <class T>
__device__ void gather_rows(
    int first,
    int table_rows,
    int width,
    const unsigned* indices,
    const T* table,
    T* to
) {
    long long row = local_row(indices[blockIdx.x], first, table_rows);
    to = row_of(to, blockIdx.x, width);
    for (int i = threadIdx.x; i < width; i += BLOCK) {
        to[i] = row < 0 ? from_float<T>(0.0f) : row_of(table, row, width)[i];
    }
}

extern "C" __global__ void gather_rows_f32(
    int first,
    int table_rows,
    int width,
    const unsigned* indices,
    const float* table,
    float* to
) {
    gather_rows(first, table_rows, width, indices, table, to);
}

extern "C" __global__ void gather_rows_bf16(
    int first,
    int table_rows,
    int width,
    const unsigned* indices,
    const bf16* table,
    bf16* to
) {
    gather_rows(first, table_rows, width, indices, table, to);
}

/// Adds row `i` of `from` to the table's row for `indices[i]`, if the table has it. Rows(count of indices).
template <class T>
__device__ void scatter_add_rows(
    int first,
    int table_rows,
    int width,
    const unsigned* indices,
    const T* from,
    float* table
) {
    long long row = local_row(indices[blockIdx.x], first, table_rows);
    if (row < 0) {
        return;
    }
    from = row_of(from, blockIdx.x, width);
    for (int i = threadIdx.x; i < width; i += BLOCK) {
        atomicAdd(&row_of(table, row, width)[i], to_float(from[i]));
    }
}

extern "C" __global__ void scatter_add_rows_f32(
    int first,
    int table_rows,
    int width,
    const unsigned* indices,
    const float* from,
    float* table
) {
    scatter_add_rows(first, table_rows, width, indices, from, table);
}

extern "C" __global__ void scatter_add_rows_bf16(
    int first,
    int table_rows,
    int width,
    const unsigned* indices,
    const bf16* from,
    float* table
) {
    scatter_add_rows(first, table_rows, width, indices, from, table);
}

/// Adds the table's row for a position to each of its `repeat` rows. Elements(positions * repeat * width).
template <class T>
__device__ void add_positions(long long n, int repeat, int width, const T* table, T* to) {
    long long i = element();
    if (i < n) {
        Division by_column = divide(i, width);
        long long position = divide(by_column.quotient, repeat).quotient;
        float of_position = to_float(row_of(table, position, width)[by_column.remainder]);
        to[i] = from_float<T>(to_float(to[i]) + of_position);
    }
}

extern "C" __global__ void add_positions_f32(
    long long n,
    int repeat,
    int width,
    const float* table,
    float* to
) {
    add_positions(n, repeat, width, table, to);
}

extern "C" __global__ void add_positions_bf16(
    long long n,
    int repeat,
    int width,
    const bf16* table,
    bf16* to
) {
    add_positions(n, repeat, width, table, to);
}

/// Adds the sum of a position's `repeat` rows to the table's row for it. Elements(positions * width).
template <class T>
__device__ void sum_positions(int positions, int repeat, int width, const T* from, float* table) {
    long long i = element();
    if (i < (long long)positions * width) {
        Division at = divide(i, width);
        float sum = 0.0f;
        for (int j = 0; j < repeat; j++) {
            sum += to_float(row_of(from, at.quotient * repeat + j, width)[at.remainder]);
        }
        table[i] += sum;
    }
}

extern "C" __global__ void sum_positions_f32(
    int positions,
    int repeat,
    int width,
    const float* from,
    float* table
) {
    sum_positions(positions, repeat, width, from, table);
}

extern "C" __global__ void sum_positions_bf16(
    int positions,
    int repeat,
    int width,
    const bf16* from,
    float* table
) {
    sum_positions(positions, repeat, width, from, table);
}
