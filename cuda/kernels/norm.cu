// LayerNorm and RMSNorm. `parameters` is the weight, followed for LayerNorm by the bias. `statistics` holds per row
// the mean and the reciprocal standard deviation (LayerNorm), or the reciprocal root mean square (RMSNorm).

/// Writes `y` and the statistics. Rows.
template <class T>
__device__ void layer_norm_forward(
    int width,
    float epsilon,
    const T* parameters,
    const T* x,
    T* y,
    float* statistics
) {
    x = row_of(x, blockIdx.x, width);
    y = row_of(y, blockIdx.x, width);
    float sum = 0.0f;
    for (int i = threadIdx.x; i < width; i += BLOCK) {
        sum += to_float(x[i]);
    }
    float mean = block_sum(sum) / width;
    float squares = 0.0f;
    for (int i = threadIdx.x; i < width; i += BLOCK) {
        float centred = to_float(x[i]) - mean;
        squares += centred * centred;
    }
    float reciprocal = 1.0f / sqrtf(block_sum(squares) / width + epsilon);
    for (int i = threadIdx.x; i < width; i += BLOCK) {
        float normal = (to_float(x[i]) - mean) * reciprocal;
        y[i] = from_float<T>(normal * to_float(parameters[i]) + to_float(parameters[width + i]));
    }
    if (threadIdx.x == 0) {
        statistics[2 * (long long)blockIdx.x] = mean;
        statistics[2 * (long long)blockIdx.x + 1] = reciprocal;
    }
}

extern "C" __global__ void layer_norm_forward_f32(
    int width,
    float epsilon,
    const float* parameters,
    const float* x,
    float* y,
    float* statistics
) {
    layer_norm_forward(width, epsilon, parameters, x, y, statistics);
}

extern "C" __global__ void layer_norm_forward_bf16(
    int width,
    float epsilon,
    const bf16* parameters,
    const bf16* x,
    bf16* y,
    float* statistics
) {
    layer_norm_forward(width, epsilon, parameters, x, y, statistics);
}

/// Writes `y` and the statistics. Rows.
template <class T>
__device__ void rms_norm_forward(
    int width,
    float epsilon,
    const T* parameters,
    const T* x,
    T* y,
    float* statistics
) {
    x = row_of(x, blockIdx.x, width);
    y = row_of(y, blockIdx.x, width);
    float squares = 0.0f;
    for (int i = threadIdx.x; i < width; i += BLOCK) {
        float value = to_float(x[i]);
        squares += value * value;
    }
    float reciprocal = 1.0f / sqrtf(block_sum(squares) / width + epsilon);
    for (int i = threadIdx.x; i < width; i += BLOCK) {
        y[i] = from_float<T>(to_float(x[i]) * reciprocal * to_float(parameters[i]));
    }
    if (threadIdx.x == 0) {
        statistics[blockIdx.x] = reciprocal;
    }
}

extern "C" __global__ void rms_norm_forward_f32(
    int width,
    float epsilon,
    const float* parameters,
    const float* x,
    float* y,
    float* statistics
) {
    rms_norm_forward(width, epsilon, parameters, x, y, statistics);
}

extern "C" __global__ void rms_norm_forward_bf16(
    int width,
    float epsilon,
    const bf16* parameters,
    const bf16* x,
    bf16* y,
    float* statistics
) {
    rms_norm_forward(width, epsilon, parameters, x, y, statistics);
}

/// Adds to the gradients of weight and bias. Columns(width).
template <class T>
__device__ void layer_norm_backward_parameters(
    int rows,
    int width,
    const T* x,
    const float* statistics,
    const T* gradient,
    float* gradients
) {
    int column = blockIdx.x * WARP + threadIdx.x;
    float weight = 0.0f, bias = 0.0f;
    if (column < width) {
        for (int row = threadIdx.y; row < rows; row += COLUMN_THREADS) {
            float mean = statistics[2 * (long long)row], reciprocal = statistics[2 * (long long)row + 1];
            float dy = to_float(row_of(gradient, row, width)[column]);
            weight += dy * (to_float(row_of(x, row, width)[column]) - mean) * reciprocal;
            bias += dy;
        }
    }
    weight = column_sum(weight);
    bias = column_sum(bias);
    if (threadIdx.y == 0 && column < width) {
        gradients[column] += weight;
        gradients[width + column] += bias;
    }
}

extern "C" __global__ void layer_norm_backward_parameters_f32(
    int rows,
    int width,
    const float* x,
    const float* statistics,
    const float* gradient,
    float* gradients
) {
    layer_norm_backward_parameters(rows, width, x, statistics, gradient, gradients);
}

extern "C" __global__ void layer_norm_backward_parameters_bf16(
    int rows,
    int width,
    const bf16* x,
    const float* statistics,
    const bf16* gradient,
    float* gradients
) {
    layer_norm_backward_parameters(rows, width, x, statistics, gradient, gradients);
}

/// Adds to the gradient of the weight. Columns(width).
template <class T>
__device__ void rms_norm_backward_parameters(
    int rows,
    int width,
    const T* x,
    const float* statistics,
    const T* gradient,
    float* gradients
) {
    int column = blockIdx.x * WARP + threadIdx.x;
    float weight = 0.0f;
    if (column < width) {
        for (int row = threadIdx.y; row < rows; row += COLUMN_THREADS) {
            float normal = to_float(row_of(x, row, width)[column]) * statistics[row];
            weight += to_float(row_of(gradient, row, width)[column]) * normal;
        }
    }
    weight = column_sum(weight);
    if (threadIdx.y == 0 && column < width) {
        gradients[column] += weight;
    }
}

extern "C" __global__ void rms_norm_backward_parameters_f32(
    int rows,
    int width,
    const float* x,
    const float* statistics,
    const float* gradient,
    float* gradients
) {
    rms_norm_backward_parameters(rows, width, x, statistics, gradient, gradients);
}

extern "C" __global__ void rms_norm_backward_parameters_bf16(
    int rows,
    int width,
    const bf16* x,
    const float* statistics,
    const bf16* gradient,
    float* gradients
) {
    rms_norm_backward_parameters(rows, width, x, statistics, gradient, gradients);
}

/// `gradient` changes from the output's to the input's, plus `residual` unless that is null. Rows.
template <class T>
__device__ void layer_norm_backward_input(
    int width,
    const T* parameters,
    const T* x,
    const float* statistics,
    const T* residual,
    T* gradient
) {
    x = row_of(x, blockIdx.x, width);
    gradient = row_of(gradient, blockIdx.x, width);
    float mean = statistics[2 * (long long)blockIdx.x];
    float reciprocal = statistics[2 * (long long)blockIdx.x + 1];
    float sum = 0.0f, dot = 0.0f;
    for (int i = threadIdx.x; i < width; i += BLOCK) {
        float d_normal = to_float(gradient[i]) * to_float(parameters[i]);
        sum += d_normal;
        dot += d_normal * (to_float(x[i]) - mean) * reciprocal;
    }
    sum = block_sum(sum) / width;
    dot = block_sum(dot) / width;
    for (int i = threadIdx.x; i < width; i += BLOCK) {
        float d_normal = to_float(gradient[i]) * to_float(parameters[i]);
        float normal = (to_float(x[i]) - mean) * reciprocal;
        float dx = reciprocal * (d_normal - sum - normal * dot);
        gradient[i] = from_float<T>(residual ? dx + to_float(row_of(residual, blockIdx.x, width)[i]) : dx);
    }
}

extern "C" __global__ void layer_norm_backward_input_f32(
    int width,
    const float* parameters,
    const float* x,
    const float* statistics,
    const float* residual,
    float* gradient
) {
    layer_norm_backward_input(width, parameters, x, statistics, residual, gradient);
}

extern "C" __global__ void layer_norm_backward_input_bf16(
    int width,
    const bf16* parameters,
    const bf16* x,
    const float* statistics,
    const bf16* residual,
    bf16* gradient
) {
    layer_norm_backward_input(width, parameters, x, statistics, residual, gradient);
}

/// `gradient` changes from the output's to the input's, plus `residual` unless that is null. Rows.
template <class T>
__device__ void rms_norm_backward_input(
    int width,
    const T* parameters,
    const T* x,
    const float* statistics,
    const T* residual,
    T* gradient
) {
    x = row_of(x, blockIdx.x, width);
    gradient = row_of(gradient, blockIdx.x, width);
    float reciprocal = statistics[blockIdx.x];
    float dot = 0.0f;
    for (int i = threadIdx.x; i < width; i += BLOCK) {
        dot += to_float(gradient[i]) * to_float(parameters[i]) * to_float(x[i]) * reciprocal;
    }
    dot = block_sum(dot) / width;
    for (int i = threadIdx.x; i < width; i += BLOCK) {
        float normal = to_float(x[i]) * reciprocal;
        float dx = reciprocal * (to_float(gradient[i]) * to_float(parameters[i]) - normal * dot);
        gradient[i] = from_float<T>(residual ? dx + to_float(row_of(residual, blockIdx.x, width)[i]) : dx);
    }
}

extern "C" __global__ void rms_norm_backward_input_f32(
    int width,
    const float* parameters,
    const float* x,
    const float* statistics,
    const float* residual,
    float* gradient
) {
    rms_norm_backward_input(width, parameters, x, statistics, residual, gradient);
}

extern "C" __global__ void rms_norm_backward_input_bf16(
    int width,
    const bf16* parameters,
    const bf16* x,
    const float* statistics,
    const bf16* residual,
    bf16* gradient
) {
    rms_norm_backward_input(width, parameters, x, statistics, residual, gradient);
}
