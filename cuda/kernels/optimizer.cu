// Optimizers, in full precision. `copy`, where given, receives the new parameters in working precision.

/// `p = decay p - rate m / (sqrt(v) root + epsilon)`. Elements(n).
__device__ __forceinline__ void step_adamw(
    long long n,
    float gradient_scale,
    float beta1,
    float beta2,
    float decay,
    float rate,
    float root,
    float epsilon,
    const float* gradient,
    float* parameter,
    float* first,
    float* second,
    bf16* copy
) {
    long long i = element();
    if (i < n) {
        float g = gradient[i] * gradient_scale;
        float m = beta1 * first[i] + (1.0f - beta1) * g;
        float v = beta2 * second[i] + (1.0f - beta2) * g * g;
        float p = decay * parameter[i] - rate * m / (sqrtf(v) * root + epsilon);
        first[i] = m;
        second[i] = v;
        parameter[i] = p;
        if (copy) {
            copy[i] = from_float<bf16>(p);
        }
    }
}

extern "C" __global__ void adamw(
    long long n,
    float gradient_scale,
    float beta1,
    float beta2,
    float decay,
    float rate,
    float root,
    float epsilon,
    const float* gradient,
    float* parameter,
    float* first,
    float* second
) {
    step_adamw(
        n, gradient_scale, beta1, beta2, decay, rate, root, epsilon, gradient, parameter, first, second, nullptr
    );
}

extern "C" __global__ void adamw_with_copy(
    long long n,
    float gradient_scale,
    float beta1,
    float beta2,
    float decay,
    float rate,
    float root,
    float epsilon,
    const float* gradient,
    float* parameter,
    float* first,
    float* second,
    bf16* copy
) {
    step_adamw(
        n, gradient_scale, beta1, beta2, decay, rate, root, epsilon, gradient, parameter, first, second, copy
    );
}

/// `v = momentum v + (gradient_scale g + weight_decay p)`, `p -= rate v`. Elements(n).
__device__ __forceinline__ void step_sgd(
    long long n,
    float gradient_scale,
    float momentum,
    float weight_decay,
    float rate,
    const float* gradient,
    float* parameter,
    float* velocity,
    bf16* copy
) {
    long long i = element();
    if (i < n) {
        float g = gradient[i] * gradient_scale + weight_decay * parameter[i];
        float v = momentum * velocity[i] + g;
        float p = parameter[i] - rate * v;
        velocity[i] = v;
        parameter[i] = p;
        if (copy) {
            copy[i] = from_float<bf16>(p);
        }
    }
}

extern "C" __global__ void sgd_momentum(
    long long n,
    float gradient_scale,
    float momentum,
    float weight_decay,
    float rate,
    const float* gradient,
    float* parameter,
    float* velocity
) {
    step_sgd(n, gradient_scale, momentum, weight_decay, rate, gradient, parameter, velocity, nullptr);
}

extern "C" __global__ void sgd_momentum_with_copy(
    long long n,
    float gradient_scale,
    float momentum,
    float weight_decay,
    float rate,
    const float* gradient,
    float* parameter,
    float* velocity,
    bf16* copy
) {
    step_sgd(n, gradient_scale, momentum, weight_decay, rate, gradient, parameter, velocity, copy);
}
