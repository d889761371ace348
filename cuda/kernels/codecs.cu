// Gradient codecs, in full precision. Bytes are those that the host's loops write (codecs/src), bit for bit: where the
// host rounds a product before it adds, __fmul_rn keeps the compiler from fusing the two. No atomic sum of floats, so
// every run gives the same bits.

/// Numbers whose squares the host adds up in float before it goes on in double, in this many sums side by side.
constexpr int CHUNK = 1024;
constexpr int LANES = 16;
/// Numbers of a block that adds up or counts.
constexpr int TILE = 2048;
constexpr int OF_THREAD = TILE / BLOCK;
/// Columns of a factor at a time.
constexpr int FACTOR_COLUMNS = 8;
/// Rows of a matrix that a warp takes at a time.
constexpr int FACTOR_ROWS = 4;

__device__ __forceinline__ unsigned magnitude(float x) {
    return __float_as_uint(x) & 0x7fffffffu;
}

/// Bytes at any address, the lowest first.
__device__ __forceinline__ void put_float(unsigned char* to, float x) {
    unsigned bits = __float_as_uint(x);
    for (int byte = 0; byte < 4; byte++) {
        to[byte] = (unsigned char)(bits >> 8 * byte);
    }
}

__device__ __forceinline__ float get_float(const unsigned char* from) {
    return __uint_as_float(from[0] | (unsigned)from[1] << 8 | (unsigned)from[2] << 16 | (unsigned)from[3] << 24);
}

/// The sum of squares of up to TILE numbers as the host works it out, for thread 0. All threads must come here.
__device__ __forceinline__ double tile_square_sum(const float* x, int count) {
    constexpr int CHUNKS = TILE / CHUNK;
    // A chunk begins where another one's lanes end, so that the threads that add them up use different banks.
    constexpr int STRIDE = CHUNK + LANES;
    __shared__ float tile[CHUNKS * STRIDE];
    __shared__ float lanes[CHUNKS * LANES];
    for (int i = threadIdx.x; i < count; i += BLOCK) {
        tile[i / CHUNK * STRIDE + i % CHUNK] = x[i];
    }
    __syncthreads();
    if (threadIdx.x < CHUNKS * LANES) {
        int chunk = threadIdx.x / LANES, lane = threadIdx.x % LANES;
        int own = count - chunk * CHUNK < CHUNK ? count - chunk * CHUNK : CHUNK;
        float sum = 0.0f;
        for (int i = 0; i + LANES <= own; i += LANES) {
            float value = tile[chunk * STRIDE + i + lane];
            sum += __fmul_rn(value, value);
        }
        lanes[threadIdx.x] = sum;
    }
    __syncthreads();
    double total = 0.0;
    if (threadIdx.x == 0) {
        for (int chunk = 0; chunk * CHUNK < count; chunk++) {
            int own = count - chunk * CHUNK < CHUNK ? count - chunk * CHUNK : CHUNK;
            float sum = 0.0f, rest = 0.0f;
            for (int lane = 0; lane < LANES; lane++) {
                sum += lanes[chunk * LANES + lane];
            }
            for (int i = own / LANES * LANES; i < own; i++) {
                float value = tile[chunk * STRIDE + i];
                rest += __fmul_rn(value, value);
            }
            total += sum + rest;
        }
    }
    // The next call writes the same memory.
    __syncthreads();
    return total;
}

/// Each tile's sum of squares. Rows(ceil(n / TILE)); `sum_partials` goes on.
extern "C" __global__ void codec_square_sums(long long n, const float* x, double* partial) {
    long long begin = (long long)blockIdx.x * TILE, left = n - begin;
    double total = tile_square_sum(x + begin, left < TILE ? (int)left : TILE);
    if (threadIdx.x == 0) {
        partial[blockIdx.x] = total;
    }
}

/// The largest magnitude of each block's share. Blocks of 256 threads, any number of them.
extern "C" __global__ void codec_largest(long long n, const float* x, float* partial) {
    float most = 0.0f;
    for (long long i = element(); i < n; i += (long long)gridDim.x * blockDim.x) {
        most = fmaxf(most, fabsf(x[i]));
    }
    most = block_max(most);
    if (threadIdx.x == 0) {
        partial[blockIdx.x] = most;
    }
}

/// `to -= from`. Elements(n).
extern "C" __global__ void codec_subtract(long long n, const float* from, float* to) {
    long long i = element();
    if (i < n) {
        to[i] -= from[i];
    }
}

/// `to /= divisor`. Elements(n).
extern "C" __global__ void codec_divide(long long n, float divisor, float* to) {
    long long i = element();
    if (i < n) {
        to[i] /= divisor;
    }
}

/// `to = factor from + own to`. Elements(n).
extern "C" __global__ void codec_mix(long long n, float factor, const float* from, float own, float* to) {
    long long i = element();
    if (i < n) {
        to[i] = __fmul_rn(factor, from[i]) + __fmul_rn(own, to[i]);
    }
}

/// A new momentum becomes the gradient that leads there, and the momentum the new one; zero stays. Elements(n).
extern "C" __global__ void codec_agree(long long n, float decay, float* gradient, float* momentum) {
    long long i = element();
    if (i < n) {
        float old = momentum[i], agreed = old == 0.0f ? 0.0f : gradient[i];
        gradient[i] = (agreed - __fmul_rn(decay, old)) * (1.0f / (1.0f - decay));
        momentum[i] = agreed;
    }
}

/// `velocity = decay velocity + gradient`, `to += velocity`. Elements(n).
extern "C" __global__ void codec_momentum(
    long long n, float decay, const float* gradient, float* velocity, float* to
) {
    long long i = element();
    if (i < n) {
        float v = __fmul_rn(decay, velocity[i]) + gradient[i];
        velocity[i] = v;
        to[i] += v;
    }
}

/// Limits magnitudes; NaN stays. Elements(n).
extern "C" __global__ void codec_clamp(long long n, float limit, float* to) {
    long long i = element();
    if (i < n) {
        float x = to[i];
        to[i] = x < -limit ? -limit : x > limit ? limit : x;
    }
}

/// IEEE half precision of a number of at most 65504 in magnitude, to the nearest, ties to even.
__device__ __forceinline__ unsigned short to_half(float x) {
    unsigned sign = __float_as_uint(x) >> 16 & 0x8000u, rest = magnitude(x);
    if (rest > 0x7f800000u) {
        return (unsigned short)(sign | 0x7e00u | (rest >> 13 & 0x3ffu));
    }
    if (rest < 0x38800000u) {
        // Below 2^-14 a step is 2^-24, which is what a float's is from 0.5 on.
        return (unsigned short)(sign | (__float_as_uint(__uint_as_float(rest) + 0.5f) - 0x3f000000u));
    }
    rest += 0xfffu + (rest >> 13 & 1u);
    return (unsigned short)(sign | (rest - (112u << 23)) >> 13);
}

__device__ __forceinline__ float from_half(unsigned short half) {
    unsigned sign = (unsigned)(half & 0x8000) << 16, exponent = half >> 10 & 31, mantissa = half & 1023;
    if (exponent == 31) {
        return __uint_as_float(sign | 0x7f800000u | mantissa << 13);
    }
    if (exponent == 0) {
        float small = (float)mantissa * 5.9604644775390625e-8f;
        return sign ? -small : small;
    }
    return __uint_as_float(sign | (exponent + 112u) << 23 | mantissa << 13);
}

/// Elements(n).
extern "C" __global__ void codec_encode_fp16(long long n, const float* from, unsigned short* to) {
    long long i = element();
    if (i < n) {
        float x = from[i];
        to[i] = to_half(x < -65504.0f ? -65504.0f : x > 65504.0f ? 65504.0f : x);
    }
}

/// Elements(n).
extern "C" __global__ void codec_add_fp16(long long n, const unsigned short* from, float* to) {
    long long i = element();
    if (i < n) {
        to[i] += from_half(from[i]);
    }
}

/// Elements(n).
extern "C" __global__ void codec_add_bf16(long long n, const bf16* from, float* to) {
    long long i = element();
    if (i < n) {
        to[i] += to_float(from[i]);
    }
}

/// A scale and a byte for each of `block` numbers. Rows(ceil(n / block)).
extern "C" __global__ void codec_encode_int8(long long n, int block, const float* from, unsigned char* to) {
    long long begin = (long long)blockIdx.x * block, left = n - begin;
    int count = left < block ? (int)left : block;
    from += begin;
    to += (long long)blockIdx.x * (block + 4);
    float most = 0.0f;
    for (int i = threadIdx.x; i < count; i += BLOCK) {
        most = fmaxf(most, fabsf(from[i]));
    }
    float scale = block_max(most) / 127.0f;
    float inverse = scale > 0.0f ? 1.0f / scale : 0.0f;
    if (threadIdx.x == 0) {
        put_float(to, scale);
    }
    for (int i = threadIdx.x; i < count; i += BLOCK) {
        float level = roundf(from[i] * inverse);
        // What is no number becomes 0.
        int limited = level >= 127.0f ? 127 : level <= -128.0f ? -128 : level == level ? (int)level : 0;
        to[4 + i] = (unsigned char)limited;
    }
}

/// Elements(n).
extern "C" __global__ void codec_add_int8(long long n, int block, const unsigned char* from, float* to) {
    long long i = element();
    if (i < n) {
        Division at = divide(i, block);
        from += at.quotient * (block + 4);
        to[i] += __fmul_rn(get_float(from), (float)(signed char)from[4 + at.remainder]);
    }
}

/// A scale, then a bit for each number, set for zero and above. Elements(ceil(n / 8)), at least one.
extern "C" __global__ void codec_encode_signs(long long n, float scale, const float* from, unsigned char* to) {
    long long i = element();
    if (i == 0) {
        put_float(to, scale);
    }
    if (8 * i < n) {
        unsigned byte = 0;
        for (int bit = 0; bit < 8 && 8 * i + bit < n; bit++) {
            byte |= (unsigned)(from[8 * i + bit] >= 0.0f) << bit;
        }
        to[4 + i] = (unsigned char)byte;
    }
}

/// Elements(n).
extern "C" __global__ void codec_add_signs(long long n, float factor, const unsigned char* from, float* to) {
    long long i = element();
    if (i < n) {
        float scale = __fmul_rn(factor, get_float(from));
        to[i] += from[4 + i / 8] >> i % 8 & 1 ? scale : -scale;
    }
}

/// Takes the scale with each number's sign. Elements(n).
extern "C" __global__ void codec_subtract_signs(long long n, float scale, float* to) {
    long long i = element();
    if (i < n) {
        float x = to[i];
        to[i] = x - (x >= 0.0f ? scale : -scale);
    }
}

// The largest numbers: the magnitude of the last of them, digit by digit from the highest (a radix select), then all
// above it and the first of those that equal it, by index.

/// Values of a digit.
constexpr int DIGITS = 2048;

/// What has been found of the magnitude of the last number that is taken.
struct Selection {
    /// How many numbers have each value of the digit that is looked for.
    unsigned counts[DIGITS];
    /// The digits so far.
    unsigned prefix;
    /// How many of the numbers that begin with them are taken.
    unsigned wanted;
};

/// Begins with nothing found. Single.
extern "C" __global__ void codec_select(unsigned count, Selection* selection) {
    for (int i = threadIdx.x; i < DIGITS; i += BLOCK) {
        selection->counts[i] = 0;
    }
    if (threadIdx.x == 0) {
        selection->prefix = 0;
        selection->wanted = count;
    }
}

/// Counts the digits of `bits` bits above the lowest `shift`. Blocks of 256 threads, any number of them.
extern "C" __global__ void codec_count_digits(
    long long n, int shift, int bits, const float* x, Selection* selection
) {
    __shared__ unsigned counts[DIGITS];
    for (int i = threadIdx.x; i < DIGITS; i += BLOCK) {
        counts[i] = 0;
    }
    __syncthreads();
    unsigned prefix = selection->prefix;
    for (long long i = element(); i < n; i += (long long)gridDim.x * blockDim.x) {
        unsigned key = magnitude(x[i]);
        if (key >> (shift + bits) == prefix) {
            atomicAdd(&counts[key >> shift & ((1u << bits) - 1)], 1u);
        }
    }
    __syncthreads();
    for (int i = threadIdx.x; i < DIGITS; i += BLOCK) {
        if (counts[i] > 0) {
            atomicAdd(&selection->counts[i], counts[i]);
        }
    }
}

/// Finds the digit at which the count is reached from above. Single.
extern "C" __global__ void codec_pick_digit(int bits, Selection* selection) {
    __shared__ unsigned counts[DIGITS];
    __shared__ unsigned of_threads[BLOCK];
    constexpr int EACH = DIGITS / BLOCK;
    unsigned own = 0;
    for (int i = 0; i < EACH; i++) {
        int digit = threadIdx.x * EACH + i;
        own += counts[digit] = selection->counts[digit];
        selection->counts[digit] = 0;
    }
    of_threads[threadIdx.x] = own;
    __syncthreads();
    if (threadIdx.x == 0) {
        unsigned wanted = selection->wanted;
        int thread = BLOCK - 1;
        for (; thread > 0 && of_threads[thread] < wanted; thread--) {
            wanted -= of_threads[thread];
        }
        int digit = thread * EACH + EACH - 1;
        for (; digit > thread * EACH && counts[digit] < wanted; digit--) {
            wanted -= counts[digit];
        }
        selection->prefix = selection->prefix << bits | (unsigned)digit;
        selection->wanted = wanted;
    }
}

/// How many numbers of each tile lie above the last one that is taken, and how many equal it.
/// Rows(ceil(n / TILE)).
extern "C" __global__ void codec_count_chosen(
    long long n, const float* x, const Selection* selection, unsigned* tiles
) {
    unsigned last = selection->prefix;
    int above = 0, equal = 0;
    long long begin = (long long)blockIdx.x * TILE;
    for (int i = threadIdx.x; i < TILE && begin + i < n; i += BLOCK) {
        unsigned key = magnitude(x[begin + i]);
        above += key > last;
        equal += key == last;
    }
    above = block_sum(above);
    equal = block_sum(equal);
    if (threadIdx.x == 0) {
        tiles[2 * blockIdx.x] = above;
        tiles[2 * blockIdx.x + 1] = equal;
    }
}

/// Turns the counts of tiles into those of all tiles before. Single.
extern "C" __global__ void codec_count_before(int count, unsigned* tiles) {
    __shared__ unsigned of_threads[2][BLOCK];
    int each = (count + BLOCK - 1) / BLOCK;
    int begin = threadIdx.x * each, end = begin + each < count ? begin + each : count;
    for (int which = 0; which < 2; which++) {
        unsigned sum = 0;
        for (int i = begin; i < end; i++) {
            sum += tiles[2 * i + which];
        }
        of_threads[which][threadIdx.x] = sum;
    }
    __syncthreads();
    for (int which = 0; which < 2; which++) {
        unsigned before = 0;
        for (int thread = 0; thread < (int)threadIdx.x; thread++) {
            before += of_threads[which][thread];
        }
        for (int i = begin; i < end; i++) {
            unsigned own = tiles[2 * i + which];
            tiles[2 * i + which] = before;
            before += own;
        }
    }
}

/// Writes the numbers that are taken, index and value, and leaves zeros in their places. `velocity` may be null.
/// Rows(ceil(n / TILE)).
extern "C" __global__ void codec_take_chosen(
    long long n, const Selection* selection, const unsigned* tiles, float* x, float* velocity, unsigned* entries
) {
    // Numbers above in the upper half, equal ones in the lower.
    __shared__ unsigned before[BLOCK];
    unsigned last = selection->prefix, wanted = selection->wanted;
    long long begin = (long long)blockIdx.x * TILE + threadIdx.x * OF_THREAD;
    unsigned own = 0;
    for (int i = 0; i < OF_THREAD && begin + i < n; i++) {
        unsigned key = magnitude(x[begin + i]);
        own += key > last ? 1u << 16 : key == last ? 1u : 0u;
    }
    before[threadIdx.x] = own;
    __syncthreads();
    for (int distance = 1; distance < BLOCK; distance *= 2) {
        unsigned earlier = (int)threadIdx.x >= distance ? before[threadIdx.x - distance] : 0u;
        __syncthreads();
        before[threadIdx.x] += earlier;
        __syncthreads();
    }
    unsigned others = before[threadIdx.x] - own;
    unsigned above = tiles[2 * blockIdx.x] + (others >> 16);
    unsigned equal = tiles[2 * blockIdx.x + 1] + (others & 0xffffu);
    for (int i = 0; i < OF_THREAD && begin + i < n; i++) {
        float value = x[begin + i];
        unsigned key = magnitude(value);
        if (key > last || (key == last && equal < wanted)) {
            unsigned long long at = 2ull * (above + (equal < wanted ? equal : wanted));
            entries[at] = (unsigned)(begin + i);
            entries[at + 1] = __float_as_uint(value);
            x[begin + i] = 0.0f;
            if (velocity) {
                velocity[begin + i] = 0.0f;
            }
        }
        above += key > last;
        equal += key == last;
    }
}

/// Each block's share of the sum of squares of the values of entries, in double. Blocks of 256 threads, any number.
extern "C" __global__ void codec_entry_squares(long long count, const unsigned* entries, double* partial) {
    double squares = 0.0;
    for (long long i = element(); i < count; i += (long long)gridDim.x * blockDim.x) {
        double value = __uint_as_float(entries[2 * i + 1]);
        squares += value * value;
    }
    squares = block_sum(squares);
    if (threadIdx.x == 0) {
        partial[blockIdx.x] = squares;
    }
}

/// Adds values to where their indices say; of one member, so no two are the same. Elements(count).
extern "C" __global__ void codec_add_entries(long long count, const unsigned* entries, long long n, float* to) {
    long long i = element();
    if (i < count) {
        unsigned at = entries[2 * i];
        if (at < n) {
            to[at] += __uint_as_float(entries[2 * i + 1]);
        }
    }
}

/// The L2 norm of every `bucket` numbers. Rows(ceil(n / bucket)).
extern "C" __global__ void codec_norms(long long n, int bucket, const float* from, float* norms) {
    long long begin = (long long)blockIdx.x * bucket, left = n - begin;
    int count = left < bucket ? (int)left : bucket;
    double total = 0.0;
    for (int tile = 0; tile < count; tile += TILE) {
        total += tile_square_sum(from + begin + tile, count - tile < TILE ? count - tile : TILE);
    }
    if (threadIdx.x == 0) {
        norms[blockIdx.x] = (float)sqrt(total);
    }
}

/// Draw `index` of the sequence that begins after `state` (splitmix64), from 0 to 1.
__device__ __forceinline__ float draw(unsigned long long state, long long index) {
    unsigned long long mixed = state + (unsigned long long)(index + 1) * 0x9e3779b97f4a7c15ull;
    mixed = (mixed ^ mixed >> 30) * 0xbf58476d1ce4e5b9ull;
    mixed = (mixed ^ mixed >> 27) * 0x94d049bb133111ebull;
    return (float)((mixed ^ mixed >> 31) >> 40) / 16777216.0f;
}

/// Rounds at random to `levels` parts of a scale, `width` bits each, eight numbers a thread: the norms' or, where these
/// are null, `common`. `lost` receives each block's share of the squared norm that is lost. Elements(ceil(n / 8)).
extern "C" __global__ void codec_encode_levels(
    long long n,
    int levels,
    int width,
    int bucket,
    const float* norms,
    float common,
    unsigned long long state,
    const float* from,
    unsigned char* to,
    double* lost
) {
    long long begin = 8 * element();
    double own = 0.0;
    unsigned long long bits = 0;
    int count = 0;
    for (; count < 8 && begin + count < n; count++) {
        long long i = begin + count;
        float value = from[i], scale = norms ? norms[divide(i, bucket).quotient] : common;
        float inverse = scale > 0.0f ? (float)levels / scale : 0.0f;
        float exact = fminf(__fmul_rn(fabsf(value), inverse), (float)levels);
        int below = (int)exact;
        int up = draw(state, i) < exact - (float)below;
        int level = below + up < levels ? below + up : levels;
        int is = value < 0.0f ? -level : level;
        float error = __fmul_rn((float)is, scale / (float)levels) - value;
        own += (double)error * error;
        bits |= (unsigned long long)(is + levels) << width * count;
    }
    to += begin / 8 * width;
    for (int byte = 0; 8 * byte < width * count; byte++) {
        to[byte] = (unsigned char)(bits >> 8 * byte);
    }
    own = block_sum(own);
    if (threadIdx.x == 0) {
        lost[blockIdx.x] = own;
    }
}

/// Adds what levels say. Elements(ceil(n / 8)).
extern "C" __global__ void codec_add_levels(
    long long n,
    int levels,
    int width,
    int bucket,
    const float* norms,
    float common,
    const unsigned char* from,
    float* to
) {
    long long begin = 8 * element();
    int count = n - begin < 8 ? (int)(n - begin) : 8;
    from += begin / 8 * width;
    unsigned long long bits = 0;
    for (int byte = 0; 8 * byte < width * count; byte++) {
        bits |= (unsigned long long)from[byte] << 8 * byte;
    }
    for (int j = 0; j < count; j++) {
        long long i = begin + j;
        float scale = norms ? norms[divide(i, bucket).quotient] : common;
        int level = (int)(bits >> width * j & ((1ull << width) - 1)) - levels;
        to[i] += __fmul_rn((float)level, scale / (float)levels);
    }
}

/// Orthonormal columns of row-major factors, whose offset, rows and rank `table` lists: Gram and Schmidt twice; a
/// column that depends on the others becomes zero. Scalar products in double. Rows(factors).
extern "C" __global__ void codec_orthogonalise(const unsigned* table, float* factors) {
    table += 3 * blockIdx.x;
    float* factor = factors + table[0];
    int rows = (int)table[1], rank = (int)table[2];
    // A thread works at the same rows throughout.
    for (int column = 0; column < rank; column++) {
        double before = 0.0;
        for (int row = threadIdx.x; row < rows; row += BLOCK) {
            double value = factor[(long long)row * rank + column];
            before += value * value;
        }
        before = block_sum(before);
        for (int again = 0; again < 2; again++) {
            for (int earlier = 0; earlier < column; earlier++) {
                double along = 0.0;
                for (int row = threadIdx.x; row < rows; row += BLOCK) {
                    const float* at = factor + (long long)row * rank;
                    along += (double)at[earlier] * at[column];
                }
                float part = (float)block_sum(along);
                for (int row = threadIdx.x; row < rows; row += BLOCK) {
                    float* at = factor + (long long)row * rank;
                    at[column] -= __fmul_rn(part, at[earlier]);
                }
            }
        }
        double norm = 0.0;
        for (int row = threadIdx.x; row < rows; row += BLOCK) {
            double value = factor[(long long)row * rank + column];
            norm += value * value;
        }
        norm = block_sum(norm);
        float inverse = norm > 1e-12 * before ? (float)(1.0 / sqrt(norm)) : 0.0f;
        for (int row = threadIdx.x; row < rows; row += BLOCK) {
            factor[(long long)row * rank + column] *= inverse;
        }
    }
}

/// `whole += gradient`, `left[rows, rank] = whole[rows, columns] right[columns, rank]`: a warp takes FACTOR_ROWS rows.
/// `partial` receives each block's sum of squares of `whole`. Rows(ceil(rows / (8 FACTOR_ROWS))).
extern "C" __global__ void codec_add_and_multiply(
    int rows,
    int columns,
    int rank,
    const float* gradient,
    float* whole,
    const float* right,
    float* left,
    double* partial
) {
    int lane = threadIdx.x % WARP;
    long long first = ((long long)blockIdx.x * (BLOCK / WARP) + threadIdx.x / WARP) * FACTOR_ROWS;
    double squares = 0.0;
    for (int begin = 0; begin < rank; begin += FACTOR_COLUMNS) {
        float sums[FACTOR_ROWS][FACTOR_COLUMNS] = {};
        for (int j = lane; j < columns; j += WARP) {
            float of_right[FACTOR_COLUMNS];
            for (int c = 0; c < FACTOR_COLUMNS; c++) {
                of_right[c] = begin + c < rank ? right[(long long)j * rank + begin + c] : 0.0f;
            }
            for (int row = 0; row < FACTOR_ROWS; row++) {
                float value = 0.0f;
                if (first + row < rows) {
                    long long at = (first + row) * columns + j;
                    value = whole[at];
                    if (begin == 0) {
                        value += gradient[at];
                        whole[at] = value;
                        squares += (double)value * value;
                    }
                }
                for (int c = 0; c < FACTOR_COLUMNS; c++) {
                    sums[row][c] += value * of_right[c];
                }
            }
        }
        for (int row = 0; row < FACTOR_ROWS; row++) {
            for (int c = 0; c < FACTOR_COLUMNS; c++) {
                float sum = reduce_lanes<Add>(sums[row][c], WARP);
                if (lane == 0 && first + row < rows && begin + c < rank) {
                    left[(first + row) * rank + begin + c] = sum;
                }
            }
        }
    }
    squares = block_sum(squares);
    if (threadIdx.x == 0) {
        partial[blockIdx.x] = squares;
    }
}

/// `right[columns, rank] = whole[rows, columns]ᵀ left[rows, rank]`. Columns(columns).
extern "C" __global__ void codec_multiply_transposed(
    int rows, int columns, int rank, const float* whole, const float* left, float* right
) {
    int j = blockIdx.x * WARP + threadIdx.x;
    for (int begin = 0; begin < rank; begin += FACTOR_COLUMNS) {
        float sums[FACTOR_COLUMNS] = {};
        for (int row = threadIdx.y; row < rows && j < columns; row += COLUMN_THREADS) {
            float value = whole[(long long)row * columns + j];
            for (int c = 0; c < FACTOR_COLUMNS; c++) {
                sums[c] += begin + c < rank ? value * left[(long long)row * rank + begin + c] : 0.0f;
            }
        }
        for (int c = 0; c < FACTOR_COLUMNS; c++) {
            float sum = column_sum(sums[c]);
            if (threadIdx.y == 0 && j < columns && begin + c < rank) {
                right[(long long)j * rank + begin + c] = sum;
            }
        }
    }
}

/// An element of `left[rows, rank] right[columns, rank]ᵀ`.
__device__ __forceinline__ float expanded(
    long long i, int columns, int rank, const float* left, const float* right
) {
    Division at = divide(i, columns);
    left += at.quotient * rank;
    right += (long long)at.remainder * rank;
    float sum = 0.0f;
    for (int c = 0; c < rank; c++) {
        sum += left[c] * right[c];
    }
    return sum;
}

/// `whole[n]` becomes the product times `factor`. Elements(n).
extern "C" __global__ void codec_expand(
    long long n, int columns, int rank, const float* left, const float* right, float factor, float* whole
) {
    long long i = element();
    if (i < n) {
        whole[i] = factor * expanded(i, columns, rank, left, right);
    }
}

/// Takes the product from `whole[n]`; `gradient`, which may be null, becomes it times `factor`. `partial` receives each
/// tile's sum of squares of what is left. Rows(ceil(n / TILE)).
extern "C" __global__ void codec_subtract_expanded(
    long long n,
    int columns,
    int rank,
    const float* left,
    const float* right,
    float* whole,
    float factor,
    float* gradient,
    double* partial
) {
    long long begin = (long long)blockIdx.x * TILE;
    double squares = 0.0;
    for (int i = threadIdx.x; i < TILE && begin + i < n; i += BLOCK) {
        float product = expanded(begin + i, columns, rank, left, right);
        float rest = whole[begin + i] - product;
        whole[begin + i] = rest;
        if (gradient) {
            gradient[begin + i] = factor * product;
        }
        squares += (double)rest * rest;
    }
    squares = block_sum(squares);
    if (threadIdx.x == 0) {
        partial[blockIdx.x] = squares;
    }
}
