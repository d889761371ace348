// Rotary embedding; causal softmax, for attention made of products; and attention that never holds the scores of a
// whole head (Dao et al., FlashAttention, 2205.14135).

/// Rotates the pairs `(i, i + head_dim / 2)` of the first `heads` heads of every row of
/// `[positions, repeat, row_width]` by `position theta^(-2i / head_dim)`, a double, forward (`direction` 1) or
/// backward (-1). Elements(positions * repeat * heads * head_dim / 2).
template <class T>
__device__ void rotary(
    int positions,
    int repeat,
    int row_width,
    int heads,
    int head_dim,
    double log_theta,
    float direction,
    T* rows
) {
    int half = head_dim / 2;
    Division by_pair = divide(element(), half);
    Division by_head = divide(by_pair.quotient, heads);
    long long row = by_head.quotient, position = divide(row, repeat).quotient;
    if (position < positions) {
        double angle = position * exp(-2.0 * by_pair.remainder / head_dim * log_theta);
        double sine, cosine;
        sincos(angle, &sine, &cosine);
        float c = (float)cosine, s = (float)sine * direction;
        T* first = row_of(rows, row, row_width) + (long long)by_head.remainder * head_dim + by_pair.remainder;
        T* second = first + half;
        float a = to_float(*first), b = to_float(*second);
        *first = from_float<T>(a * c - b * s);
        *second = from_float<T>(a * s + b * c);
    }
}

extern "C" __global__ void rotary_f32(
    int positions,
    int repeat,
    int row_width,
    int heads,
    int head_dim,
    double log_theta,
    float direction,
    float* rows
) {
    rotary(positions, repeat, row_width, heads, head_dim, log_theta, direction, rows);
}

extern "C" __global__ void rotary_bf16(
    int positions,
    int repeat,
    int row_width,
    int heads,
    int head_dim,
    double log_theta,
    float direction,
    bf16* rows
) {
    rotary(positions, repeat, row_width, heads, head_dim, log_theta, direction, rows);
}

/// Softmax in place over `scores[count, seq_len, seq_len]`: row `i` sees columns `0..=i`, the others become 0.
/// Rows(count * seq_len).
template <class T>
__device__ void causal_softmax(int seq_len, T* scores) {
    scores = row_of(scores, blockIdx.x, seq_len);
    int seen = blockIdx.x % seq_len + 1;
    float largest = negative_infinity();
    for (int i = threadIdx.x; i < seen; i += BLOCK) {
        largest = fmaxf(largest, to_float(scores[i]));
    }
    largest = block_max(largest);
    float sum = 0.0f;
    for (int i = threadIdx.x; i < seen; i += BLOCK) {
        sum += expf(to_float(scores[i]) - largest);
    }
    float reciprocal = 1.0f / block_sum(sum);
    for (int i = threadIdx.x; i < seq_len; i += BLOCK) {
        scores[i] = from_float<T>(i < seen ? expf(to_float(scores[i]) - largest) * reciprocal : 0.0f);
    }
}

extern "C" __global__ void causal_softmax_f32(int seq_len, float* scores) {
    causal_softmax(seq_len, scores);
}

extern "C" __global__ void causal_softmax_bf16(int seq_len, bf16* scores) {
    causal_softmax(seq_len, scores);
}

/// Turns the probabilities' gradient into the scores' times `scale`, in place. Rows(count * seq_len).
template <class T>
__device__ void causal_softmax_backward(int seq_len, float scale, const T* probabilities, T* gradient) {
    probabilities = row_of(probabilities, blockIdx.x, seq_len);
    gradient = row_of(gradient, blockIdx.x, seq_len);
    int seen = blockIdx.x % seq_len + 1;
    float dot = 0.0f;
    for (int i = threadIdx.x; i < seen; i += BLOCK) {
        dot += to_float(probabilities[i]) * to_float(gradient[i]);
    }
    dot = block_sum(dot);
    for (int i = threadIdx.x; i < seq_len; i += BLOCK) {
        float d_score = i < seen ? to_float(probabilities[i]) * (to_float(gradient[i]) - dot) * scale : 0.0f;
        gradient[i] = from_float<T>(d_score);
    }
}

extern "C" __global__ void causal_softmax_backward_f32(
    int seq_len,
    float scale,
    const float* probabilities,
    float* gradient
) {
    causal_softmax_backward(seq_len, scale, probabilities, gradient);
}

extern "C" __global__ void causal_softmax_backward_bf16(
    int seq_len,
    float scale,
    const bf16* probabilities,
    bf16* gradient
) {
    causal_softmax_backward(seq_len, scale, probabilities, gradient);
}

// Fused attention. Three kernels have the launch form
//
//   Attention(h)  (ceil(seq_len / ATTENTION_TILE), micro_batch * h, ceil(head_dim / ATTENTION_WINDOW)) blocks of
//                 ATTENTION_THREADS threads
//
// A block owns a tile of positions (grid x) of one head of one sequence (grid y = sequence * h + head) of the result,
// and a window of the head's columns (grid z). It goes through scores tile by tile. Where heads are wider than a
// window, the blocks of all windows compute the same scores. Grid y takes up to 65,535.

/// Positions in a tile.
constexpr int ATTENTION_TILE = 64;
/// Columns of a head that a block computes.
constexpr int ATTENTION_WINDOW = 128;
constexpr int ATTENTION_THREADS = 256;
/// Blocks that share a multiprocessor's registers: while one waits for memory, another computes.
constexpr int ATTENTION_BLOCKS = 2;

/// Columns of the tiles whose product is scores.
constexpr int STRIP = 32;
/// Squares of ATTENTION_TILE columns in a window.
constexpr int SQUARES = ATTENTION_WINDOW / ATTENTION_TILE;
/// Threads along each side of a square; a thread computes `PART` by `PART` of its elements.
constexpr int SIDE = 16;
constexpr int PART = ATTENTION_TILE / SIDE;
static_assert(SIDE * SIDE == ATTENTION_THREADS && WARP % SIDE == 0, "a square's row belongs to threads of one warp");

/// One row per position. The padding shifts each row by 16 bytes against the memory banks.
template <int COLUMNS>
struct alignas(16) Tile {
    float at[ATTENTION_TILE][COLUMNS + 4];
};

/// A block's shared memory.
struct Workspace {
    /// What the rows of a head are to be multiplied by.
    Tile<ATTENTION_TILE> weights;
    union {
        Tile<ATTENTION_TILE> rows;
        Tile<STRIP> strips[2];
    };
};

/// A thread's part of a square: rows `PART * thread_row() + i`.
struct Part {
    float at[PART][PART];
};

__device__ __forceinline__ int thread_row() {
    return threadIdx.x / SIDE;
}

__device__ __forceinline__ int thread_column() {
    return threadIdx.x % SIDE;
}

/// One head of one sequence.
template <class T>
struct Head {
    T* start;
    /// Elements from one position to the next.
    long long stride;
    int seq_len;
    int head_dim;
};

/// How many of a tile's `most` columns or rows to go through when `count` are left: whole groups of `PART`, zeros
/// included.
__device__ __forceinline__ int depth_of(int count, int most) {
    return count < most ? (count + PART - 1) / PART * PART : most;
}

/// Adds the product of a column and a row.
__device__ __forceinline__ void add_product(const float (&column)[PART], const float (&row)[PART], Part& part) {
#pragma unroll
    for (int i = 0; i < PART; i++) {
#pragma unroll
        for (int j = 0; j < PART; j++) {
            part.at[i][j] += column[i] * row[j];
        }
    }
}

/// Copies a tile of a head, with 0 where the head ends. All threads.
template <class T, int COLUMNS>
__device__ __forceinline__ void stage(Head<T> head, int first_position, int first_column, Tile<COLUMNS>& tile) {
    constexpr int ROWS_AT_ONCE = ATTENTION_THREADS / COLUMNS;
    int column = threadIdx.x % COLUMNS, first_row = threadIdx.x / COLUMNS;
    int rows = first_column + column < head.head_dim ? head.seq_len - first_position : 0;
    long long from = (first_position + first_row) * head.stride + first_column + column;
#pragma unroll 8
    for (int row = first_row; row < ATTENTION_TILE; row += ROWS_AT_ONCE) {
        tile.at[row][column] = row < rows ? to_float(head.start[from]) : 0.0f;
        from += ROWS_AT_ONCE * head.stride;
    }
}

/// `a bᵀ` of a tile of positions of each head, summed over all columns. Columns of the part are
/// `thread_column() + SIDE * j`. All threads.
template <class T>
__device__ __forceinline__ Part multiply_heads(
    Head<T> a,
    int first_of_a,
    Head<T> b,
    int first_of_b,
    Workspace& workspace
) {
    Tile<STRIP>& left = workspace.strips[0];
    Tile<STRIP>& right = workspace.strips[1];
    Part product = {};
    for (int column = 0; column < a.head_dim; column += STRIP) {
        stage(a, first_of_a, column, left);
        stage(b, first_of_b, column, right);
        __syncthreads();
        int depth = depth_of(a.head_dim - column, STRIP);
        for (int k = 0; k < depth; k += PART) {
#pragma unroll
            for (int step = 0; step < PART; step++) {
                float of_a[PART], of_b[PART];
#pragma unroll
                for (int i = 0; i < PART; i++) {
                    of_a[i] = left.at[PART * thread_row() + i][k + step];
                    of_b[i] = right.at[thread_column() + SIDE * i][k + step];
                }
                add_product(of_a, of_b, product);
            }
        }
        __syncthreads();
    }
    return product;
}

/// Adds the weights, which may have been written right before, times a tile of positions of a head to `result`, the
/// block's window from `first_column` on. Columns of a part are `PART * thread_column() + j`. All threads.
template <class T>
__device__ __forceinline__ void multiply_window(
    Head<T> head,
    int first_position,
    int first_column,
    Workspace& workspace,
    Part (&result)[SQUARES]
) {
    int depth = depth_of(head.seq_len - first_position, ATTENTION_TILE);
#pragma unroll
    for (int square = 0; square < SQUARES; square++) {
        int column = first_column + square * ATTENTION_TILE;
        if (column < head.head_dim) {
            stage(head, first_position, column, workspace.rows);
            __syncthreads();
            for (int k = 0; k < depth; k += PART) {
#pragma unroll
                for (int step = 0; step < PART; step++) {
                    float of_weights[PART], of_head[PART];
#pragma unroll
                    for (int i = 0; i < PART; i++) {
                        of_weights[i] = workspace.weights.at[PART * thread_row() + i][k + step];
                        of_head[i] = workspace.rows.at[k + step][PART * thread_column() + i];
                    }
                    add_product(of_weights, of_head, result[square]);
                }
            }
            __syncthreads();
        }
    }
}

/// Writes a block's window of a head's tile, row `i` of this thread's part multiplied by `factors[i]`.
template <class T>
__device__ __forceinline__ void write_window(
    const Part (&result)[SQUARES],
    const float (&factors)[PART],
    Head<T> head,
    int first_position,
    int first_column
) {
    int first_row = first_position + PART * thread_row(), column = first_column + PART * thread_column();
    T* to = head.start + first_row * head.stride + column;
#pragma unroll
    for (int i = 0; i < PART; i++) {
#pragma unroll
        for (int square = 0; square < SQUARES; square++) {
#pragma unroll
            for (int j = 0; j < PART; j++) {
                int step = square * ATTENTION_TILE + j;
                if (first_row + i < head.seq_len && column + step < head.head_dim) {
                    to[step] = from_float<T>(result[square].at[i][j] * factors[i]);
                }
            }
        }
        to += head.stride;
    }
}

/// A head of `attended`, or of its gradient.
template <class T>
__device__ __forceinline__ Head<T> attended_head(
    T* attended,
    int seq_len,
    int micro_batch,
    int sequence,
    int heads,
    int head_dim,
    int head
) {
    long long width = (long long)heads * head_dim;
    T* start = attended + sequence * width + (long long)head * head_dim;
    return {start, micro_batch * width, seq_len, head_dim};
}

/// A query head and the key and value heads that it meets.
template <class T>
struct QueryKeyValue {
    Head<T> query, key, value;
};

/// The heads of `qkv`, or of its gradient. Rows hold all query heads, then the key heads, then the value heads.
template <class T>
__device__ __forceinline__ QueryKeyValue<T> qkv_heads(
    T* qkv,
    int seq_len,
    int micro_batch,
    int sequence,
    int heads,
    int kv_heads,
    int head_dim,
    int head
) {
    long long width = (long long)(heads + 2 * kv_heads) * head_dim;
    T* row = qkv + sequence * width;
    int key = heads + head / (heads / kv_heads);
    int value = key + kv_heads;
    return {
        {row + (long long)head * head_dim, micro_batch * width, seq_len, head_dim},
        {row + (long long)key * head_dim, micro_batch * width, seq_len, head_dim},
        {row + (long long)value * head_dim, micro_batch * width, seq_len, head_dim},
    };
}

template <class T>
using AttentionForward = void(int, int, int, int, int, float, const T*, T*, float*);
template <class T>
using AttentionBackward =
    void(int, int, int, int, int, float, const T*, const T*, const float*, const float*, T*);

// The definitions below take over the bounds of these declarations.
extern "C" __global__ __launch_bounds__(ATTENTION_THREADS, ATTENTION_BLOCKS)
    AttentionForward<float> attention_forward_f32;
extern "C" __global__ __launch_bounds__(ATTENTION_THREADS, ATTENTION_BLOCKS)
    AttentionForward<bf16> attention_forward_bf16;
extern "C" __global__ __launch_bounds__(ATTENTION_THREADS, ATTENTION_BLOCKS)
    AttentionBackward<float> attention_backward_query_f32, attention_backward_key_value_f32;
extern "C" __global__ __launch_bounds__(ATTENTION_THREADS, ATTENTION_BLOCKS)
    AttentionBackward<bf16> attention_backward_query_bf16, attention_backward_key_value_bf16;

/// What each query attends to, and the logarithm of the sum of its scores' exponentials,
/// `logsumexp[micro_batch, heads, seq_len]`. The softmax is kept for the keys so far: when a tile brings a larger
/// score, what was summed shrinks. Attention(heads), the tiles being of queries.
template <class T>
__device__ void attention_forward(
    int seq_len,
    int micro_batch,
    int heads,
    int kv_heads,
    int head_dim,
    float scale,
    const T* qkv,
    T* attended,
    float* logsumexp
) {
    __shared__ Workspace workspace;
    // The last queries see most keys: they start first.
    int first_query = (gridDim.x - 1 - blockIdx.x) * ATTENTION_TILE;
    int sequence = blockIdx.y / heads, head = blockIdx.y % heads;
    int window = blockIdx.z * ATTENTION_WINDOW;
    QueryKeyValue<const T> of = qkv_heads(qkv, seq_len, micro_batch, sequence, heads, kv_heads, head_dim, head);

    float largest[PART], sum[PART] = {};
#pragma unroll
    for (int i = 0; i < PART; i++) {
        largest[i] = negative_infinity();
    }
    Part result[SQUARES] = {};
    for (int first_key = 0; first_key <= first_query; first_key += ATTENTION_TILE) {
        Part scores = multiply_heads(of.query, first_query, of.key, first_key, workspace);
#pragma unroll
        for (int i = 0; i < PART; i++) {
            int query = first_query + PART * thread_row() + i;
            float largest_now = largest[i];
#pragma unroll
            for (int j = 0; j < PART; j++) {
                int key = first_key + thread_column() + SIDE * j;
                float& score = scores.at[i][j];
                score = key <= query ? score * scale : negative_infinity();
                largest_now = fmaxf(largest_now, score);
            }
            // Finite: every query sees the first tile's first key.
            largest_now = reduce_lanes<Larger>(largest_now, SIDE);
            float shrink = expf(largest[i] - largest_now);
            float sum_now = 0.0f;
#pragma unroll
            for (int j = 0; j < PART; j++) {
                float probability = expf(scores.at[i][j] - largest_now);
                workspace.weights.at[PART * thread_row() + i][thread_column() + SIDE * j] = probability;
                sum_now += probability;
            }
            largest[i] = largest_now;
            sum[i] = sum[i] * shrink + reduce_lanes<Add>(sum_now, SIDE);
#pragma unroll
            for (int square = 0; square < SQUARES; square++) {
#pragma unroll
                for (int j = 0; j < PART; j++) {
                    result[square].at[i][j] *= shrink;
                }
            }
        }
        multiply_window(of.value, first_key, window, workspace, result);
    }

    float reciprocals[PART];
#pragma unroll
    for (int i = 0; i < PART; i++) {
        reciprocals[i] = 1.0f / sum[i];
        int query = first_query + PART * thread_row() + i;
        if (query < seq_len && window == 0 && thread_column() == 0) {
            logsumexp[(long long)blockIdx.y * seq_len + query] = largest[i] + logf(sum[i]);
        }
    }
    Head<T> to = attended_head(attended, seq_len, micro_batch, sequence, heads, head_dim, head);
    write_window(result, reciprocals, to, first_query, window);
}

extern "C" __global__ void attention_forward_f32(
    int seq_len,
    int micro_batch,
    int heads,
    int kv_heads,
    int head_dim,
    float scale,
    const float* qkv,
    float* attended,
    float* logsumexp
) {
    attention_forward(seq_len, micro_batch, heads, kv_heads, head_dim, scale, qkv, attended, logsumexp);
}

extern "C" __global__ void attention_forward_bf16(
    int seq_len,
    int micro_batch,
    int heads,
    int kv_heads,
    int head_dim,
    float scale,
    const bf16* qkv,
    bf16* attended,
    float* logsumexp
) {
    attention_forward(seq_len, micro_batch, heads, kv_heads, head_dim, scale, qkv, attended, logsumexp);
}

/// `delta[micro_batch, heads, seq_len]`, what attention's softmax subtracts in its backward: each query's sum of
/// probabilities times their gradients, which is its output times that one's gradient.
/// Rows(seq_len * micro_batch * heads).
template <class T>
__device__ void attention_backward_delta(
    int seq_len,
    int micro_batch,
    int heads,
    int head_dim,
    const T* attended,
    const T* d_attended,
    float* delta
) {
    attended = row_of(attended, blockIdx.x, head_dim);
    d_attended = row_of(d_attended, blockIdx.x, head_dim);
    float dot = 0.0f;
    for (int i = threadIdx.x; i < head_dim; i += BLOCK) {
        dot += to_float(attended[i]) * to_float(d_attended[i]);
    }
    dot = block_sum(dot);
    if (threadIdx.x == 0) {
        int token = blockIdx.x / heads, head = blockIdx.x % heads;
        int position = token / micro_batch, sequence = token % micro_batch;
        delta[((long long)sequence * heads + head) * seq_len + position] = dot;
    }
}

extern "C" __global__ void attention_backward_delta_f32(
    int seq_len,
    int micro_batch,
    int heads,
    int head_dim,
    const float* attended,
    const float* d_attended,
    float* delta
) {
    attention_backward_delta(seq_len, micro_batch, heads, head_dim, attended, d_attended, delta);
}

extern "C" __global__ void attention_backward_delta_bf16(
    int seq_len,
    int micro_batch,
    int heads,
    int head_dim,
    const bf16* attended,
    const bf16* d_attended,
    float* delta
) {
    attention_backward_delta(seq_len, micro_batch, heads, head_dim, attended, d_attended, delta);
}

/// The queries' gradient: the query columns of `d_qkv`. Attention(heads), the tiles being of queries.
template <class T>
__device__ void attention_backward_query(
    int seq_len,
    int micro_batch,
    int heads,
    int kv_heads,
    int head_dim,
    float scale,
    const T* qkv,
    const T* d_attended,
    const float* logsumexp,
    const float* delta,
    T* d_qkv
) {
    __shared__ Workspace workspace;
    // The last queries see most keys: they start first.
    int first_query = (gridDim.x - 1 - blockIdx.x) * ATTENTION_TILE;
    int sequence = blockIdx.y / heads, head = blockIdx.y % heads;
    int window = blockIdx.z * ATTENTION_WINDOW;
    QueryKeyValue<const T> of = qkv_heads(qkv, seq_len, micro_batch, sequence, heads, kv_heads, head_dim, head);
    Head<const T> d_out =
        attended_head(d_attended, seq_len, micro_batch, sequence, heads, head_dim, head);

    float logsumexps[PART] = {}, deltas[PART] = {}, scales[PART];
#pragma unroll
    for (int i = 0; i < PART; i++) {
        int query = first_query + PART * thread_row() + i;
        if (query < seq_len) {
            logsumexps[i] = logsumexp[(long long)blockIdx.y * seq_len + query];
            deltas[i] = delta[(long long)blockIdx.y * seq_len + query];
        }
        scales[i] = scale;
    }
    Part d_query[SQUARES] = {};
    for (int first_key = 0; first_key <= first_query; first_key += ATTENTION_TILE) {
        Part scores = multiply_heads(of.query, first_query, of.key, first_key, workspace);
#pragma unroll
        for (int i = 0; i < PART; i++) {
            int row = PART * thread_row() + i;
#pragma unroll
            for (int j = 0; j < PART; j++) {
                int column = thread_column() + SIDE * j;
                bool seen = first_key + column <= first_query + row;
                workspace.weights.at[row][column] =
                    seen ? expf(scores.at[i][j] * scale - logsumexps[i]) : 0.0f;
            }
        }
        Part d_probabilities = multiply_heads(d_out, first_query, of.value, first_key, workspace);
#pragma unroll
        for (int i = 0; i < PART; i++) {
#pragma unroll
            for (int j = 0; j < PART; j++) {
                float& weight = workspace.weights.at[PART * thread_row() + i][thread_column() + SIDE * j];
                weight *= d_probabilities.at[i][j] - deltas[i];
            }
        }
        multiply_window(of.key, first_key, window, workspace, d_query);
    }
    Head<T> to = qkv_heads(d_qkv, seq_len, micro_batch, sequence, heads, kv_heads, head_dim, head).query;
    write_window(d_query, scales, to, first_query, window);
}

extern "C" __global__ void attention_backward_query_f32(
    int seq_len,
    int micro_batch,
    int heads,
    int kv_heads,
    int head_dim,
    float scale,
    const float* qkv,
    const float* d_attended,
    const float* logsumexp,
    const float* delta,
    float* d_qkv
) {
    attention_backward_query(
        seq_len, micro_batch, heads, kv_heads, head_dim, scale, qkv, d_attended, logsumexp, delta, d_qkv
    );
}

extern "C" __global__ void attention_backward_query_bf16(
    int seq_len,
    int micro_batch,
    int heads,
    int kv_heads,
    int head_dim,
    float scale,
    const bf16* qkv,
    const bf16* d_attended,
    const float* logsumexp,
    const float* delta,
    bf16* d_qkv
) {
    attention_backward_query(
        seq_len, micro_batch, heads, kv_heads, head_dim, scale, qkv, d_attended, logsumexp, delta, d_qkv
    );
}

/// The keys' and values' gradients: the key and value columns of `d_qkv`, gathered over the query heads that a
/// key/value head serves. Attention(kv_heads), the tiles being of keys.
template <class T>
__device__ void attention_backward_key_value(
    int seq_len,
    int micro_batch,
    int heads,
    int kv_heads,
    int head_dim,
    float scale,
    const T* qkv,
    const T* d_attended,
    const float* logsumexp,
    const float* delta,
    T* d_qkv
) {
    __shared__ Workspace workspace;
    int first_key = blockIdx.x * ATTENTION_TILE;
    int sequence = blockIdx.y / kv_heads, kv_head = blockIdx.y % kv_heads;
    int window = blockIdx.z * ATTENTION_WINDOW;
    int group = heads / kv_heads;

    // Keys are seen by themselves and the queries after them.
    int tiles = gridDim.x - blockIdx.x;
    Part d_key[SQUARES] = {}, d_value[SQUARES] = {};
    for (int step = 0; step < group * tiles; step++) {
        int head = kv_head * group + step / tiles;
        int first_query = first_key + step % tiles * ATTENTION_TILE;
        QueryKeyValue<const T> of =
            qkv_heads(qkv, seq_len, micro_batch, sequence, heads, kv_heads, head_dim, head);
        Head<const T> d_out =
            attended_head(d_attended, seq_len, micro_batch, sequence, heads, head_dim, head);
        long long first_statistic = ((long long)sequence * heads + head) * seq_len + first_query;

        // Rows of weights are keys, columns queries: first the probabilities, then the scores' gradients.
        Part scores = multiply_heads(of.key, first_key, of.query, first_query, workspace);
#pragma unroll
        for (int j = 0; j < PART; j++) {
            int column = thread_column() + SIDE * j;
            bool exists = first_query + column < seq_len;
            float shift = exists ? logsumexp[first_statistic + column] : 0.0f;
#pragma unroll
            for (int i = 0; i < PART; i++) {
                int row = PART * thread_row() + i;
                bool seen = exists && first_key + row <= first_query + column;
                workspace.weights.at[row][column] = seen ? expf(scores.at[i][j] * scale - shift) : 0.0f;
            }
        }
        multiply_window(d_out, first_query, window, workspace, d_value);

        Part d_probabilities = multiply_heads(of.value, first_key, d_out, first_query, workspace);
#pragma unroll
        for (int j = 0; j < PART; j++) {
            int column = thread_column() + SIDE * j;
            bool exists = first_query + column < seq_len;
            float shift = exists ? delta[first_statistic + column] : 0.0f;
#pragma unroll
            for (int i = 0; i < PART; i++) {
                int row = PART * thread_row() + i;
                workspace.weights.at[row][column] *= d_probabilities.at[i][j] - shift;
            }
        }
        multiply_window(of.query, first_query, window, workspace, d_key);
    }

    float scales[PART], ones[PART];
#pragma unroll
    for (int i = 0; i < PART; i++) {
        scales[i] = scale;
        ones[i] = 1.0f;
    }
    QueryKeyValue<T> to =
        qkv_heads(d_qkv, seq_len, micro_batch, sequence, heads, kv_heads, head_dim, kv_head * group);
    write_window(d_key, scales, to.key, first_key, window);
    write_window(d_value, ones, to.value, first_key, window);
}

extern "C" __global__ void attention_backward_key_value_f32(
    int seq_len,
    int micro_batch,
    int heads,
    int kv_heads,
    int head_dim,
    float scale,
    const float* qkv,
    const float* d_attended,
    const float* logsumexp,
    const float* delta,
    float* d_qkv
) {
    attention_backward_key_value(
        seq_len, micro_batch, heads, kv_heads, head_dim, scale, qkv, d_attended, logsumexp, delta, d_qkv
    );
}

extern "C" __global__ void attention_backward_key_value_bf16(
    int seq_len,
    int micro_batch,
    int heads,
    int kv_heads,
    int head_dim,
    float scale,
    const bf16* qkv,
    const bf16* d_attended,
    const float* logsumexp,
    const float* delta,
    bf16* d_qkv
) {
    attention_backward_key_value(
        seq_len, micro_batch, heads, kv_heads, head_dim, scale, qkv, d_attended, logsumexp, delta, d_qkv
    );
}
