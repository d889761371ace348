// Runs CUDA kernels on a CPU: included before a kernel's source, it lets g++ compile that very source.
//
// Each CUDA thread of a block is a fiber: a stack of its own on the one OS thread that runs the kernel. A fiber runs
// until it ends or waits for others, at a barrier or a shuffle. So blocks run one after the other, threads of a block
// in an order that is always the same, and never at once: what this shows are wrong results and barriers that not all
// threads reach, not races between blocks. A warp runs as far ahead of the others as barriers allow, and odd blocks
// run their threads backwards, so that a missing barrier between two warps gives a wrong result.

#pragma once

#include <sys/mman.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <tuple>
#include <utility>
#include <vector>

// How to switch stacks: by hand on x86-64, else the C library's way, which is slower.
#if !defined(__x86_64__)
#define SOFTWARE_GPU_UCONTEXT
#endif
#ifdef SOFTWARE_GPU_UCONTEXT
#include <ucontext.h>
#endif

/// What a kernel exports for whoever loads its library.
struct software_gpu_entry {
    int parameters;
    const unsigned* parameter_sizes;
    /// Runs a whole grid. `arguments[i]` points at the bytes of the i-th argument. Several OS threads may call this
    /// at once.
    void (*run)(const unsigned grid[3], const unsigned block[3], void* const* arguments);
};

/// Exports the kernel NAME as `software_gpu_entry_NAME`.
#define SOFTWARE_GPU_ENTRY(NAME)                                                                      \
    static constexpr char software_gpu_name_##NAME[] = #NAME;                                         \
    extern "C" {                                                                                      \
    extern __attribute__((visibility("default"))) const software_gpu_entry software_gpu_entry_##NAME; \
    const software_gpu_entry software_gpu_entry_##NAME =                                              \
        software_gpu::Kernel<decltype(&NAME)>::entry<&NAME, software_gpu_name_##NAME>();              \
    }

// A library of kernels shows nothing else.
#pragma GCC visibility push(hidden)

// The language.

#define __global__
#define __device__
#define __shared__ static thread_local
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)

#define __syncthreads() software_gpu::barrier(__LINE__)
#define __shfl_xor_sync(...) software_gpu::shuffle_xor(__LINE__, __VA_ARGS__)

namespace software_gpu {

struct Index {
    unsigned x, y, z;
};

}  // namespace software_gpu

static thread_local software_gpu::Index threadIdx, blockIdx, blockDim, gridDim;

template <class To, class From>
inline To software_gpu_bit_cast(From from) {
    static_assert(sizeof(To) == sizeof(From), "a bit cast changes no size");
    To to;
    memcpy(&to, &from, sizeof(to));
    return to;
}

inline float __uint_as_float(unsigned x) {
    return software_gpu_bit_cast<float>(x);
}

inline unsigned __float_as_uint(float x) {
    return software_gpu_bit_cast<unsigned>(x);
}

inline float __int_as_float(int x) {
    return software_gpu_bit_cast<float>(x);
}

inline int __float_as_int(float x) {
    return software_gpu_bit_cast<int>(x);
}

/// Rounded before it goes on; the compiler is told to fuse nothing.
inline float __fmul_rn(float a, float b) {
    return a * b;
}

inline unsigned atomicAdd(unsigned* address, unsigned value) {
    return __atomic_fetch_add(address, value, __ATOMIC_RELAXED);
}

/// Atomic between OS threads too.
inline float atomicAdd(float* address, float value) {
    unsigned* bits = reinterpret_cast<unsigned*>(address);
    unsigned before = __atomic_load_n(bits, __ATOMIC_RELAXED);
    unsigned after;
    do {
        after = __float_as_uint(__uint_as_float(before) + value);
    } while (!__atomic_compare_exchange_n(bits, &before, after, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
    return __uint_as_float(before);
}

// The machine.

#ifndef SOFTWARE_GPU_UCONTEXT

/// Leaves the current stack, noting its top in `*from`, for the one whose top is `to`. The compiler cannot look inside,
/// so it expects any variable to change meanwhile. Ends in a jump: a processor expects `ret` to go where the call was.
extern "C" void software_gpu_switch(void** from, void* to);

asm(R"(
    .pushsection .text
    .balign 16
    .type software_gpu_switch, @function
software_gpu_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    popq %rcx
    jmp *%rcx
    .size software_gpu_switch, . - software_gpu_switch
    .popsection
)");

#endif

namespace software_gpu {

constexpr unsigned WARP = 32;
constexpr unsigned MOST_THREADS = 1024;
constexpr unsigned WHOLE_WARP = 0xffffffffu;

/// A place in the program to come back to.
class Context {
public:
#ifdef SOFTWARE_GPU_UCONTEXT
    /// Starts `entry` on the stack when first switched to.
    void prepare(char* stack, size_t size, void (*entry)()) {
        getcontext(&context);
        context.uc_stack.ss_sp = stack;
        context.uc_stack.ss_size = size;
        context.uc_link = nullptr;
        makecontext(&context, entry, 0);
    }

    void switch_to(Context& to) {
        swapcontext(&context, &to.context);
    }

private:
    ucontext_t context;
#else
    /// Starts `entry` on the stack when first switched to.
    void prepare(char* stack, size_t size, void (*entry)()) {
        // Six registers, the return address, and where a caller would have its own: a function starts with the
        // stack 8 bytes short of a multiple of 16.
        constexpr int SAVED_REGISTERS = 6, WORDS = 8;
        void** words = reinterpret_cast<void**>(stack + size) - WORDS;
        std::fill(words, words + WORDS, nullptr);
        words[SAVED_REGISTERS] = reinterpret_cast<void*>(entry);
        top = words;
    }

    void switch_to(Context& to) {
        software_gpu_switch(&top, to.top);
    }

private:
    void* top;
#endif
};

/// What a thread of the block is at.
enum class State { Unstarted, Barrier, Shuffle, Ended };

/// A stack, on which threads run one after the other.
struct Fiber {
    Context context;
    char* stack;
};

struct Thread {
    Index index;
    State state;
    /// The source's line where it waits, else 0.
    int line;
    /// Where it runs or waits.
    Fiber* fiber;
};

/// Runs the kernels that one OS thread launches.
class Machine {
public:
    Machine() = default;
    Machine(const Machine&) = delete;
    Machine& operator=(const Machine&) = delete;

    ~Machine() {
        for (Fiber* fiber : fibers) {
            munmap(fiber->stack, STACK);
            delete fiber;
        }
    }

    /// Calls `body(data)` in each thread of each block.
    void run(const char* name, const unsigned grid[3], const unsigned block[3], void (*body)(void*), void* data) {
        kernel = name;
        this->body = body;
        this->data = data;
        gridDim = {grid[0], grid[1], grid[2]};
        blockDim = {block[0], block[1], block[2]};
        size_t count = (size_t)block[0] * block[1] * block[2];
        if (count == 0 || count > MOST_THREADS) {
            fail("blocks of %zu threads", count);
        }
        threads.resize(count);
        for (size_t i = 0; i < count; i++) {
            unsigned x = i % block[0], y = i / block[0] % block[1], z = i / block[0] / block[1];
            threads[i].index = {x, y, z};
        }
        backwards = false;
        for (unsigned z = 0; z < grid[2]; z++) {
            for (unsigned y = 0; y < grid[1]; y++) {
                for (unsigned x = 0; x < grid[0]; x++) {
                    blockIdx = {x, y, z};
                    run_block();
                    backwards = !backwards;
                }
            }
        }
    }

    /// Called by a thread: lets others run until all have come this far.
    void wait(State state, int line) {
        current->state = state;
        current->line = line;
        Context& here = current->fiber->context;
        here.switch_to(next());
    }

    /// Called by a fiber whose thread has ended: returns when the fiber has a new one.
    void end() {
        current->state = State::Ended;
        current->line = 0;
        Context& here = current->fiber->context;
        idle.push_back(current->fiber);
        Context& there = next();
        // Mostly the next thread begins, on this very fiber.
        if (&there != &here) {
            here.switch_to(there);
        }
    }

    /// Called by a thread: replaces `value` by that of the lane `lane ^ mask` of its warp.
    void exchange(int line, unsigned members, void* value, size_t size, int mask) {
        if (members != WHOLE_WARP || mask < 0 || mask >= (int)WARP) {
            fail("the shuffle of line %d is not among the lanes of a whole warp", line);
        }
        size_t number = current - threads.data(), lane = number % WARP;
        Shuffles& warp = shuffles[number / WARP];
        // A lane may come to the next shuffle before others have read this one's values, but no further.
        auto& values = warp.values[warp.count[lane]++ % 2];
        memcpy(values[lane], value, size);
        wait(State::Shuffle, line);
        memcpy(value, values[lane ^ mask], size);
    }

private:
    static constexpr size_t STACK = 128 << 10, GUARD = 4 << 10;
    /// By how much stacks begin lower than others, and in how many steps.
    static constexpr size_t COLOUR = 576, COLOURS = 64;

    /// What the lanes of a warp exchange.
    struct Shuffles {
        char values[2][WARP][sizeof(double)];
        /// How many shuffles each lane has come to, modulo 256.
        unsigned char count[WARP];
    };

    const char* kernel;
    void (*body)(void*);
    void* data;
    /// Whether the threads of this block run in reverse order.
    bool backwards;
    std::vector<Thread> threads;
    Shuffles shuffles[MOST_THREADS / WARP];
    /// All, and those on which no thread runs.
    std::vector<Fiber*> fibers, idle;
    /// The thread that runs now, its turn in its warp, and the warp.
    Thread* current;
    size_t turn, warp_begin, warp_end;
    /// Where to go on when all threads of the warp wait or have ended.
    Context scheduler;

    void run_block() {
        size_t count = threads.size(), warps = (count + WARP - 1) / WARP;
        for (Thread& thread : threads) {
            thread = {thread.index, State::Unstarted, 0, nullptr};
        }
        for (size_t i = 0; i < warps; i++) {
            std::fill_n(shuffles[i].count, WARP, 0);
        }
        do {
            for (size_t i = 0; i < warps; i++) {
                size_t begin = (backwards ? warps - 1 - i : i) * WARP;
                run_warp(begin, std::min(begin + WARP, count));
            }
            check_agreement(0, count);
        } while (threads[0].state == State::Barrier);
    }

    /// Runs a warp's threads until they wait at a barrier or have ended.
    void run_warp(size_t begin, size_t end) {
        warp_begin = begin;
        warp_end = end;
        do {
            turn = begin;
            scheduler.switch_to(resumed());
            check_agreement(begin, end);
            if (threads[begin].state == State::Shuffle && end - begin < WARP) {
                fail("a warp of %zu threads comes to the shuffle of line %d", end - begin, threads[begin].line);
            }
        } while (threads[begin].state == State::Shuffle);
    }

    /// Where to go on when the current thread waits or has ended: a switch to the scheduler in between would
    /// take as long again.
    Context& next() {
        return ++turn < warp_end ? resumed() : scheduler;
    }

    /// The place of the thread whose turn it is, which is now the current one.
    Context& resumed() {
        Thread& thread = threads[backwards ? warp_begin + warp_end - 1 - turn : turn];
        if (thread.state == State::Unstarted) {
            if (idle.empty()) {
                make_fiber();
            }
            thread.fiber = idle.back();
            idle.pop_back();
        }
        current = &thread;
        threadIdx = thread.index;
        return thread.fiber->context;
    }

    void make_fiber() {
        void* stack = mmap(nullptr, STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK, -1, 0);
        // Who runs off the stack's end meets memory that nobody may touch.
        if (stack == MAP_FAILED || mprotect(stack, GUARD, PROT_NONE) != 0) {
            fail("no memory for stack %zu", fibers.size());
        }
        Fiber* fiber = new Fiber;
        fiber->stack = static_cast<char*>(stack);
        // Stacks that begin alike would compete for the same few lines of the caches.
        fiber->context.prepare(fiber->stack, STACK - fibers.size() % COLOURS * COLOUR, run_threads);
        fibers.push_back(fiber);
        idle.push_back(fiber);
    }

    /// What a fiber does: each time that it has a new thread, runs that.
    static void run_threads();

    /// Threads that were to come to the same place must have.
    void check_agreement(size_t begin, size_t end) {
        for (size_t i = begin + 1; i < end; i++) {
            if (threads[i].state != threads[begin].state || threads[i].line != threads[begin].line) {
                Place a = place(threads[begin]), b = place(threads[i]);
                fail("thread %zu %s, but thread %zu %s", begin, a.text, i, b.text);
            }
        }
    }

    struct Place {
        char text[64];
    };

    static Place place(const Thread& thread) {
        Place place;
        if (thread.state == State::Ended) {
            snprintf(place.text, sizeof(place.text), "has ended");
        } else {
            const char* what = thread.state == State::Barrier ? "barrier" : "shuffle";
            snprintf(place.text, sizeof(place.text), "waits at the %s of line %d", what, thread.line);
        }
        return place;
    }

    template <class... Values>
    [[noreturn]] void fail(const char* format, Values... values) {
        fprintf(stderr, "software GPU: kernel %s, block (%u, %u, %u): ", kernel, blockIdx.x, blockIdx.y, blockIdx.z);
        fprintf(stderr, format, values...);
        fprintf(stderr, "\n");
        abort();
    }
};

/// The machine that a kernel runs on.
static thread_local Machine* machine;

inline void use_machine_of_this_thread() {
    static thread_local Machine of_this_thread;
    machine = &of_this_thread;
}

inline void Machine::run_threads() {
    for (;;) {
        machine->body(machine->data);
        machine->end();
    }
}

inline void barrier(int line) {
    machine->wait(State::Barrier, line);
}

template <class T>
T shuffle_xor(int line, unsigned members, T value, int mask) {
    static_assert(sizeof(T) <= sizeof(double), "a shuffle's value fits its slot");
    machine->exchange(line, members, &value, sizeof(value), mask);
    return value;
}

template <class Function>
struct Kernel;

template <class... Arguments>
struct Kernel<void (*)(Arguments...)> {
    using Values = std::tuple<Arguments...>;
    static constexpr unsigned sizes[] = {sizeof(Arguments)..., 0};

    template <void (*kernel)(Arguments...), const char* name>
    static constexpr software_gpu_entry entry() {
        return {sizeof...(Arguments), sizes, run<kernel, name>};
    }

private:
    template <void (*kernel)(Arguments...), const char* name>
    static void run(const unsigned grid[3], const unsigned block[3], void* const* arguments) {
        use_machine_of_this_thread();
        Values values = read(arguments, std::index_sequence_for<Arguments...>());
        auto body = [](void* values) { std::apply(kernel, *static_cast<Values*>(values)); };
        machine->run(name, grid, block, body, &values);
    }

    template <size_t... I>
    static Values read(void* const* arguments, std::index_sequence<I...>) {
        Values values;
        (memcpy(&std::get<I>(values), arguments[I], sizeof(Arguments)), ...);
        return values;
    }
};

}  // namespace software_gpu
