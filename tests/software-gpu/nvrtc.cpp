// libnvrtc.so.12 of the software GPU: "compiles" a kernel source with g++ under shim.h, which makes CUDA's words
// mean something in C++. What comes out, the cubin as well as the PTX, is a shared object with a trailer (image.h).
//
// Compiling takes g++ many seconds, and every process of a test does it, so results are kept in a folder of their own
// by the hash of all that goes in.
#include "device.h"

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <dlfcn.h>
#include <fcntl.h>
#include <spawn.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "image.h"

#ifndef SHIM
#error "SHIM has to be the path of shim.h"
#endif

extern char **environ;

using namespace software_gpu;

namespace {

enum nvrtcResult : int {
    NVRTC_SUCCESS = 0,
    NVRTC_ERROR_INVALID_INPUT = 3,
    NVRTC_ERROR_INVALID_PROGRAM = 4,
    NVRTC_ERROR_INVALID_OPTION = 5,
    NVRTC_ERROR_COMPILATION = 6,
    NVRTC_ERROR_INTERNAL_ERROR = 11,
};

const char *const NAMES[] = {"NVRTC_SUCCESS",
                             "NVRTC_ERROR_OUT_OF_MEMORY",
                             "NVRTC_ERROR_PROGRAM_CREATION_FAILURE",
                             "NVRTC_ERROR_INVALID_INPUT",
                             "NVRTC_ERROR_INVALID_PROGRAM",
                             "NVRTC_ERROR_INVALID_OPTION",
                             "NVRTC_ERROR_COMPILATION",
                             "NVRTC_ERROR_BUILTIN_OPERATION_FAILURE",
                             "NVRTC_ERROR_NO_NAME_EXPRESSIONS_AFTER_COMPILATION",
                             "NVRTC_ERROR_NO_LOWERED_NAMES_BEFORE_COMPILATION",
                             "NVRTC_ERROR_NAME_EXPRESSION_NOT_VALID",
                             "NVRTC_ERROR_INTERNAL_ERROR",
                             "NVRTC_ERROR_TIME_FILE_WRITE_FAILED"};

// Lets the driver say which thread of which block made an illegal access.
const char *const POSITION = R"(
extern "C" __attribute__((visibility("default"))) void software_gpu_position(unsigned *block, unsigned *thread) {
    block[0] = blockIdx.x, block[1] = blockIdx.y, block[2] = blockIdx.z;
    thread[0] = threadIdx.x, thread[1] = threadIdx.y, thread[2] = threadIdx.z;
}
)";

struct Program {
    std::string source, name, log, object;
    int architecture = 52; // NVRTC's default
    bool real = false;     // sm_, not compute_
};

using nvrtcProgram = Program *;

// Live programs, so that a stale handle is told instead of followed.
std::mutex programs_mutex;
std::set<Program *> *const programs = new std::set<Program *>;

bool known(nvrtcProgram program) {
    std::lock_guard<std::mutex> guard(programs_mutex);
    return programs->count(program);
}

bool starts(const std::string &text, const char *with) { return text.compare(0, strlen(with), with) == 0; }

// Options as NVRTC spells them; those that g++ needs to hear of go to `passed`. Unknown ones are refused.
bool read_option(Program &program, const std::string &option, std::vector<std::string> &passed) {
    for (const char *flag : {"--gpu-architecture=", "-arch=", "-arch "}) {
        if (!starts(option, flag)) continue;
        std::string value = option.substr(strlen(flag));
        program.real = starts(value, "sm_");
        if (!program.real && !starts(value, "compute_")) return false;
        program.architecture = atoi(value.c_str() + (program.real ? 3 : 8));
        return program.architecture >= 50;
    }
    if (starts(option, "-D") || starts(option, "-U")) {
        passed.push_back(option);
        return true;
    }
    for (const char *flag : {"--define-macro=", "--undefine-macro="}) {
        if (!starts(option, flag)) continue;
        passed.push_back((flag[2] == 'd' ? "-D" : "-U") + option.substr(strlen(flag)));
        return true;
    }
    for (const char *flag : {"--std=", "-std="}) {
        if (starts(option, flag)) return option.substr(strlen(flag)) == "c++17"; // what shim.h is written in
    }
    for (const char *flag : {"--fmad=", "-fmad=", "--ftz=", "-ftz=", "--prec-div=", "-prec-div=", "--prec-sqrt=",
                             "-prec-sqrt=", "--maxrregcount=", "--split-compile=", "--diag-suppress=", "-diag-suppress="}) {
        if (starts(option, flag)) return true;
    }
    for (const char *flag : {"--use_fast_math", "-use_fast_math", "--generate-line-info", "-lineinfo", "--device-debug", "-G",
                             "--restrict", "-restrict", "--default-device", "-default-device", "--device-as-default-execution-space",
                             "-w", "--disable-warnings", "--extra-device-vectorization", "--no-source-include"}) {
        if (option == flag) return true;
    }
    return false;
}

// Names of the kernels: `extern "C" __global__ void NAME(` at the start of a line, with launch bounds or without.
std::vector<std::string> kernels(const std::string &source) {
    static const char START[] = "extern \"C\" __global__ void ";
    std::vector<std::string> names;
    for (size_t at = 0; (at = source.find(START, at)) != std::string::npos;) {
        bool line_start = at == 0 || source[at - 1] == '\n';
        at += sizeof START - 1;
        if (!line_start) continue;
        if (source.compare(at, 17, "__launch_bounds__") == 0) {
            at = source.find(')', at);
            if (at == std::string::npos) break;
            at = source.find_first_not_of(" \n", at + 1);
        }
        size_t end = source.find_first_not_of("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_", at);
        if (end == std::string::npos || end == at) continue;
        names.push_back(source.substr(at, end - at));
    }
    return names;
}

bool read_file(const std::string &path, std::string *text) {
    FILE *file = fopen(path.c_str(), "rb");
    if (!file) return false;
    text->clear();
    char buffer[1 << 16];
    size_t count;
    while ((count = fread(buffer, 1, sizeof buffer, file)) > 0) text->append(buffer, count);
    bool good = !ferror(file);
    fclose(file);
    return good;
}

bool write_file(const std::string &path, const std::string &text) {
    FILE *file = fopen(path.c_str(), "wb");
    if (!file) return false;
    bool good = fwrite(text.data(), 1, text.size(), file) == text.size();
    return fclose(file) == 0 && good;
}

// Runs the compiler with its messages in `log`.
bool run_compiler(const std::vector<std::string> &words, const std::string &log) {
    std::vector<char *> arguments;
    for (const std::string &word : words) arguments.push_back(const_cast<char *>(word.c_str()));
    arguments.push_back(nullptr);
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addopen(&actions, 1, log.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600);
    posix_spawn_file_actions_adddup2(&actions, 1, 2);
    pid_t child = 0;
    int failed = posix_spawnp(&child, arguments[0], &actions, nullptr, arguments.data(), environ);
    posix_spawn_file_actions_destroy(&actions);
    if (failed) {
        write_file(log, "software GPU: cannot run " + words[0] + ": " + strerror(failed) + "\n");
        return false;
    }
    int status = 0;
    while (waitpid(child, &status, 0) < 0 && errno == EINTR) {}
    return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

// MODULES where that is given, else beside this library.
std::string cache_folder() {
#ifdef MODULES
    return MODULES;
#else
    Dl_info info;
    if (!dladdr(reinterpret_cast<void *>(&cache_folder), &info) || !info.dli_fname) return "/tmp";
    std::string path = info.dli_fname;
    return path.substr(0, path.rfind('/')) + "/modules";
#endif
}

std::string key_of(const std::vector<std::string> &parts) {
    uint64_t one = image_digest("", 0), two = 0x9e3779b97f4a7c15ull;
    for (const std::string &part : parts) {
        one = image_digest(part.data(), part.size() + 1, one);
        two = image_digest(part.data(), part.size() + 1, two);
    }
    char text[40];
    snprintf(text, sizeof text, "%016llx%016llx", (unsigned long long)one, (unsigned long long)two);
    return text;
}

nvrtcResult compile(Program &program, const std::vector<std::string> &passed) {
    std::string shim;
    if (!read_file(SHIM, &shim)) {
        program.log = "software GPU: no " SHIM "\n";
        return NVRTC_ERROR_INTERNAL_ERROR;
    }
    std::string source = "#line 1 \"" + program.name + "\"\n" + program.source + "\n#line 1 \"entries\"\n";
    for (const std::string &name : kernels(program.source)) source += "SOFTWARE_GPU_ENTRY(" + name + ")\n";
    source += POSITION;

    const char *compiler = getenv("SOFTWARE_GPU_CXX");
    std::vector<std::string> words = {compiler && *compiler ? compiler : "g++", "-std=c++17", "-O2", "-shared", "-fPIC",
                                      "-fno-strict-aliasing", "-ffp-contract=off", "-Wl,-z,defs", "-include", SHIM};
    words.insert(words.end(), passed.begin(), passed.end());

    std::string cache = cache_folder();
    mkdir(cache.c_str(), 0755);
    std::vector<std::string> parts = words;
    parts.push_back(shim);
    parts.push_back(source);
    std::string base = cache + "/" + key_of(parts), object = base + ".so";
    int lock = open((base + ".lock").c_str(), O_CREAT | O_RDWR | O_CLOEXEC, 0644);
    if (lock >= 0) flock(lock, LOCK_EX); // one process compiles, the others wait for its result
    nvrtcResult result = NVRTC_SUCCESS;
    if (!read_file(object, &program.object)) {
        std::string work = base + "." + std::to_string(getpid());
        bool good = write_file(work + ".cpp", source);
        if (!good) program.log = "software GPU: cannot write " + work + ".cpp: " + strerror(errno) + "\n";
        words.insert(words.end(), {"-o", work + ".so", work + ".cpp"});
        good = good && run_compiler(words, work + ".log");
        read_file(work + ".log", &program.log);
        if (good && rename((work + ".so").c_str(), object.c_str()) == 0 && read_file(object, &program.object)) {
            result = NVRTC_SUCCESS;
        } else {
            result = NVRTC_ERROR_COMPILATION;
        }
        for (const char *ending : {".cpp", ".log", ".so"}) unlink((work + ending).c_str());
    }
    if (lock >= 0) close(lock);
    return result;
}

// The object with its trailer.
std::string image(const Program &program, bool binary) {
    ImageTrailer trailer = {};
    memcpy(trailer.magic, ImageTrailer::MAGIC, sizeof trailer.magic);
    trailer.digest = image_digest(program.object.data(), program.object.size());
    trailer.architecture = program.architecture;
    trailer.binary = binary;
    return program.object + std::string(reinterpret_cast<const char *>(&trailer), sizeof trailer);
}

nvrtcResult image_size(nvrtcProgram program, bool binary, size_t *bytes) {
    if (!known(program)) return NVRTC_ERROR_INVALID_PROGRAM;
    if (!bytes) return NVRTC_ERROR_INVALID_INPUT;
    *bytes = 0;
    if (program->object.empty()) return NVRTC_ERROR_INVALID_PROGRAM;
    // For a virtual architecture there is no cubin, and its size is zero.
    if (!binary || program->real) *bytes = program->object.size() + sizeof(ImageTrailer);
    return NVRTC_SUCCESS;
}

nvrtcResult image_bytes(nvrtcProgram program, bool binary, char *to) {
    if (!known(program)) return NVRTC_ERROR_INVALID_PROGRAM;
    if (!to) return NVRTC_ERROR_INVALID_INPUT;
    if (program->object.empty() || (binary && !program->real)) return NVRTC_ERROR_INVALID_PROGRAM;
    std::string bytes = image(*program, binary);
    memcpy(to, bytes.data(), bytes.size());
    return NVRTC_SUCCESS;
}

} // namespace

extern "C" {

nvrtcResult nvrtcVersion(int *major, int *minor) {
    ENTRY(nvrtcResult);
    if (!major || !minor) return NVRTC_ERROR_INVALID_INPUT;
    *major = 12;
    *minor = 8;
    return NVRTC_SUCCESS;
}

const char *nvrtcGetErrorString(nvrtcResult result) {
    return (unsigned)result < sizeof NAMES / sizeof *NAMES ? NAMES[result] : "NVRTC_ERROR unknown";
}

nvrtcResult nvrtcCreateProgram(nvrtcProgram *program, const char *source, const char *name, int headers,
                               const char *const *, const char *const *) {
    ENTRY(nvrtcResult);
    if (!program || !source || headers != 0) return NVRTC_ERROR_INVALID_INPUT;
    *program = new Program;
    (*program)->source = source;
    (*program)->name = name && *name ? name : "default_program";
    std::lock_guard<std::mutex> guard(programs_mutex);
    programs->insert(*program);
    return NVRTC_SUCCESS;
}

nvrtcResult nvrtcDestroyProgram(nvrtcProgram *program) {
    ENTRY(nvrtcResult);
    if (!program || !known(*program)) return NVRTC_ERROR_INVALID_PROGRAM;
    {
        std::lock_guard<std::mutex> guard(programs_mutex);
        programs->erase(*program);
    }
    delete *program;
    *program = nullptr;
    return NVRTC_SUCCESS;
}

nvrtcResult nvrtcCompileProgram(nvrtcProgram program, int count, const char *const *options) {
    ENTRY(nvrtcResult);
    if (!known(program)) return NVRTC_ERROR_INVALID_PROGRAM;
    std::vector<std::string> passed;
    for (int i = 0; i < count; i++) {
        if (read_option(*program, options[i], passed)) continue;
        program->log = std::string("nvrtc: error: invalid value for an option, or an option unknown to the software GPU: ") +
                       options[i] + "\n";
        return NVRTC_ERROR_INVALID_OPTION;
    }
    return compile(*program, passed);
}

nvrtcResult nvrtcGetProgramLogSize(nvrtcProgram program, size_t *bytes) {
    ENTRY(nvrtcResult);
    if (!known(program)) return NVRTC_ERROR_INVALID_PROGRAM;
    if (!bytes) return NVRTC_ERROR_INVALID_INPUT;
    *bytes = program->log.size() + 1;
    return NVRTC_SUCCESS;
}

nvrtcResult nvrtcGetProgramLog(nvrtcProgram program, char *log) {
    ENTRY(nvrtcResult);
    if (!known(program)) return NVRTC_ERROR_INVALID_PROGRAM;
    if (!log) return NVRTC_ERROR_INVALID_INPUT;
    memcpy(log, program->log.c_str(), program->log.size() + 1);
    return NVRTC_SUCCESS;
}

nvrtcResult nvrtcGetCUBINSize(nvrtcProgram program, size_t *bytes) {
    ENTRY(nvrtcResult);
    return image_size(program, true, bytes);
}

nvrtcResult nvrtcGetCUBIN(nvrtcProgram program, char *cubin) {
    ENTRY(nvrtcResult);
    return image_bytes(program, true, cubin);
}

nvrtcResult nvrtcGetPTXSize(nvrtcProgram program, size_t *bytes) {
    ENTRY(nvrtcResult);
    return image_size(program, false, bytes);
}

nvrtcResult nvrtcGetPTX(nvrtcProgram program, char *ptx) {
    ENTRY(nvrtcResult);
    return image_bytes(program, false, ptx);
}

} // extern "C"
