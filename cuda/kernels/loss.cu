// Cross-entropy, in steps between which ranks that share a vocabulary reduce. A row of logits holds the classes
// `first..first + width`.

/// The largest of each row. Rows.
template <class T>
__device__ void row_max(int width, const T* x, float* max) {
    x = row_of(x, blockIdx.x, width);
    float largest = negative_infinity();
    for (int i = threadIdx.x; i < width; i += BLOCK) {
        largest = fmaxf(largest, to_float(x[i]));
    }
    largest = block_max(largest);
    if (threadIdx.x == 0) {
        max[blockIdx.x] = largest;
    }
}

extern "C" __global__ void row_max_f32(int width, const float* x, float* max) {
    row_max(width, x, max);
}

extern "C" __global__ void row_max_bf16(int width, const bf16* x, float* max) {
    row_max(width, x, max);
}

/// `logits` become `exp(logit - max)`. `sums[2][rows]` receives the sum of each row, before rounding, then each
/// row's `logit - max` at the target, 0 if the target is not among the classes. Rows(rows).
template <class T>
__device__ void exponentials(
    int rows,
    int first,
    int width,
    const unsigned* targets,
    const float* max,
    T* logits,
    float* sums
) {
    int row = blockIdx.x;
    long long target = (long long)targets[row] - first;
    float shift = max[row];
    logits = row_of(logits, row, width);
    if (threadIdx.x == 0 && (target < 0 || target >= width)) {
        sums[(long long)rows + row] = 0.0f;
    }
    float sum = 0.0f;
    for (int i = threadIdx.x; i < width; i += BLOCK) {
        float shifted = to_float(logits[i]) - shift;
        if (i == target) {
            sums[(long long)rows + row] = shifted;
        }
        float exponential = expf(shifted);
        logits[i] = from_float<T>(exponential);
        sum += exponential;
    }
    sum = block_sum(sum);
    if (threadIdx.x == 0) {
        sums[row] = sum;
    }
}

extern "C" __global__ void exponentials_f32(
    int rows,
    int first,
    int width,
    const unsigned* targets,
    const float* max,
    float* logits,
    float* sums
) {
    exponentials(rows, first, width, targets, max, logits, sums);
}

extern "C" __global__ void exponentials_bf16(
    int rows,
    int first,
    int width,
    const unsigned* targets,
    const float* max,
    bf16* logits,
    float* sums
) {
    exponentials(rows, first, width, targets, max, logits, sums);
}

/// The sum over rows of `ln(sum) - target`, in double, of what `exponentials` left in `sums`. Single.
extern "C" __global__ void cross_entropy(int rows, const float* sums, double* result) {
    double total = 0.0;
    for (int row = threadIdx.x; row < rows; row += BLOCK) {
        total += log((double)sums[row]) - sums[(long long)rows + row];
    }
    total = block_sum(total);
    if (threadIdx.x == 0) {
        *result = total;
    }
}

/// Exponentials become `(exponential / sum - [target]) * scale`. Rows(rows).
template <class T>
__device__ void cross_entropy_backward(
    int first,
    int width,
    const unsigned* targets,
    const float* sums,
    float scale,
    T* exponentials
) {
    int row = blockIdx.x;
    long long target = (long long)targets[row] - first;
    float factor = scale / sums[row];
    exponentials = row_of(exponentials, row, width);
    for (int i = threadIdx.x; i < width; i += BLOCK) {
        float gradient = to_float(exponentials[i]) * factor;
        exponentials[i] = from_float<T>(i == target ? gradient - scale : gradient);
    }
}

extern "C" __global__ void cross_entropy_backward_f32(
    int /*rows*/,
    int first,
    int width,
    const unsigned* targets,
    const float* sums,
    float scale,
    float* exponentials
) {
    cross_entropy_backward(first, width, targets, sums, scale, exponentials);
}

extern "C" __global__ void cross_entropy_backward_bf16(
    int /*rows*/,
    int first,
    int width,
    const unsigned* targets,
    const float* sums,
    float scale,
    bf16* exponentials
) {
    cross_entropy_backward(first, width, targets, sums, scale, exponentials);
}
