// libnvidia-ml.so.1 of the software GPU: what our code asks the management library for, with made-up answers for a
// machine of equal devices. It sees the whole machine, whatever CUDA_VISIBLE_DEVICES says; memory in use is this
// process's own.
#include "device.h"

#include <cstdio>
#include <cstring>

using namespace software_gpu;

namespace {

enum nvmlReturn_t : int {
    NVML_SUCCESS = 0,
    NVML_ERROR_UNINITIALIZED = 1,
    NVML_ERROR_INVALID_ARGUMENT = 2,
    NVML_ERROR_NOT_SUPPORTED = 3,
    NVML_ERROR_NOT_FOUND = 6,
    NVML_ERROR_INSUFFICIENT_SIZE = 7,
    NVML_ERROR_ARGUMENT_VERSION_MISMATCH = 25,
};

constexpr unsigned SM_CLOCK = 1410, MEMORY_CLOCK = 1215; // MHz
constexpr unsigned long long NO_THROTTLE = 0, HW_SLOWDOWN = 0x8, SW_THERMAL = 0x20, HW_THERMAL = 0x40;
constexpr unsigned OTHER_PID = 1;
constexpr unsigned long long OTHER_MEMORY = 1ull << 30;

struct nvmlPciInfo_t {
    char busIdLegacy[16];
    unsigned domain, bus, device, pciDeviceId, pciSubSystemId;
    char busId[32];
};
struct nvmlMemory_t {
    unsigned long long total, free, used;
};
struct nvmlMemory_v2_t {
    unsigned version;
    unsigned long long total, reserved, free, used;
};
struct nvmlProcessInfo_t {
    unsigned pid;
    unsigned long long usedGpuMemory;
    unsigned gpuInstanceId, computeInstanceId;
};
struct nvmlUtilization_t {
    unsigned gpu, memory;
};

int initialised = 0; // guarded by state().mutex

// A device handle is its number in the machine, told from rubbish by its upper half.
constexpr uintptr_t TAG = 0x6e766d6c00000000ull;

void *handle_of(unsigned machine) { return reinterpret_cast<void *>(TAG | machine); }

nvmlReturn_t device_of(void *handle, int *machine) {
    Lock lock(state().mutex);
    if (!initialised) return NVML_ERROR_UNINITIALIZED;
    uintptr_t value = (uintptr_t)handle;
    if ((value & ~0xffffffffull) != TAG || (int)(value & 0xffffffff) >= settings().machine_devices)
        return NVML_ERROR_INVALID_ARGUMENT;
    *machine = (int)(value & 0xffffffff);
    return NVML_SUCCESS;
}

#define DEVICE(handle)                                  \
    int machine = 0;                                    \
    ENTRY(nvmlReturn_t);                                \
    if (nvmlReturn_t code = device_of(handle, &machine)) return code

nvmlReturn_t put(char *to, unsigned length, const char *text) {
    if (!to) return NVML_ERROR_INVALID_ARGUMENT;
    if (length < strlen(text) + 1) return NVML_ERROR_INSUFFICIENT_SIZE;
    memcpy(to, text, strlen(text) + 1);
    return NVML_SUCCESS;
}

template <class T> nvmlReturn_t put(T *to, T value) {
    if (!to) return NVML_ERROR_INVALID_ARGUMENT;
    *to = value;
    return NVML_SUCCESS;
}

std::string uuid_text(int machine) {
    uint8_t uuid[16];
    device_uuid(machine, uuid);
    std::string text = "GPU-";
    for (int i = 0; i < 16; i++) {
        char digits[3];
        snprintf(digits, sizeof digits, "%02x", uuid[i]);
        if (i == 4 || i == 6 || i == 8 || i == 10) text += "-";
        text += digits;
    }
    return text;
}

unsigned long long used_memory(int machine) {
    unsigned long long used = settings().other_process ? OTHER_MEMORY : 0;
    Lock lock(state().mutex);
    for (size_t i = 0; i < state().devices.size(); i++) {
        if (machine_device((int)i) == machine) used += state().devices[i].taken();
    }
    return used < settings().memory ? used : settings().memory;
}

nvmlReturn_t clock_of(unsigned type, unsigned *clock) {
    if (type > 3) return NVML_ERROR_INVALID_ARGUMENT;
    return put(clock, type == 2 ? MEMORY_CLOCK : SM_CLOCK);
}

nvmlReturn_t initialise() {
    Lock lock(state().mutex);
    initialised++;
    return NVML_SUCCESS;
}

} // namespace

extern "C" {

nvmlReturn_t nvmlInit_v2(void) {
    ENTRY(nvmlReturn_t);
    return initialise();
}

nvmlReturn_t nvmlInitWithFlags(unsigned) {
    ENTRY(nvmlReturn_t);
    return initialise();
}

nvmlReturn_t nvmlShutdown(void) {
    ENTRY(nvmlReturn_t);
    Lock lock(state().mutex);
    if (!initialised) return NVML_ERROR_UNINITIALIZED;
    initialised--;
    return NVML_SUCCESS;
}

const char *nvmlErrorString(nvmlReturn_t code) {
    switch (code) {
    case NVML_SUCCESS: return "Success";
    case NVML_ERROR_UNINITIALIZED: return "Uninitialized";
    case NVML_ERROR_INVALID_ARGUMENT: return "Invalid Argument";
    case NVML_ERROR_NOT_SUPPORTED: return "Not Supported";
    case NVML_ERROR_NOT_FOUND: return "Not Found";
    case NVML_ERROR_INSUFFICIENT_SIZE: return "Insufficient Size";
    case NVML_ERROR_ARGUMENT_VERSION_MISMATCH: return "Argument version mismatch";
    default: return "Unknown Error";
    }
}

nvmlReturn_t nvmlSystemGetDriverVersion(char *version, unsigned length) {
    ENTRY(nvmlReturn_t);
    return put(version, length, "570.0.0");
}

nvmlReturn_t nvmlSystemGetNVMLVersion(char *version, unsigned length) {
    ENTRY(nvmlReturn_t);
    return put(version, length, "12.570.0.0");
}

nvmlReturn_t nvmlSystemGetCudaDriverVersion(int *version) {
    ENTRY(nvmlReturn_t);
    return put(version, 12080);
}

nvmlReturn_t nvmlSystemGetCudaDriverVersion_v2(int *version) {
    ENTRY(nvmlReturn_t);
    return put(version, 12080);
}

nvmlReturn_t nvmlDeviceGetCount_v2(unsigned *count) {
    ENTRY(nvmlReturn_t);
    Lock lock(state().mutex);
    if (!initialised) return NVML_ERROR_UNINITIALIZED;
    return put(count, (unsigned)settings().machine_devices);
}

nvmlReturn_t nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device) {
    ENTRY(nvmlReturn_t);
    Lock lock(state().mutex);
    if (!initialised) return NVML_ERROR_UNINITIALIZED;
    if (index >= (unsigned)settings().machine_devices) return NVML_ERROR_INVALID_ARGUMENT;
    return put(device, handle_of(index));
}

nvmlReturn_t nvmlDeviceGetHandleByUUID(const char *uuid, void **device) {
    ENTRY(nvmlReturn_t);
    Lock lock(state().mutex);
    if (!initialised) return NVML_ERROR_UNINITIALIZED;
    if (!uuid) return NVML_ERROR_INVALID_ARGUMENT;
    for (int machine = 0; machine < settings().machine_devices; machine++) {
        if (uuid_text(machine) == uuid) return put(device, handle_of((unsigned)machine));
    }
    return NVML_ERROR_NOT_FOUND;
}

nvmlReturn_t nvmlDeviceGetHandleByPciBusId_v2(const char *bus_id, void **device) {
    ENTRY(nvmlReturn_t);
    Lock lock(state().mutex);
    if (!initialised) return NVML_ERROR_UNINITIALIZED;
    unsigned domain = 0, bus = 0, slot = 0;
    if (!bus_id || sscanf(bus_id, "%x:%x:%x", &domain, &bus, &slot) != 3) return NVML_ERROR_INVALID_ARGUMENT;
    for (int machine = 0; machine < settings().machine_devices; machine++) {
        if (device_bus(machine) == bus && !domain && !slot) return put(device, handle_of((unsigned)machine));
    }
    return NVML_ERROR_NOT_FOUND;
}

nvmlReturn_t nvmlDeviceGetIndex(void *device, unsigned *index) {
    DEVICE(device);
    return put(index, (unsigned)machine);
}

nvmlReturn_t nvmlDeviceGetName(void *device, char *name, unsigned length) {
    DEVICE(device);
    return put(name, length, "Software GPU");
}

nvmlReturn_t nvmlDeviceGetUUID(void *device, char *uuid, unsigned length) {
    DEVICE(device);
    return put(uuid, length, uuid_text(machine).c_str());
}

nvmlReturn_t nvmlDeviceGetPciInfo_v3(void *device, nvmlPciInfo_t *pci) {
    DEVICE(device);
    if (!pci) return NVML_ERROR_INVALID_ARGUMENT;
    memset(pci, 0, sizeof *pci);
    pci->bus = device_bus(machine);
    snprintf(pci->busIdLegacy, sizeof pci->busIdLegacy, "0000:%02X:00.0", pci->bus & 0xff);
    snprintf(pci->busId, sizeof pci->busId, "00000000:%02X:00.0", pci->bus & 0xff);
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetMemoryInfo(void *device, nvmlMemory_t *memory) {
    DEVICE(device);
    if (!memory) return NVML_ERROR_INVALID_ARGUMENT;
    memory->total = settings().memory;
    memory->used = used_memory(machine);
    memory->free = memory->total - memory->used;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetMemoryInfo_v2(void *device, nvmlMemory_v2_t *memory) {
    DEVICE(device);
    if (!memory) return NVML_ERROR_INVALID_ARGUMENT;
    if (memory->version != (sizeof *memory | 2u << 24)) return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    memory->total = settings().memory;
    memory->reserved = 0;
    memory->used = used_memory(machine);
    memory->free = memory->total - memory->used;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetCudaComputeCapability(void *device, int *major, int *minor) {
    DEVICE(device);
    if (!major || !minor) return NVML_ERROR_INVALID_ARGUMENT;
    *major = settings().major;
    *minor = settings().minor;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetClockInfo(void *device, unsigned type, unsigned *clock) {
    DEVICE(device);
    if (clock_of(type, clock)) return NVML_ERROR_INVALID_ARGUMENT;
    if (settings().throttle && type != 2) *clock /= 2;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetMaxClockInfo(void *device, unsigned type, unsigned *clock) {
    DEVICE(device);
    return clock_of(type, clock);
}

nvmlReturn_t nvmlDeviceGetCurrentClocksThrottleReasons(void *device, unsigned long long *reasons) {
    DEVICE(device);
    return put(reasons, settings().throttle ? HW_SLOWDOWN | SW_THERMAL | HW_THERMAL : NO_THROTTLE);
}

nvmlReturn_t nvmlDeviceGetCurrentClocksEventReasons(void *device, unsigned long long *reasons) {
    DEVICE(device);
    return put(reasons, settings().throttle ? HW_SLOWDOWN | SW_THERMAL | HW_THERMAL : NO_THROTTLE);
}

nvmlReturn_t nvmlDeviceGetComputeRunningProcesses_v3(void *device, unsigned *count, nvmlProcessInfo_t *infos) {
    DEVICE(device);
    if (!count) return NVML_ERROR_INVALID_ARGUMENT;
    unsigned room = infos ? *count : 0;
    *count = settings().other_process ? 1 : 0;
    if (room < *count) return NVML_ERROR_INSUFFICIENT_SIZE;
    if (*count) infos[0] = {OTHER_PID, OTHER_MEMORY, 0xffffffff, 0xffffffff};
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetNvLinkState(void *device, unsigned, unsigned *) {
    DEVICE(device);
    return NVML_ERROR_NOT_SUPPORTED;
}

nvmlReturn_t nvmlDeviceGetMaxPcieLinkGeneration(void *device, unsigned *generation) {
    DEVICE(device);
    return put(generation, 4u);
}

nvmlReturn_t nvmlDeviceGetCurrPcieLinkGeneration(void *device, unsigned *generation) {
    DEVICE(device);
    return put(generation, 4u);
}

nvmlReturn_t nvmlDeviceGetMaxPcieLinkWidth(void *device, unsigned *width) {
    DEVICE(device);
    return put(width, 16u);
}

nvmlReturn_t nvmlDeviceGetCurrPcieLinkWidth(void *device, unsigned *width) {
    DEVICE(device);
    return put(width, 16u);
}

// Pairs of devices share a switch, the others meet at the host bridge.
nvmlReturn_t nvmlDeviceGetTopologyCommonAncestor(void *device, void *other, unsigned *level) {
    int second = 0;
    DEVICE(device);
    if (nvmlReturn_t code = device_of(other, &second)) return code;
    return put(level, machine == second ? 0u : machine / 2 == second / 2 ? 10u : 30u);
}

nvmlReturn_t nvmlDeviceGetTemperature(void *device, unsigned sensor, unsigned *degrees) {
    DEVICE(device);
    if (sensor != 0) return NVML_ERROR_INVALID_ARGUMENT;
    return put(degrees, settings().throttle ? 95u : 40u);
}

nvmlReturn_t nvmlDeviceGetPowerUsage(void *device, unsigned *milliwatts) {
    DEVICE(device);
    return put(milliwatts, 50000u);
}

nvmlReturn_t nvmlDeviceGetUtilizationRates(void *device, nvmlUtilization_t *utilization) {
    DEVICE(device);
    return put(utilization, nvmlUtilization_t{0, 0});
}

} // extern "C"
